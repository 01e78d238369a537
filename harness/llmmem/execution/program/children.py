"""Peaks of the processes that this process starts on its simulated GPUs."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llmmem.execution.program.ledger import (
    DIRECTORY_VARIABLE,
    hand_on,
    outer_directory,
    read_ledgers,
    restart_ledgers,
)
from llmmem.results import Peaks
from llmmem.simgpu.loader import open_account

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmmem.execution.program.ledger import Ledger
    from llmmem.execution.program.result import ProcessPeaks
    from llmmem.simgpu import SimulatedGpu

__all__ = ["ChildPeaks", "Children", "CountedChildren", "UncountedChildren"]


@dataclass(frozen=True)
class ChildPeaks:
    """The memory that children held between `Children.start` and `Children.stop`.

    Attributes:
        processes: The processes that used a GPU, one entry for each GPU that they used.
        together: By GPU, the most bytes that they and their parent held at the same time; ``None`` if there
            were too many processes to count.
        failures: One line for each process that ran out of memory.
        notes: Caveats about the figures.
    """

    processes: tuple[ProcessPeaks, ...] = ()
    together: Mapping[int, int | None] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Children(Protocol):
    """Counts the GPU memory of the children of this process."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables that children need in order to be counted."""

    def start(self) -> None:
        """Reset the peaks to what children hold now."""

    def stop(self) -> ChildPeaks:
        """The peaks since `start`."""

    def close(self) -> None:
        """Stop counting and clean up."""


class CountedChildren:
    """Children on simulated GPUs: each leaves its peaks in a file, however it ends.

    Attributes:
        environment: Environment variables with which a child uses the GPUs and is counted.

    Raises:
        UnsupportedError: The path of the simulated libraries cannot be passed to other programs.
    """

    def __init__(self, gpu: SimulatedGpu) -> None:
        gpus = gpu.environment()
        self._outer = outer_directory()
        self._directory = Path(tempfile.mkdtemp(prefix="llmmem-"))
        self._account = open_account(gpu.libraries.core)
        self._older: frozenset[str] = frozenset()
        self.environment: Mapping[str, str] = {**gpus, DIRECTORY_VARIABLE: str(self._directory)}

    def start(self) -> None:
        """Begin anew, with what children hold now."""
        self._share()
        self._older = restart_ledgers(self._directory, self._outer)
        self._account.reset_together()

    def stop(self) -> ChildPeaks:
        """The peaks since `start`.

        Of a child that was started before, the peaks of PyTorch's allocator are not known: the child reports
        them only when it ends, and for its whole life.
        """
        ledgers = read_ledgers(self._directory)
        if not ledgers:
            return ChildPeaks()
        self._share()
        used = {process.index for ledger in ledgers for process in ledger.processes}
        return ChildPeaks(
            tuple(process for ledger in ledgers for process in self._processes(ledger)),
            {index: self._account.together_bytes(index) for index in sorted(used)},
            tuple(
                f"{ledger.processes[0].title} ran out of memory: {ledger.failure}"
                for ledger in ledgers
                if ledger.failure
            ),
            tuple(dict.fromkeys(self._notes(ledgers))),
        )

    def close(self) -> None:
        """End, and leave nothing behind."""
        with suppress(OSError):
            hand_on(self._directory, self._outer)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _share(self) -> None:
        """Register this process for the joint peaks; a session inside this one may have replaced that."""
        self._account.host_processes(self._directory)

    def _processes(self, ledger: Ledger) -> Iterable[ProcessPeaks]:
        if ledger.name not in self._older:
            return ledger.processes
        return (
            replace(process, peaks=Peaks(process=process.peaks.process))
            for process in ledger.processes
        )

    def _notes(self, ledgers: Iterable[Ledger]) -> Iterable[str]:
        for ledger in ledgers:
            yield from ledger.notes
            title = ledger.processes[0].title
            if ledger.name in self._older:
                yield f"{title} had been started before"
            if ledger.is_running:
                yield f"{title} had not ended: what it took later is not known"


class UncountedChildren:
    """Children whose memory is not counted: only a note says that there were some.

    Args:
        reason: Why they are not counted.

    Attributes:
        environment: Empty.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._before = _Children.now()
        self.environment: Mapping[str, str] = {}

    def start(self) -> None:
        """Remember the children that exist now."""
        self._before = _Children.now()

    def stop(self) -> ChildPeaks:
        """A note if there were any since `start`."""
        if _Children.now().are_those_of(self._before):
            return ChildPeaks()
        return ChildPeaks(notes=(f"processes that were started are not counted: {self._reason}",))

    def close(self) -> None:
        """Nothing is left behind."""


@dataclass(frozen=True)
class _Children:
    """The children of this process: the running ones, and the CPU seconds of those that ended."""

    running: frozenset[int]
    seconds: float

    @classmethod
    def now(cls) -> _Children:
        times = os.times()
        running: set[int] = set()
        for listing in Path("/proc/self/task").glob("*/children"):
            with suppress(OSError):
                running.update(map(int, listing.read_text(encoding="ascii").split()))
        return cls(
            frozenset(pid for pid in running if not _is_worker(pid)),
            times.children_user + times.children_system,
        )

    def are_those_of(self, before: _Children) -> bool:
        return self.running <= before.running and self.seconds == before.seconds


def _is_worker(pid: int) -> bool:
    """Whether the process is the worker that runs setups, which have their own records."""
    with suppress(OSError):
        return b"llmmem.execution.worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False
