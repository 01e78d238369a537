"""Fused optimizers and gradient scaling, for which the meta device has no kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from llmmem.estimation.operators.common import Arguments, Entry, Keywords, is_on_device

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]


def _fused_optimizer(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A fused optimizer: one kernel that works in place and takes no buffer."""
    if is_on_device(args[0][0]):
        return None
    return func(*args, **kwargs)


def _loss_scaling(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The check and scaling of gradients, and the update of the scale: one kernel each, in place."""
    first = args[0] if isinstance(args[0], Tensor) else args[0][0]
    if is_on_device(first):
        return first if isinstance(args[0], Tensor) else None
    return func(*args, **kwargs)


ENTRIES = (
    Entry(
        "_amp_foreach_non_finite_check_and_unscale_.default _amp_update_scale_.default",
        _loss_scaling,
    ),
    Entry("_fused_adamw_ _fused_adam_ _fused_sgd_ _fused_adagrad_", _fused_optimizer),
)
