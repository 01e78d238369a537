"""Peaks phase by phase."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmmem.results import Peaks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmmem.measurement.gauges import Gauge

__all__ = ["PhasePeaks"]


class PhasePeaks:
    """Takes the peaks of one GPU phase by phase; the whole is the largest of them.

    Args:
        gauge: The GPU's peak counters, which nobody else may reset meanwhile.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._phases: dict[str, Peaks] = {}
        self._total = Peaks()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """All that happens inside counts for the phase, what was held before it included."""
        self._take()
        try:
            yield
        finally:
            self._phases[name] = _highest(self._phases.get(name, Peaks()), self._take())

    @property
    def phases(self) -> dict[str, Peaks]:
        """The peaks per phase, in the order in which the phases first ended."""
        return dict(self._phases)

    def total(self) -> Peaks:
        """The peaks over everything so far, what happened between phases included."""
        self._take()
        return self._total

    def _take(self) -> Peaks:
        peaks = self._gauge.take()
        self._total = _highest(self._total, peaks)
        return peaks


def _highest(first: Peaks, second: Peaks) -> Peaks:
    return Peaks(
        _larger(first.allocated, second.allocated),
        _larger(first.reserved, second.reserved),
        _larger(first.process, second.process),
    )


def _larger(one: int | None, other: int | None) -> int | None:
    return max((size for size in (one, other) if size is not None), default=None)
