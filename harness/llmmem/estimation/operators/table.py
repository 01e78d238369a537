"""The table of operators: the entries of all families, resolved for the installed PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.errors import UnsupportedError
from llmmem.estimation.operators import (
    attention,
    autograd,
    contiguous,
    convolutions,
    ctc,
    data_dependent,
    indexing,
    inexact,
    libraries,
    losses,
    norms,
    optimizers,
    pointwise,
    products,
    reductions,
    sparse,
    values,
    views,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmmem.estimation.operators.common import Entry
    from llmmem.estimation.tracing.tracer import Handler

__all__ = ["ENTRIES", "missing_names", "operator_handlers"]

#: Every operator that allocates otherwise than its meta kernel does, once.
ENTRIES: tuple[Entry, ...] = (
    *attention.ENTRIES,
    *autograd.ENTRIES,
    *contiguous.ENTRIES,
    *convolutions.ENTRIES,
    *ctc.ENTRIES,
    *data_dependent.ENTRIES,
    *indexing.ENTRIES,
    *inexact.ENTRIES,
    *libraries.ENTRIES,
    *losses.ENTRIES,
    *norms.ENTRIES,
    *optimizers.ENTRIES,
    *pointwise.ENTRIES,
    *products.ENTRIES,
    *reductions.ENTRIES,
    *sparse.ENTRIES,
    *values.ENTRIES,
    *views.ENTRIES,
)


def operator_handlers(entries: Iterable[Entry] = ENTRIES) -> dict[Any, Handler]:
    """The handlers by operator. An operator without one allocates its outputs and nothing else.

    Raises:
        UnsupportedError: The installed PyTorch lacks something that `missing_names` lists.
    """
    entries = tuple(entries)
    if missing := missing_names(entries):
        raise UnsupportedError(
            f"a trace does not work with torch {torch.__version__}, which has no "
            f"{', '.join(missing)}"
        )
    return {
        operator: entry.handler
        for entry in entries
        for name in entry.operators.split()
        for operator in operators_named(name)
    }


def missing_names(entries: Iterable[Entry] = ENTRIES) -> list[str]:
    """Operators and nodes of autograd that the installed PyTorch should have and does not.

    Returns:
        Their names, such as ``"aten::mm"``. Operators of entries that do not hold for the installed
        release are not among them.
    """
    missing = [
        f"aten::{name}"
        for entry in entries
        if entry.is_required_by(torch.__version__)
        for name in entry.operators.split()
        if not operators_named(name)
    ]
    return missing + autograd.missing_nodes()


def operators_named(name: str) -> list[Any]:
    """The overloads of ATen that a name of an entry stands for; empty if PyTorch has none."""
    packet_name, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, packet_name, None)
    if packet is None:
        return []
    overloads = packet.overloads()
    names = [overload] if overload else overloads
    return [getattr(packet, found) for found in names if found in overloads]
