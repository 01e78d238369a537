"""Operators whose kernels read their first argument as a contiguous tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    contiguous_copy,
    is_on_device,
)

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES", "run_on_contiguous"]


def run_on_contiguous(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Run an operator that copies its first argument if that is not contiguous."""
    tensor = args[0]
    with tracer.scratch(contiguous_copy(tensor) if is_on_device(tensor) else 0):
        return tracer.run(func, args, kwargs)


ENTRIES = (
    Entry(
        "max_pool2d_with_indices_backward max_pool3d_with_indices_backward roll "
        "upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
        "upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_linear1d_backward "
        "upsample_trilinear3d_backward",
        run_on_contiguous,
    ),
)
