"""Peaks phase by phase."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmmem.measurement.gauges import Gauge
    from llmmem.results import Peaks

__all__ = ["PhasePeaks"]


class PhasePeaks:
    """Records the peaks of one GPU phase by phase; the total is the largest of them.

    Args:
        gauge: The peak counters of the GPU; nothing else may reset them meanwhile.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._phases: dict[str, Peaks] = {}
        self._total: Peaks | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside counts for the phase, including what was held before."""
        self._take()
        try:
            yield
        finally:
            peaks = self._take()
            self._phases[name] = self._phases.get(name, peaks).highest(peaks)

    @property
    def phases(self) -> dict[str, Peaks]:
        """The peaks per phase, in the order in which phases first ended."""
        return dict(self._phases)

    def total(self) -> Peaks:
        """The peaks so far, including those between phases."""
        peaks = self._take()
        return (self._total or peaks).highest(peaks)

    def _take(self) -> Peaks:
        peaks = self._gauge.take()
        self._total = (self._total or peaks).highest(peaks)
        return peaks
