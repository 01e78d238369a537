"""Loss functions. With a reduction, the kernels first compute one loss for each element."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    bind,
    is_on_device,
    nbytes_of,
)
from llmmem.estimation.operators.reductions import split_buffers

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]

# ATen's numbers for the reductions of a loss.
MEAN, SUM = 1, 2


def _reduced_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The output keeps a storage of one loss for each element; a second such tensor is reduced.

    Source: ``aten/src/ATen/native/BinaryOps.cpp`` and ``Loss.cpp``, the structured ``mse_loss`` and
    ``smooth_l1_loss``.
    """
    out = func(*args, **kwargs)
    if not is_on_device(out) or not bind(func, args, kwargs, "reduction"):
        tracer.allocate(out)
        return out
    losses = torch.broadcast_tensors(*args[:2])[0]  # type: ignore[no-untyped-call]
    out = torch.empty(losses.shape, dtype=out.dtype, device="meta").resize_(())
    tracer.allocate(out)
    with tracer.scratch(losses.numel() * out.element_size()):
        split_buffers(tracer, torch.empty(losses.shape, device="meta"), None)
    return out


def _resized_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The mean or sum is copied into the tensor of all losses, whose storage stays allocated.

    Source: ``aten/src/ATen/native/cuda/Loss.cu``, ``binary_cross_entropy_cuda``, and
    ``aten/src/ATen/native/Loss.cpp``, ``soft_margin_loss``.
    """
    out = func(*args, **kwargs)
    if not is_on_device(out) or not bind(func, args, kwargs, "reduction"):
        tracer.allocate(out)
        return out
    losses = torch.empty(args[0].shape, dtype=out.dtype, device="meta")
    tracer.allocate(losses)
    with tracer.scratch(out.element_size()):
        split_buffers(tracer, losses, None)
    return losses.resize_(())


def _huber_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Loss.cpp``, ``huber_loss``."""
    if not is_on_device(args[0]) or not bind(func, args, kwargs, "reduction"):
        return tracer.run(func, args, kwargs)
    losses = torch.broadcast_tensors(*args[:2])[0]  # type: ignore[no-untyped-call]
    with tracer.scratch(nbytes_of(losses)):
        out = tracer.run(func, args, kwargs)
        split_buffers(tracer, torch.empty(losses.shape, device="meta"), None)
    return out


def _logits_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Loss.cpp``, ``binary_cross_entropy_with_logits``."""
    if not is_on_device(args[0]):
        return func(*args, **kwargs)
    names = ("self", "target", "weight", "pos_weight", "reduction")
    logits, target, weight, pos_weight, reduction = (
        bind(func, args, kwargs, name) for name in names
    )
    with tracer.tracing_calls():
        logarithms = torch.nn.functional.logsigmoid(logits)
        if pos_weight is not None:
            logarithms.mul_((pos_weight - 1).mul(target).add_(1))
        losses = (1 - target).mul_(logits).sub_(logarithms)
        if weight is not None:
            losses.mul_(weight)
        if reduction == MEAN:
            return losses.mean()
        return losses.sum() if reduction == SUM else losses


def _soft_margin_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Loss.cpp``, ``soft_margin_loss_backward_out``."""
    out = func(*args, **kwargs)
    if not is_on_device(out):
        return out
    size = nbytes_of(out)
    with tracer.scratch(size, size):
        sum_and_one = torch.empty_like(out)
        tracer.allocate(sum_and_one)
    tracer.allocate(out)
    return out


ENTRIES = (
    Entry("mse_loss.default smooth_l1_loss.default", _reduced_loss),
    Entry("binary_cross_entropy.default soft_margin_loss.default", _resized_loss),
    Entry("huber_loss.default", _huber_loss),
    Entry("binary_cross_entropy_with_logits.default", _logits_loss),
    Entry("soft_margin_loss_backward.default", _soft_margin_backward),
)
