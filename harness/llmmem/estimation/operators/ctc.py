"""The CTC loss, for which the meta device has no kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.errors import UnsupportedError
from llmmem.estimation.operators.common import Arguments, Entry, Keywords, nbytes_of
from llmmem.estimation.operators.workspaces import INDEX

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]


def _forward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/LossCTC.cu``, ``ctc_loss_gpu_template``."""
    probabilities, targets, _, target_lengths = args[:4]
    if not probabilities.is_meta:
        return func(*args, **kwargs)
    blank = args[4] if len(args) > 4 else kwargs.get("blank", 0)
    if targets.dtype is torch.int32 and targets.dim() == 1 and blank == 0:
        raise UnsupportedError(
            "cuDNN may compute ctc_loss of int32 targets, and its workspace is not known: use int64 "
            "targets, or run it with llmmem exec"
        )
    steps, batch = probabilities.shape[:2]
    longest = targets.shape[1] if targets.dim() > 1 else _longest(tracer, target_lengths)
    # The lengths of inputs and targets, and the offsets of targets.
    with tracer.scratch(*3 * [INDEX * batch]):
        alpha = probabilities.new_empty((batch, steps, 2 * longest + 1))
        tracer.allocate(alpha)
        likelihood = probabilities.new_empty((batch,))
        tracer.allocate(likelihood)
    return likelihood, alpha


def _longest(tracer: Tracer, lengths: Any) -> int:
    if isinstance(lengths, Tensor):
        with tracer.tracing_calls():
            lengths = lengths.cpu().tolist()
    return max(lengths, default=0)


def _backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/LossCTC.cu``, ``ctc_loss_backward_gpu_template``."""
    probabilities, alpha = args[1], args[6]
    if not probabilities.is_meta:
        return func(*args, **kwargs)
    sizes = *3 * [INDEX * probabilities.shape[1]], nbytes_of(alpha)
    with tracer.scratch(*sizes):
        gradient = torch.empty(probabilities.shape, dtype=probabilities.dtype, device="meta")
        tracer.allocate(gradient)
    return gradient


ENTRIES = (
    Entry("_ctc_loss", _forward),
    Entry("_ctc_loss_backward.default _ctc_loss_backward.Tensor", _backward),
)
