"""The marker `max_vram`: the limit on the memory of a test."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmmem.errors import InputError, unknown
from llmmem.results import METRICS
from llmmem.units import format_written, parse_size

if TYPE_CHECKING:
    import pytest

    from llmmem.catalogue.gpus import Gpu

__all__ = ["SCOPES", "Limit", "marker_of", "max_vram"]

SCOPES = ("call", "test")


@dataclass(frozen=True)
class Limit:
    """The limit on the peak of a test.

    Attributes:
        bytes: The limit in bytes, inclusive.
        metric: The one of `METRICS` that it applies to.
        scope: Whether it applies to the call of the test only, or to its setup and teardown as well.
        gpu: The card whose memory is the limit, if the marker names one.
        written: The limit as written in the marker, such as ``"24GB"``; ``None`` for a number of bytes.
    """

    bytes: int
    metric: str = "process"
    scope: Literal["call", "test"] = "call"
    gpu: Gpu | None = None
    written: str | None = None

    @property
    def size(self) -> str:
        """The limit as written and in GiB: ``"24GB (22.35 GiB)"``."""
        return format_written(self.bytes, self.written)

    def __str__(self) -> str:
        exact = f"{self.bytes} B)"
        size = f"{self.size[:-1]}, {exact}" if self.size.endswith(")") else f"{self.size} ({exact}"
        return f"{size} of {self.gpu.name}" if self.gpu else size


def max_vram(
    limit: str | int | None = None,
    *,
    gpu: str | None = None,
    metric: str = "process",
    scope: str = "call",
    tolerance: object = None,
) -> Limit:
    """Fail the test if its peak of GPU memory is over the limit.

    Args:
        limit: Bytes, or a size such as ``"24GB"`` or ``"22.5GiB"``.
        gpu: A card of the GPU catalogue such as ``"rtx4090"``, whose memory is the limit. The test
            also runs out of memory where it would on that card.
        metric: ``process`` (all that the process holds), ``reserved`` or ``allocated``.
        scope: ``call`` (the test function) or ``test`` (its fixtures as well, until the last of them
            is torn down).
        tolerance: Reserved for growth over a baseline; not supported yet.

    Raises:
        InputError: A value that is not accepted, or not exactly one of `limit` and `gpu`.
    """
    if (limit is None) == (gpu is None):
        raise InputError('exactly one of limit and gpu is needed: "24GB", or gpu="rtx4090"')
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if tolerance is not None:
        raise InputError(
            f"tolerance {tolerance!r} is allowed growth over a baseline, and baselines are not "
            "supported: leave it out"
        )
    checked_scope: Literal["call", "test"] = "test" if scope == "test" else "call"
    if limit is not None:
        written = limit if isinstance(limit, str) else None
        return Limit(parse_size(limit), metric, checked_scope, written=written)
    if metric != "process":
        raise InputError(f"metric {metric!r} and gpu contradict: a card holds the whole process")
    from llmmem.catalogue.gpus import find_gpu

    if not isinstance(gpu, str):
        raise InputError(f'invalid gpu {gpu!r}: expected the name of a card, such as "rtx4090"')
    card = find_gpu(gpu)
    return Limit(card.total_bytes, metric, checked_scope, card)


def marker_of(item: pytest.Item) -> Limit | None:
    """The limit of the marker that is closest to the test; ``None`` without one.

    Raises:
        InputError: The marker's arguments are not valid; the message begins with its name.
    """
    mark = item.get_closest_marker("max_vram")
    if mark is None:
        return None
    try:
        return max_vram(*mark.args, **mark.kwargs)
    except InputError as error:
        raise InputError(f"max_vram: {error}") from error
    except TypeError as error:  # Python's own check of the arguments
        accepted = inspect.signature(max_vram).parameters
        raise InputError(f"{error} (accepted: {', '.join(accepted)})") from error
