"""Dispatch as on a GPU: what PyTorch and its libraries do differently for tensors on ``cuda``.

They check whether a tensor is on ``cuda``, which tensors of the meta device are not. Everything in
this module is active only inside `gpu_dispatch`.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from llmmem.estimation.fake_cuda.attention import attend, choose_backend
from llmmem.estimation.fake_cuda.autocast import Autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from llmmem.estimation.tracing.tracer import Tracer

# The first release that computes an RMS norm in one kernel.
FUSED_RMS_NORM = (2, 9)

__all__ = ["gpu_dispatch", "modes_in_backward", "replaced"]


@contextmanager
def gpu_dispatch(tracer: Tracer) -> Iterator[TorchFunctionMode]:
    """Dispatch attention, dropout, optimizers and the emptying of the cache as on a GPU.

    Yields:
        The function mode, for `modes_in_backward`.
    """
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    with ExitStack() as stack:
        autocast = Autocast()
        functions = stack.enter_context(_FunctionsAsOnGpu(tracer, autocast))
        stack.enter_context(modes_in_backward(functions))
        for name in (
            "_get_foreach_kernels_supported_devices",
            "_get_fused_kernels_supported_devices",
        ):
            listed = [*getattr(_foreach_utils, name)(), "meta"]
            for module in (_foreach_utils, optimizer):
                stack.enter_context(replaced(module, name, lambda listed=listed: listed))
        stack.enter_context(_autocast_for_meta(autocast))
        if "peft" in sys.modules:
            stack.enter_context(_emptying_cache(tracer))
        yield functions


@contextmanager
def modes_in_backward(*modes: TorchFunctionMode) -> Iterator[None]:
    """Keep the modes active in autograd's engine, so that they see what checkpoints recompute.

    The last mode is on top. They would be inactive otherwise: a mode is while it handles a function,
    such as `Tensor.backward`.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # see `failures`
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            return _engine_run_backward(*args, **kwargs)

    with replaced(torch.autograd, "_engine_run_backward", run):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module or an object while inside."""
    missing = object()
    before = vars(owner).get(name, missing)  # an inherited attribute is found again after deletion
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def _autocast_for_meta(autocast: Autocast) -> Iterator[None]:
    """Make PyTorch's functions for autocast support the meta device."""
    amp = torch.amp
    enter, is_available = amp.autocast, amp.is_autocast_available
    is_enabled, dtype_of = torch.is_autocast_enabled, torch.get_autocast_dtype

    def entered(device_type: str, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        if device_type == "meta":
            return autocast.entered(device_type, *args, **kwargs)
        return enter(device_type, *args, **kwargs)

    def is_meta(device_type: str | None) -> bool:
        return device_type in (None, "meta", "cuda")

    with (
        replaced(torch, "autocast", entered),
        replaced(amp, "autocast", entered),
        replaced(amp, "is_autocast_available", lambda d: is_meta(d) or is_available(d)),
        replaced(
            torch,
            "is_autocast_enabled",
            lambda d=None: autocast.dtype is not None if is_meta(d) else is_enabled(d),
        ),
        replaced(
            torch,
            "get_autocast_dtype",
            lambda d: autocast.dtype or torch.float16 if is_meta(d) else dtype_of(d),
        ),
    ):
        yield


@contextmanager
def _emptying_cache(tracer: Tracer) -> Iterator[None]:
    """Let `peft.prepare_model_for_kbit_training` empty the cache, as it does if CUDA is available."""
    import peft

    prepare: Callable[..., Any] = peft.prepare_model_for_kbit_training

    def prepare_as_on_gpu(*args: Any, **kwargs: Any) -> Any:
        with (
            replaced(torch.cuda, "is_available", lambda: True),
            replaced(torch.cuda, "empty_cache", tracer.empty_cache),
        ):
            return prepare(*args, **kwargs)

    with replaced(peft, "prepare_model_for_kbit_training", prepare_as_on_gpu):
        yield


def _softmax_of_functional(
    input: Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    return _softmax(input, dim, dtype)


def _softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """A softmax of float16 in float32, which is one kernel without a copy in float32.

    Source: ``aten/src/ATen/native/SoftMax.cpp``, ``softmax``.
    """
    if dtype is torch.float32 and input.dtype is torch.float16 and input.device.type == "meta":
        output: Tensor = torch.ops.aten._softmax(input, dim, True)
        return output
    return input.softmax(dim, dtype=dtype)


def _cross_entropy(
    tracer: Tracer,
    autocast: Autocast,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy under autocast, which casts its parts except the log softmax.

    Source: ``aten/src/ATen/native/LossNLL.cpp``, ``cross_entropy_loss``.
    """
    is_cast = autocast.dtype is not None and input.is_meta and input.dtype is not torch.float32
    if not is_cast:
        plain: Tensor = functional.cross_entropy(
            input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
        return plain
    is_plain = not target.is_floating_point() and not label_smoothing
    if not is_plain and (weight is not None or reduction != "mean"):
        tracer.refuse(
            "cross_entropy under autocast with label smoothing or probabilities as targets is "
            "traced only without weights and with reduction='mean': run it with llmmem exec"
        )
    classes = 0 if input.dim() == 1 else 1
    logarithms = torch.log_softmax(input, classes, dtype=input.dtype)
    if target.is_floating_point():
        return _of_probabilities(logarithms, target, label_smoothing, input.shape[classes])
    likelihood: Tensor = autocast.call(
        functional.nll_loss,
        (logarithms, target, weight, size_average, ignore_index, reduce, reduction),
        {},
        functional.nll_loss,
    )
    if not label_smoothing:
        return likelihood
    smooth = -logarithms.sum(classes, dtype=torch.float32)
    ignored = target == ignore_index
    smooth.masked_fill_(ignored, 0.0)
    counted = ~ignored
    count = counted.sum()  # first, as compilers evaluate the operands
    smooth = smooth.sum(dtype=torch.float32) / count
    share = label_smoothing / input.shape[classes]
    return (1 - label_smoothing) * likelihood + smooth * share


def _of_probabilities(
    logarithms: Tensor, target: Tensor, label_smoothing: float, classes: int
) -> Tensor:
    if label_smoothing > 0:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    # Kept alive to the end, like temporaries of an expression in C++.
    product = logarithms * target
    summed = product.sum(dtype=torch.float32)
    negative = -summed
    return negative / (logarithms.numel() / classes)


def _logits_loss_of_functional(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    reductions = ("none", "mean", "sum")
    is_plain = size_average is None and reduce is None and reduction in reductions
    if not is_plain or input.shape != target.shape:
        return functional.binary_cross_entropy_with_logits(
            input, target, weight, size_average, reduce, reduction, pos_weight
        )
    return _logits_loss(input, target, weight, pos_weight, reductions.index(reduction))


def _logits_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    if not input.is_meta or target.requires_grad:
        return torch.binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction)
    compute: Any = _LogitsLoss.apply  # not typed in PyTorch 2.13
    loss: Tensor = compute(input, target, weight, pos_weight, reduction)
    return loss


class _LogitsLoss(torch.autograd.Function):
    """Computes the gradient in place, which PyTorch does not do under a dispatch mode.

    Source: ``torch/csrc/autograd/FunctionsManual.cpp``,
    ``binary_cross_entropy_with_logits_backward``.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[:4])
        ctx.is_mean = args[4] == 1
        return torch.binary_cross_entropy_with_logits(*args)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        input, target, weight, pos_weight = ctx.saved_tensors
        if pos_weight is None:
            gradient = input.sigmoid().sub_(target)
        else:
            positive = pos_weight * target
            gradient = (positive + 1).sub_(target).mul_(input.sigmoid()).sub_(positive)
        gradient.mul_(gradients[0])
        if weight is not None:
            gradient.mul_(weight)
        return (gradient.div_(input.numel()) if ctx.is_mean else gradient), None, None, None, None


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Read the lengths from the device, as PyTorch does for every device but meta.

    Source: ``aten/src/ATen/native/LossCTC.cpp``, ``ctc_loss``.
    """
    lengths: list[Any] = [
        length.to("cpu", torch.long).tolist() if isinstance(length, Tensor) else length
        for length in (input_lengths, target_lengths)
    ]
    compute: Any = functional.ctc_loss
    loss: Tensor = compute(log_probs, targets, *lengths, *args, **kwargs)
    return loss


class _FunctionsAsOnGpu(TorchFunctionMode):
    """Replaces functions whose implementation depends on the device, before they are decomposed."""

    def __init__(self, tracer: Tracer, autocast: Autocast) -> None:
        super().__init__()
        self._tracer = tracer
        self._autocast = autocast
        self._substitutes: dict[Any, Callable[..., Any]] = {
            functional.scaled_dot_product_attention: partial(_attention, tracer),
            functional.dropout: _dropout,
            functional.linear: _linear,
            functional.bilinear: partial(_inexact, tracer, functional.bilinear),
            functional.mish: partial(_inexact, tracer, functional.mish),
            functional.rms_norm: _rms_norm,
            torch.rms_norm: _rms_norm,
            torch.dropout: _plain_dropout,
            functional.softmax: _softmax_of_functional,
            functional.cross_entropy: partial(_cross_entropy, tracer, autocast),
            functional.binary_cross_entropy_with_logits: _logits_loss_of_functional,
            torch.binary_cross_entropy_with_logits: _logits_loss,
            functional.ctc_loss: _ctc_loss,
            torch.softmax: _softmax,
            Tensor.softmax: _softmax,
            torch.tensor: partial(_tensor, tracer),
            Tensor.__setitem__: _set_item,
            nn.init.kaiming_uniform_: _kaiming_uniform_,
        }
        if hasattr(functional, "linear_cross_entropy"):  # since PyTorch 2.13
            chunked = functional.linear_cross_entropy
            self._substitutes[chunked] = partial(_inexact, tracer, chunked)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        __tracebackhide__ = True  # see `failures`
        run = self._substitutes.get(func, func)
        kwargs = kwargs or {}
        if self._autocast.dtype is None:
            return run(*args, **kwargs)
        return self._autocast.call(func, args, kwargs, run)


def _attention(
    tracer: Tracer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if query.dim() != 4:  # PyTorch 2.14 does not always use the math backend
        tracer.inexact.add("scaled_dot_product_attention of other than 4 dimensions")
    backend = choose_backend(query, key, value, attn_mask, dropout_p, is_causal, tracer.gpu)
    tracer.attention_backends.add(backend)
    return attend(backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def _inexact(tracer: Tracer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function whose kernels allocate an unknown workspace, which the trace then reports."""
    tracer.inexact.add(f"torch.nn.functional.{function.__name__}")
    return function(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Add the bias of a non-contiguous input in place, which a dispatch mode prevents.

    Source: ``aten/src/ATen/native/Linear.cpp``, ``linear``.
    """
    if bias is None or input.dim() < 3 or input.is_contiguous() or not input.is_meta:
        return functional.linear(input, weight, bias)
    return input.matmul(weight.t()).add_(bias)


def _rms_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Run one kernel if the weights have the input's type; a dispatch mode sees a composition.

    Source: ``aten/src/ATen/native/layer_norm.cpp``, ``rms_norm``, of PyTorch 2.9 and later.
    """
    is_fused = torch.__version__ >= FUSED_RMS_NORM and input.is_meta  # type: ignore[operator]
    if not is_fused or (weight is not None and weight.dtype is not input.dtype):
        return functional.rms_norm(input, normalized_shape, weight, eps)
    compute: Any = _FusedRmsNorm.apply  # not typed in PyTorch 2.13
    output: Tensor = compute(input, normalized_shape, weight)
    return output


class _FusedRmsNorm(torch.autograd.Function):
    """Allocates as the fused kernel does; the meta device decomposes the operator.

    Source: ``aten/src/ATen/native/cuda/layer_norm_kernel.cu``, ``_fused_rms_norm_cuda`` and
    ``_fused_rms_norm_backward_cuda``.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, normalized_shape: list[int], weight: Tensor | None
    ) -> Tensor:
        rows = input.shape[: input.dim() - len(normalized_shape)]
        contiguous = input.contiguous()
        output = torch.empty_like(contiguous)
        scale = contiguous.new_empty(
            (*rows, *len(normalized_shape) * (1,)),
            dtype=torch.promote_types(input.dtype, torch.float32),
        )
        ctx.save_for_backward(input, weight, scale)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        input, weight, _ = ctx.saved_tensors
        contiguous = input.contiguous()
        of_input = torch.empty_like(contiguous) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[2] else None
        gradients[0].contiguous()
        return of_input, None, of_weight


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if inplace:
        return functional.dropout(input, p, training, inplace)
    return _plain_dropout(input, p, training)


def _plain_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    # A GPU computes mask and output in one kernel, with a mask of one byte per element.
    if train and 0 < p < 1 and input.numel():
        output: Tensor = torch.native_dropout(input, p, train)[0]
        return output
    return torch.dropout(input, p, train)


def _tensor(tracer: Tracer, data: Any, *args: Any, **kwargs: Any) -> Tensor:
    if isinstance(data, list | tuple):
        data = _numbers(data)
    args = (data, *args)
    tensor = torch.tensor(*args, **kwargs)
    # No dispatch mode sees an operator here. Without the tracer, the tensor is part of a skeleton.
    if tracer in _get_current_dispatch_mode_stack():
        tracer.allocate(tensor)
        if tensor.is_meta and tensor.numel():
            tracer.host_values.learn(tensor, torch.tensor(*args, **(kwargs | {"device": "cpu"})))
    return tensor


def _numbers(data: Any) -> Any:
    """Nested data with its device tensors read as numbers, while modes are active."""
    if isinstance(data, list | tuple):
        return [_numbers(item) for item in data]
    return data.tolist() if isinstance(data, Tensor) and data.is_meta else data


def _set_item(tensor: Tensor, index: Any, value: Any) -> None:
    # A number is a tensor of the host, which CUDA kernels take as an argument.
    if isinstance(value, int | float) and tensor.device.type == "meta":
        value = torch.tensor(value, dtype=tensor.dtype)
    tensor[index] = value


def _kaiming_uniform_(tensor: Tensor, **options: Any) -> Tensor:
    # The device has no values to draw; skipping them saves time for each layer of an adapter.
    return tensor if tensor.is_meta else nn.init.kaiming_uniform_(tensor, **options)
