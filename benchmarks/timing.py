"""Times of the clock and of the processor, and their table, for the benchmarks of speed."""

from __future__ import annotations

import resource
import statistics
import time
import timeit
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd


@dataclass(frozen=True)
class Seconds:
    """Medians, in seconds: by the clock, and of processor time."""

    wall: float
    processor: float

    @classmethod
    def of(cls, taken: Sequence[tuple[float, float]]) -> Seconds:
        """The medians of pairs of wall and processor time."""
        walls, processors = zip(*taken, strict=True)
        return cls(statistics.median(walls), statistics.median(processors))


def timed(work: Callable[[], object], used: Callable[[], float]) -> tuple[float, float]:
    """Wall time of the work, and processor time as `used` counts it."""
    wall, processor = time.perf_counter(), used()
    work()
    return time.perf_counter() - wall, used() - processor


def of_ended_children() -> float:
    """Processor time of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def speed_of_machine() -> str:
    """How fast this machine is at the moment, for comparison with figures of another."""
    seconds = statistics.median(timeit.repeat("total += 1", "total = 0", number=10**7, repeat=5))
    return f"10 million additions in a Python loop take {seconds:.2f} s"


def table(frame: pd.DataFrame) -> str:
    """Rows of what was timed, the clock and the processor."""
    return tabulate(
        frame.to_numpy().tolist(),
        headers=["what", "clock", "processor"],
        tablefmt="github",
        floatfmt=".2f",
    )
