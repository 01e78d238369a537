"""Redirects CUDA to the meta device: devices, the functions of ``torch.cuda``, and addresses.

Inside `cuda_redirected` a program that is written for a GPU runs on any build of PyTorch. Tensors
that it moves to ``cuda`` go to the meta device, where the tracer sees them, and report ``cuda:0`` as
their device. Functions of ``torch.cuda`` describe the card of the catalogue and the allocator's model.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _device, checkpoint
from torch.utils._device import DeviceContext
from torch.utils._device import _device_constructors as _constructors

from llmmem.errors import UnsupportedError
from llmmem.estimation.fake_cuda.dispatch import modes_in_backward, replaced
from llmmem.estimation.tracing.tensors import META

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from llmmem.estimation.tracing.tracer import Placement, Tracer

__all__ = ["cuda_redirected"]

CUDA = torch.device("cuda", 0)
_CUDA_NAME = re.compile(r"cuda(:\d+)?")
# Functions that create a tensor of values, without an operator that a dispatch mode sees.
_FROM_VALUES = (torch.as_tensor, torch.asarray, Tensor.new_tensor)


@contextmanager
def cuda_redirected(
    tracer: Tracer, dispatch: TorchFunctionMode, reset_peaks: Callable[[], object]
) -> Iterator[list[str]]:
    """Run the code inside as if the tracer's card were in this machine.

    `gpu_dispatch` must be active: autocast for ``cuda`` uses its autocast for the meta device.

    Args:
        tracer: Traces tensors on the device.
        dispatch: The mode of `gpu_dispatch`, which sees tensors on the meta device.
        reset_peaks: Called instead of ``torch.cuda.reset_peak_memory_stats``.

    Yields:
        The names of functions and modules that were called, and that ``torch.compile`` would have
        compiled in a run.
    """
    with ExitStack() as stack:
        answers = _cuda_answers(tracer, reset_peaks)
        for name, answer in answers.items():
            for module in (torch.cuda, torch.cuda.memory, torch.cuda.random):
                if module is torch.cuda or hasattr(module, name):
                    stack.enter_context(replaced(module, name, answer))
        for name, answer in _accelerator_answers(answers).items():
            stack.enter_context(replaced(torch.accelerator, name, answer))
        stack.enter_context(_default_device_redirected())
        stack.enter_context(_autocast_redirected())
        stack.enter_context(_checkpoints_compared())
        stack.enter_context(_nothing_pinned())
        # It checks its stream before a mode sees the call.
        stack.enter_context(replaced(Tensor, "record_stream", partial(_refuse_side_stream, tracer)))
        stack.enter_context(_storages_told_apart(tracer))
        stack.enter_context(_generators_redirected())
        compiled = stack.enter_context(_compiled_run_eagerly(tracer))
        stack.enter_context(_kernels_not_launched(tracer))
        # Modules then move their parameters as between the host and a GPU: the parameter objects stay
        # the same (see `_Redirection._set_data`).
        stack.enter_context(
            replaced(torch, "_has_compatible_shallow_copy_type", lambda old, new: True)
        )
        redirection = stack.enter_context(_Redirection(tracer))
        stack.enter_context(modes_in_backward(dispatch, redirection))
        stack.enter_context(_saved_tensors_packed(dispatch, redirection))
        yield compiled


def _redirected(device: Any) -> Any:
    """The meta device for a CUDA device or its name; any other argument as it is."""
    if isinstance(device, torch.device):
        return META if device.type == "cuda" else device
    if isinstance(device, str):
        return META if _CUDA_NAME.fullmatch(device) else device
    return device


def _redirected_argument(device: Any) -> Any:
    """The same for an argument that must be a device, and may be the index of a GPU."""
    is_number = isinstance(device, int) and not isinstance(device, bool)
    return META if is_number else _redirected(device)


def _placement_of(device: Any) -> Placement | None:
    """Where tensors go that a program creates on the device; ``None`` for the host."""
    if str(device) == "meta":
        return "skeleton"
    return "device" if _redirected_argument(device) is META else None


def _device_of_number(*args: Any, **kwargs: Any) -> torch.device:
    """``torch.device``, for which a single number is the index of a GPU."""
    if len(args) == 1 and isinstance(args[0], int) and not kwargs:
        return torch.device("cuda", args[0])
    return torch.device(*args, **kwargs)


class _Redirection(TorchFunctionMode):
    """Redirects CUDA devices to the meta device, whose tensors report ``cuda:0`` as their device."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer
        self._substitutes: dict[Any, Callable[..., Any]] = {
            # These return devices, which are redirected when they are used.
            torch.device: _device_of_number,
            torch._C._nn._parse_to: torch._C._nn._parse_to,
            Tensor.cuda: self._cuda,
            Tensor.data.__set__: self._set_data,  # type: ignore[attr-defined]
            Tensor.data_ptr: self._data_ptr,
            Tensor.pin_memory: lambda tensor, *_: tensor,
            Tensor.__format__: self._format,
            Tensor.get_device: lambda tensor: 0 if self._is_cuda(tensor) else tensor.get_device(),
            Tensor.device.__get__: lambda tensor: CUDA if self._is_cuda(tensor) else tensor.device,
            Tensor.is_cuda.__get__: self._is_cuda,  # type: ignore[attr-defined]
            Tensor.is_meta.__get__: tracer.is_skeleton,  # type: ignore[attr-defined]
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        __tracebackhide__ = True  # see `failures`
        substitute = self._substitutes.get(func)
        if substitute is not None:
            return substitute(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if kwargs.get("pin_memory"):
            del kwargs["pin_memory"]
        is_move = func is Tensor.to
        asked = kwargs.get("device", args[1] if is_move and len(args) > 1 else None)
        if asked is None and _device.CURRENT_DEVICE is not None and func in _constructors():
            placement = _default_placement()
        else:
            placement = _placement_of(asked)
        if "device" in kwargs:
            kwargs["device"] = _redirected_argument(kwargs["device"])
        if is_move and len(args) > 1:
            args = (args[0], _redirected_argument(args[1]), *args[2:])
        else:
            args = tuple(map(_redirected, args))
        if is_move and placement is not None:
            args = (self._movable(args[0], placement), *args[1:])
        with nullcontext() if placement is None else self._tracer.placing(placement):
            out = func(*args, **kwargs)
            if func in _FROM_VALUES:
                self._tracer.allocate(out)
        return out

    def _is_cuda(self, tensor: Tensor) -> bool:
        return tensor.is_meta and not self._tracer.is_skeleton(tensor)

    def _movable(self, tensor: Tensor, placement: Placement) -> Tensor:
        """The tensor, or a new one if PyTorch would see no move, as both devices are meta."""
        if not tensor.is_meta or self._tracer.is_skeleton(tensor) == (placement == "skeleton"):
            return tensor
        if placement == "device":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        with self._tracer.placing(placement):
            return torch.empty_like(tensor)

    def _cuda(
        self,
        tensor: Tensor,
        device: Any = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor:
        with self._tracer.placing("device"):
            movable = self._movable(tensor, "device")
            return movable.to(META, non_blocking=non_blocking, memory_format=memory_format)

    def _data_ptr(self, tensor: Tensor) -> int:
        if not tensor.is_meta:
            return tensor.data_ptr()
        start = self._tracer.pointer(tensor.untyped_storage())
        return start + int(tensor.storage_offset()) * tensor.element_size() if start else 0

    def _format(self, tensor: Tensor, spec: str) -> str:
        value = tensor.detach().item() if tensor.is_meta and tensor.dim() == 0 else tensor
        return format(value, spec)

    def _set_data(self, tensor: Tensor, value: Tensor) -> None:
        """``tensor.data = value``, which PyTorch supports between the host and CUDA only."""
        if tensor.is_meta == value.is_meta:
            tensor.data = value
            return
        gradient = tensor.grad
        if gradient is not None:
            _check_moved_by_module()
            tensor.grad = None
        new: Tensor
        if isinstance(tensor, nn.Parameter):
            new = Tensor._make_subclass(type(tensor), value.detach(), tensor.requires_grad)
        else:
            new = value.detach().requires_grad_(tensor.requires_grad)
        vars(new).update(vars(tensor))
        torch.utils.swap_tensors(tensor, new)  # type: ignore[no-untyped-call]
        if gradient is not None:
            # A gradient is on the device of its tensor: it moves here, and the module finds it moved.
            with self._tracer.placing("skeleton" if self._tracer.is_skeleton(value) else "device"):
                moved = torch.empty_like(gradient, dtype=value.dtype, device=value.device)
            torch.utils.swap_tensors(gradient, moved)  # type: ignore[no-untyped-call]
            tensor.grad = gradient


def _check_moved_by_module() -> None:
    """Raise an error unless the caller is ``Module._apply``, which moves the gradient next.

    Raises:
        UnsupportedError: The program itself has set the data of a parameter.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    if frame is None or frame.f_code is not nn.Module._apply.__code__:
        raise UnsupportedError(
            "a parameter whose data is set to a tensor on another device cannot be traced while it "
            "has a gradient: run it with llmmem exec"
        )


def _refuse_side_stream(tracer: Tracer, *_: object) -> None:
    tracer.refuse(
        "record_stream: memory that several streams use cannot be traced: run it with llmmem exec"
    )


@contextmanager
def _default_device_redirected() -> Iterator[None]:
    """Redirect ``torch.set_default_device``, and restore the default device at the end.

    It enters a mode below all others, whose device must be redirected. The mode of ``with
    torch.device("cuda")`` is above `_Redirection`, which sees its calls.
    """
    enter = DeviceContext.__enter__
    before = torch.get_default_device()

    def enter_redirected(context: Any) -> None:
        context.placement = _placement_of(context.device)
        context.device = _redirected(context.device)
        enter(context)  # type: ignore[no-untyped-call]

    with replaced(DeviceContext, "__enter__", enter_redirected):
        try:
            yield
        finally:
            if torch.get_default_device() != before:
                torch.set_default_device(None if before.type == "cpu" else before)


def _default_placement() -> Placement | None:
    """Where tensors go that are created without a device."""
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        if isinstance(mode, DeviceContext):
            return getattr(mode, "placement", None)
    return None


@contextmanager
def _autocast_redirected() -> Iterator[None]:
    """Redirect autocast for CUDA to autocast for the meta device, under all names of the class."""
    autocast = torch.amp.autocast_mode.autocast
    enter, leave, on_meta = autocast.__enter__, autocast.__exit__, torch.autocast
    inside: list[Any] = []

    def enter_redirected(self: Any) -> Any:
        if self.device != "cuda":
            return enter(self)  # type: ignore[no-untyped-call]
        inside.append(on_meta("meta", dtype=self.fast_dtype, enabled=self._enabled))
        inside[-1].__enter__()
        return self

    def leave_redirected(self: Any, *error: Any) -> Any:
        if self.device != "cuda":
            return leave(self, *error)
        return inside.pop().__exit__(*error)

    with (
        replaced(autocast, "__enter__", enter_redirected),
        replaced(autocast, "__exit__", leave_redirected),
    ):
        yield


@contextmanager
def _checkpoints_compared() -> Iterator[None]:
    """Let checkpoints compare recomputed tensors with saved ones, which no function mode saw."""
    extractors = checkpoint._allowed_determinism_checks_to_fns
    before = dict(extractors)

    def without_modes(extract: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def extract_without_modes(tensor: Tensor) -> Any:
            with torch._C.DisableTorchFunction():
                return extract(tensor)

        return extract_without_modes

    extractors.update({name: without_modes(extract) for name, extract in before.items()})
    try:
        yield
    finally:
        extractors.update(before)


@contextmanager
def _storages_told_apart(tracer: Tracer) -> Iterator[None]:
    """Give storages on the device addresses, by which libraries find tensors that share storage."""
    address = torch.UntypedStorage.data_ptr

    def address_of(storage: torch.UntypedStorage) -> int:
        is_meta = storage.device.type == "meta"
        return tracer.pointer(storage) if is_meta else address(storage)

    with replaced(torch.UntypedStorage, "data_ptr", address_of):
        yield


class _Generator(torch.Generator):
    """A generator that reports the GPU as its device, where numbers have no values."""

    device = CUDA


@contextmanager
def _generators_redirected() -> Iterator[None]:
    """Replace ``torch.Generator(device="cuda")``, which needs a driver, by one of the host."""
    made = torch.Generator

    class Generator(made):  # type: ignore[misc,valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            with torch._C.DisableTorchFunction():
                is_cuda = _placement_of(device) == "device"
                return _Generator.__new__(_Generator) if is_cuda else made(device)

    with (
        replaced(torch, "Generator", Generator),
        replaced(torch.cuda, "default_generators", (_Generator(),)),
    ):
        yield


@contextmanager
def _saved_tensors_packed(*modes: TorchFunctionMode) -> Iterator[None]:
    """Keep the modes active in hooks on saved tensors.

    Autograd calls the hooks within operators, where function modes are inactive. The hooks of
    checkpoints move no tensors and stay as they are.
    """
    hooks = torch.autograd.graph.saved_tensors_hooks
    initialize = hooks.__init__

    def seeing(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(value: Any) -> Any:
            active = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
            with ExitStack() as stack:
                for mode in modes:
                    if mode not in active:
                        stack.enter_context(mode)
                return hook(value)

        return call

    def initialize_seeing(self: Any, pack_hook: Any, unpack_hook: Any) -> None:
        if type(self).__module__ != checkpoint.__name__:
            pack_hook, unpack_hook = seeing(pack_hook), seeing(unpack_hook)
        initialize(self, pack_hook, unpack_hook)

    with replaced(hooks, "__init__", initialize_seeing):
        yield


@contextmanager
def _nothing_pinned() -> Iterator[None]:
    """Let data loaders skip the pinning of memory, which their threads do without any mode."""
    from torch.utils.data._utils import pin_memory

    with replaced(pin_memory, "pin_memory", lambda data, device=None: data):
        yield


#: With one of these variables of PyTorch set to 1, a run does not compile either.
_COMPILE_SWITCHES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")


def _is_higher_order(function: Any) -> bool:
    """Whether it is flex attention or a higher-order operator, which PyTorch itself compiles."""
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__name__", "")
    is_flex = module == "torch.nn.attention.flex_attention" and "flex_attention" in name
    return is_flex or module.startswith("torch._higher_order_ops.")


def _refuse_higher_order(tracer: Tracer, *_: object, **__: object) -> None:
    """Refuse an operator that has no gradient under a mode: autograd would end the process."""
    tracer.refuse(
        "flex_attention and other higher-order operators (torch.cond, while_loop) cannot be "
        "traced: run it with llmmem exec"
    )


@contextmanager
def _compiled_run_eagerly(tracer: Tracer) -> Iterator[list[str]]:
    """Run compiled functions and modules eagerly, also those that were compiled before.

    Yields:
        The names of those that were called; none if a variable of PyTorch disables compilation.
    """
    called: list[str] = []
    hooks: list[Any] = []
    is_disabled = any(os.environ.get(name) == "1" for name in _COMPILE_SWITCHES)

    def compile_nothing(model: Any = None, *, disable: bool = False, **kwargs: Any) -> Any:
        if model is None:
            return partial(compile_nothing, disable=disable, **kwargs)
        if _is_higher_order(model):
            return partial(_refuse_higher_order, tracer)
        if disable or is_disabled:
            return model
        if isinstance(model, nn.Module):
            compile_module(model)
            return model

        @wraps(model)
        def listed(*args: Any, **kwargs: Any) -> Any:
            called.append(getattr(model, "__qualname__", type(model).__qualname__))
            return model(*args, **kwargs)

        return listed

    def compile_module(module: nn.Module, *_: Any, **__: Any) -> None:
        def on_call(module: nn.Module, _: Any) -> None:
            called.append(type(module).__qualname__)

        if not is_disabled:
            hooks.append(module.register_forward_pre_hook(on_call))

    def callback_of(callback: Any) -> None:
        """No callback for compiled code, as in the stance ``force_eager``; lists the call."""
        if callable(callback) and not is_disabled:
            called.append("a function")

    with ExitStack() as stack:
        stack.enter_context(replaced(torch, "compile", compile_nothing))
        stack.enter_context(replaced(nn.Module, "compile", compile_module))
        if frames := sys.modules.get("torch._dynamo.eval_frame"):
            stack.enter_context(replaced(frames, "_callback_from_stance", callback_of))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield called
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def _kernels_not_launched(tracer: Tracer) -> Iterator[None]:
    """Do not run kernels of Triton, which write to tensors that the program has allocated.

    Kernels are not tuned either: a run takes memory for that once, before the step.
    """
    if find_spec("triton") is None:
        yield
        return
    from triton.runtime import Autotuner, Heuristics, JITFunction

    def launched(kernel: Any, *args: Any, **kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    tracer.host_values.forget(value.untyped_storage()._cdata)

    with ExitStack() as stack:
        for owner in (Autotuner, Heuristics, JITFunction):
            stack.enter_context(replaced(owner, "run", launched))
        yield


def _cuda_answers(tracer: Tracer, reset_peaks: Callable[[], object]) -> Mapping[str, Any]:
    gpu = tracer.gpu

    def free_and_total(*_: object) -> tuple[int, int]:
        left = gpu.total_bytes - gpu.context_bytes - tracer.allocator.reserved
        return max(left, 0), gpu.total_bytes

    def statistics(*_: object) -> dict[str, int]:
        allocator = tracer.allocator
        known = {
            "allocated_bytes.all.current": allocator.allocated,
            "allocated_bytes.all.peak": allocator.peak_allocated,
            "reserved_bytes.all.current": allocator.reserved,
            "reserved_bytes.all.peak": allocator.peak_reserved,
            "num_alloc_retries": allocator.num_alloc_retries,
            "num_ooms": allocator.num_ooms,
        }
        return _Statistics(known, tracer)

    properties = SimpleNamespace(
        name=gpu.title,
        major=gpu.compute_capability[0],
        minor=gpu.compute_capability[1],
        total_memory=gpu.total_bytes,
        multi_processor_count=gpu.sm_count,
        L2_cache_size=gpu.l2_bytes,
        warp_size=32,
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_exchange_device": lambda *_: 0,
        "_maybe_exchange_device": lambda *_: 0,
        "CUDAGraph": _graphs_refused(tracer),
        "get_device_name": lambda *_: gpu.title,
        "get_device_capability": lambda *_: gpu.compute_capability,
        "get_device_properties": lambda *_: properties,
        "mem_get_info": free_and_total,
        "memory_stats": statistics,
        "memory_allocated": lambda *_: tracer.allocator.allocated,
        "max_memory_allocated": lambda *_: tracer.allocator.peak_allocated,
        "memory_reserved": lambda *_: tracer.allocator.reserved,
        "max_memory_reserved": lambda *_: tracer.allocator.peak_reserved,
        "reset_peak_memory_stats": lambda *_: reset_peaks(),
        "empty_cache": tracer.empty_cache,
        "memory_summary": lambda *_, **__: "no summary in an estimate",
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "stream": nullcontext,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda *_: _Stream(),
        "default_stream": lambda *_: _Stream(),
        "Stream": _Stream,
        "Event": _Event,
        **dict.fromkeys(_WITHOUT_ANSWER, _do_nothing),
    }


class _Statistics(dict[str, int]):
    """The statistics of the allocator that its model keeps."""

    def __init__(self, known: dict[str, int], tracer: Tracer) -> None:
        super().__init__(known)
        self._tracer = tracer

    def __missing__(self, name: str) -> int:
        self._tracer.refuse(f"memory_stats()[{name!r}] is not known: run it with llmmem exec")


_WITHOUT_ANSWER = (
    "init",
    "ipc_collect",
    "manual_seed",
    "manual_seed_all",
    "reset_accumulated_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
    "synchronize",
)


_ACCELERATOR_MEMORY = (
    "empty_cache",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
)


def _accelerator_answers(answers: Mapping[str, Any]) -> Mapping[str, Any]:
    """The functions of ``torch.accelerator``, most of which ``torch.cuda`` has by the same names."""
    return {
        **{name: answers[name] for name in _ACCELERATOR_MEMORY},
        "get_memory_info": answers["mem_get_info"],
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "current_device_index": lambda: 0,
        "set_device_index": _do_nothing,
        "current_stream": lambda *_: _Stream(),
        "synchronize": _do_nothing,
    }


def _do_nothing(*args: object, **kwargs: object) -> None:
    pass


def _graphs_refused(tracer: Tracer) -> type:
    """A class that refuses CUDA graphs, which allocate from a memory pool of their own."""

    class Graph:
        def __init__(self, *args: object, **kwargs: object) -> None:
            tracer.refuse("CUDA graphs cannot be traced: run it with llmmem exec")

    return Graph


class _Stream:
    """A stream whose work has completed."""

    device = CUDA
    cuda_stream = 0
    wait_stream = wait_event = synchronize = _do_nothing

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _Event:
    """An event that has occurred; an estimate measures no time."""

    record = wait = synchronize = _do_nothing

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Event) -> float:
        return 0.0
