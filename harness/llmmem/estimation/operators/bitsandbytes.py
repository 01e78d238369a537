"""bitsandbytes on the meta device: the Python code of its CUDA backend, without the compiled library.

The Python code allocates everything that the kernels need, and picks kernels by the card. It is
loaded under another module name and with a library whose functions do nothing, so that a trace
runs the code of a GPU on any build of PyTorch.
"""

from __future__ import annotations

import importlib.util
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.fake_cuda.dispatch import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch import nn

    from llmmem.catalogue.gpus import Gpu
    from llmmem.estimation.tracing.tracer import Handler, Tracer

__all__ = ["as_on_gpu", "handlers", "quantize_on_meta"]


class _NoLibrary:
    """A library that has every function; none of them does anything."""

    compiled_with_cuda = True

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("__"):
            raise AttributeError(name)

        def function(*args: object) -> int:
            return 0

        return function


class _NoContexts:
    """Replaces the handles of cuBLASLt, which only the library uses."""

    @classmethod
    def get_instance(cls) -> _NoContexts:
        return cls()

    def get_context(self, device: torch.device) -> None:
        return None


def handlers(gpu: Gpu) -> dict[Any, Handler]:
    """Handlers of bitsandbytes' operators for the card."""
    import bitsandbytes

    backends = Path(bitsandbytes.__file__).parent / "backends"
    kernels: dict[str, Callable[..., Any]] = {}
    # Operators without a CUDA kernel use the default one.
    _load(backends / "default" / "ops.py", "default", kernels)
    cuda = _load(backends / "cuda" / "ops.py", "cuda", kernels)
    vars(cuda).update(
        CUBLAS_Context=_NoContexts,
        _get_raw_stream=lambda index: 0,
        _cuda_device_of=lambda tensor: nullcontext(),
        _gpu_dispatch_props=lambda index: (gpu.sm_count, *gpu.compute_capability),
    )
    return {_operator(name): _handler(kernel) for name, kernel in kernels.items()}


def _operator(name: str) -> Any:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def _load(path: Path, backend: str, kernels: dict[str, Callable[..., Any]]) -> ModuleType:
    """Run the source of a backend as a separate module, and collect the kernels that it registers."""
    import bitsandbytes._ops
    import bitsandbytes.cextension

    def register(name: str, device: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def note(kernel: Callable[..., Any]) -> Callable[..., Any]:
            kernels[name] = kernel
            return kernel

        return note

    spec = importlib.util.spec_from_file_location(f"bitsandbytes.backends.{backend}._traced", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with (
        replaced(bitsandbytes._ops, "register_kernel", register),
        replaced(bitsandbytes.cextension, "lib", _NoLibrary()),
        replaced(torch._C, "_cuda_getCurrentRawStream", None),
    ):
        spec.loader.exec_module(module)
    return module


def _handler(kernel: Callable[..., Any]) -> Handler:
    def handle(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tracer.run_kernel(kernel, func, args, kwargs)

    return handle


@contextmanager
def as_on_gpu(tracer: Tracer) -> Iterator[None]:
    """Make bitsandbytes behave as in a fresh process with a GPU.

    The tables that it keeps for the process are empty at first. Paged tensors are managed by the
    driver and lie outside of the caching allocator.
    """
    from bitsandbytes import functional
    from bitsandbytes.nn.modules import Params4bit

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        with tracer.outside_allocator(), torch._C.DisableTorchFunction():
            tensor = torch.empty(shape, dtype=dtype, device="meta")
        vars(tensor).update(is_paged=True, page_deviceid=device.index)
        return tensor

    def without_kernel(*args: object, **kwargs: object) -> None:
        pass

    move = Params4bit.to

    def quantized_by_move(parameter: Any, *args: Any, **kwargs: Any) -> Any:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        is_to_cuda = device is not None and device.type == "cuda"
        if is_to_cuda and parameter.device.type == "cpu" and not parameter.bnb_quantized:
            quantized = _quantized_anew(parameter, device, tracer)
            torch.utils.swap_tensors(parameter, quantized)  # type: ignore[no-untyped-call]
            return parameter
        return move(parameter, *args, **kwargs)

    with (
        replaced(functional, "name2qmap", {}),
        replaced(functional, "get_paged", get_paged),
        replaced(functional, "fill", without_kernel),
        replaced(functional, "prefetch_tensor", without_kernel),
        replaced(Params4bit, "to", quantized_by_move),
    ):
        yield


@torch.no_grad()
def quantize_on_meta(layers: list[nn.Module], linear: nn.Module, device: torch.device) -> None:
    """Quantize a layer of bitsandbytes on the host as ``linear.to(device)`` does on a GPU.

    A move to the meta device does not quantize, so this function takes the steps of
    ``Params4bit._quantize`` and ``Int8Params._quantize``. A layer and its 4-bit parameter refer to
    each other, so both outlive the model. Here the list of layers keeps the layer alive instead.

    Args:
        layers: Gets the layer, if it has 4-bit parameters.
        linear: The layer.
        device: The device on which the quantized weights are allocated.
    """
    from bitsandbytes.nn.modules import Int8Params, Params4bit

    for name, parameter in list(linear.named_parameters(recurse=False)):
        if isinstance(parameter, Params4bit):
            _quantize_4bit(parameter, device)
            # A cycle would have the same effect, but collecting it takes a tenth of the trace.
            parameter.module = weakref.proxy(linear)
            layers.append(linear)
        elif isinstance(parameter, Int8Params):
            _quantize_int8(parameter, device)
        else:
            moved = torch.empty_like(parameter, device=device)
            setattr(linear, name, torch.nn.Parameter(moved, requires_grad=False))


def _quantized_anew(parameter: Any, device: torch.device, tracer: Tracer) -> Any:
    """A quantized parameter that replaces one of the host, which cannot be quantized in place."""
    with tracer.outside_allocator(), torch._C.DisableTorchFunction():
        host = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    quantized = type(parameter)(
        host,
        requires_grad=False,
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
        module=parameter.module,
    )
    _quantize_4bit(quantized, device)
    return quantized


def _quantize_4bit(parameter: Any, device: torch.device) -> None:
    import bitsandbytes

    copy = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    packed, state = bitsandbytes.functional.quantize_4bit(
        copy,
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
    )
    parameter.data = packed
    parameter.quant_state = state
    if parameter.module is not None:
        parameter.module.quant_state = state
    parameter.bnb_quantized = True


def _quantize_int8(parameter: Any, device: torch.device) -> None:
    import bitsandbytes

    # The host casts, and the copy on the device is in float16.
    copy = torch.empty(parameter.shape, dtype=torch.float16, device=device)
    quantized, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(copy)
    parameter.data = quantized
    parameter.CB = quantized
    parameter.SCB = scales
