"""The outcome of a program, and the peaks of each of its processes."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

from llmmem.results import Peaks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmmem.results import Outcome, Source

__all__ = ["ProcessPeaks", "ProgramResult", "named_peaks"]

#: How multiprocessing starts its processes: what follows differs from run to run.
_STARTED_BY_MULTIPROCESSING = re.compile(r"from (multiprocessing\.(?:spawn|forkserver)) import ")


@dataclass(frozen=True)
class ProcessPeaks:
    """The peaks of one process on one GPU, in bytes.

    Attributes:
        pid: Its process id.
        command: Its arguments, the program first.
        index: Which GPU, whatever `CUDA_VISIBLE_DEVICES` was.
        peaks: Its peaks. What PyTorch's allocator took is not known of a process that did not
            import it, or that was killed.
        rank: Its rank in a distributed job; None if it has none, or did not say.
    """

    pid: int
    command: tuple[str, ...]
    index: int
    peaks: Peaks
    rank: int | None = None

    @property
    def title(self) -> str:
        """Its command on one line, the same on every run, and its rank if that is known."""
        started = (_STARTED_BY_MULTIPROCESSING.match(argument) for argument in self.command)
        way = next((found[1] for found in started if found), None)
        name = way or " ".join(shlex.join(self.command).split())
        return name if self.rank is None else f"{name} [rank {self.rank}]"

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, ready for JSON."""
        return {
            "pid": self.pid,
            "command": list(self.command),
            "index": self.index,
            "rank": self.rank,
            **self.peaks.to_dict(),
        }


@dataclass(frozen=True)
class ProgramResult:
    """The result of running a program.

    Attributes:
        command: The program and its arguments.
        device: Where it ran, such as ``"sim:rtx4090"``.
        gpu: The name of the card.
        exit_code: Its exit code as in a shell: 128 + N if signal N ended it.
        outcome: ``ok`` for exit code 0; else ``oom`` if PyTorch ran out of memory, or ``crashed``.
        message: Why, when the outcome is not ok.
        processes: The processes that used a GPU, one entry for each GPU that they used.
        versions: Versions of the libraries by name.
        notes: Caveats about the figures.
        source: Where the figures come from.
    """

    command: tuple[str, ...]
    device: str
    gpu: str
    exit_code: int
    outcome: Outcome
    message: str = ""
    processes: tuple[ProcessPeaks, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: Source = "simulated"

    @property
    def title(self) -> str:
        """The command on one line, quoted for a shell."""
        return shlex.join(self.command)

    @property
    def peaks(self) -> Peaks:
        """The highest peaks of a process on a GPU; unknown if no process used one."""
        known = [process.peaks for process in self.processes]
        return reduce(Peaks.highest, known) if known else Peaks()

    def named_peaks(self) -> dict[str, Peaks]:
        """The peaks of each process on each GPU, by names that are the same on every run."""
        return named_peaks(self.processes)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, ready for JSON."""
        return {
            "outcome": self.outcome,
            "message": self.message,
            "exit_code": self.exit_code,
            "source": self.source,
            "device": self.device,
            "gpu": self.gpu,
            "command": list(self.command),
            **self.peaks.to_dict(),
            "processes": [process.to_dict() for process in self.processes],
            "versions": dict(self.versions),
            "notes": list(self.notes),
        }


def named_peaks(processes: Sequence[ProcessPeaks]) -> dict[str, Peaks]:
    """The peaks of each process on each GPU, by names that are the same on every run."""
    named: dict[str, Peaks] = {}
    several_gpus = len({process.index for process in processes}) > 1
    for process in processes:
        name = f"{process.title} [GPU {process.index}]" if several_gpus else process.title
        alike = sum(other.partition(" #")[0] == name for other in named)
        named[f"{name} #{alike + 1}" if alike else name] = process.peaks
    return named
