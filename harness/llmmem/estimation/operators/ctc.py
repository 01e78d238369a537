"""The CTC loss on the meta device, which has no kernel of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.errors import UnsupportedError

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Handler, Tracer

__all__ = ["CTC_HANDLERS"]

INDEX = 8


def _forward(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Source: ``aten/src/ATen/native/cuda/LossCTC.cu``, ``ctc_loss_gpu_template``."""
    probabilities, targets, _, target_lengths = args[:4]
    if not probabilities.is_meta:
        return func(*args, **kwargs)
    blank = args[4] if len(args) > 4 else kwargs.get("blank", 0)
    if targets.dtype is torch.int32 and targets.dim() == 1 and blank == 0:
        raise UnsupportedError(
            "ctc_loss of int32 targets may be computed by cuDNN, whose workspace is not known: use "
            "int64 targets, or run it with llmmem exec"
        )
    steps, batch = probabilities.shape[:2]
    longest = targets.shape[1] if targets.dim() > 1 else _longest(tracer, target_lengths)
    with tracer.scratch(*3 * [INDEX * batch]):  # both lengths, and where targets begin
        alpha = probabilities.new_empty((batch, steps, 2 * longest + 1))
        tracer.born(alpha)
        likelihood = probabilities.new_empty((batch,))
        tracer.born(likelihood)
    return likelihood, alpha


def _longest(tracer: Tracer, lengths: Any) -> int:
    if isinstance(lengths, Tensor):
        with tracer.seeing_again():
            lengths = lengths.cpu().tolist()
    return max(lengths, default=0)


def _backward(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Source: ``aten/src/ATen/native/cuda/LossCTC.cu``, ``ctc_loss_backward_gpu_template``."""
    probabilities, alpha = args[1], args[6]
    if not probabilities.is_meta:
        return func(*args, **kwargs)
    sizes = *3 * [INDEX * probabilities.shape[1]], alpha.numel() * alpha.element_size()
    with tracer.scratch(*sizes):
        gradient = torch.empty(probabilities.shape, dtype=probabilities.dtype, device="meta")
        tracer.born(gradient)
    return gradient


CTC_HANDLERS: dict[Handler, str] = {
    _forward: "_ctc_loss",
    _backward: "_ctc_loss_backward.default _ctc_loss_backward.Tensor",
}
