"""Operators that return a view without saying so in their schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.operators.common import Arguments, Entry, Keywords

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]

aten = torch.ops.aten


def _unsafe_view(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Run ``view`` instead, which gives the same result in half the time."""
    return tracer.run(aten.view.default, args, kwargs)


ENTRIES = (Entry("_unsafe_view.default", _unsafe_view),)
