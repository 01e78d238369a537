"""Processes that tests start: they use the simulated GPUs of the session and count towards the test."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from llmmem.catalogue.gpus import SIMULATED
from llmmem.errors import UnsupportedError
from llmmem.execution.program.children import CountedChildren, UncountedChildren
from llmmem.execution.program.result import named_peaks
from llmmem.results import Peaks, PhaseResult
from llmmem.units import format_size
from pytest_llmmem.verdicts import PYTEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmmem.execution.program.children import ChildPeaks, Children
    from llmmem.report import Record
    from llmmem.simgpu import SimulatedGpu

__all__ = ["ChildrenOfTests", "with_children"]

ONLY_SIMULATED = "llmmem counts them on a simulated GPU only"


class ChildrenOfTests:
    """Makes the processes that tests start use the simulated GPUs of this process, until it is closed.

    Args:
        gpu: The simulated GPUs of this process; None if it has none.
    """

    def __init__(self, gpu: SimulatedGpu | None) -> None:
        self._children = _children(gpu)
        self._before = {name: os.environ.get(name) for name in self._children.environment}
        self._undo = ExitStack()
        self._undo.callback(self._children.close)
        self._undo.callback(_set, self._before)
        _set(self._children.environment)

    def environment_of_others(self) -> Mapping[str, str]:
        """The environment for processes that no test starts: as it was before this object changed it."""
        environment = {**os.environ}
        for name, value in self._before.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        return environment

    def start(self) -> None:
        """Start counting for a test."""
        self._children.start()

    def stop(self) -> ChildPeaks:
        """Stop counting and return the peaks."""
        return self._children.stop()

    def close(self) -> None:
        """Restore the environment."""
        self._undo.close()


def with_children(record: Record, children: ChildPeaks, gpu: SimulatedGpu | None) -> Record:
    """Combine the record of a test with the peaks of the processes that it started.

    The peaks of the result are those of the process with the highest peak of the metric or, for
    ``process``, of all processes together if they held more of one GPU at the same time.

    Args:
        record: The record of the pytest process. It is left out if it held only a CUDA context.
        children: The peaks of the processes that the test started.
        gpu: The simulated GPUs of this process.
    """
    notes = tuple(dict.fromkeys((*record.notes, *children.notes, *children.failures)))
    if not children.processes or gpu is None:
        return replace(record, notes=notes)
    named = named_peaks(children.processes)
    takes_part = record.peaks.reserved or (record.peaks.process or 0) > gpu.context_bytes
    own = {PYTEST: record.peaks} if takes_part else {}
    together = dict(_together(children, named, own))
    parts = {**own, **named}
    candidates = parts if record.metric != "process" else {**parts, **together}
    decided = max(candidates, key=lambda name: _size(candidates[name].get(record.metric)))
    return replace(
        record,
        notes=(*notes, *_crowded(children, gpu)),
        gpu=record.gpu or gpu.gpu.title + SIMULATED,
        peaks=candidates[decided],
        gpu_index=record.gpu_index if decided == PYTEST else None,
        processes=tuple(PhaseResult(*part) for part in {**parts, **together}.items()),
        held_before_bytes=record.held_before_bytes if decided == PYTEST else None,
        context_source="modelled",
    )


def _children(gpu: SimulatedGpu | None) -> Children:
    if gpu is None:
        return UncountedChildren(ONLY_SIMULATED)
    try:
        return CountedChildren(gpu)
    except UnsupportedError as error:
        return UncountedChildren(str(error))


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _size(size: int | None) -> float:
    """An unknown size sorts above every known one."""
    return float("inf") if size is None else size


def _together(
    children: ChildPeaks, named: Mapping[str, Peaks], own: Mapping[str, Peaks]
) -> Iterator[tuple[str, Peaks]]:
    """The joint peak on each GPU where it exceeds the peak of every single process."""
    largest: Counter[int] = Counter()
    for process in children.processes:
        largest[process.index] = max(largest[process.index], process.peaks.process or 0)
    for index in sorted(largest):
        held = children.together.get(index)
        alone = max(largest[index], *(peaks.process or 0 for peaks in own.values()), 0)
        if held is None or held > alone:
            yield f"together on GPU {index}", Peaks(process=held)


def _crowded(children: ChildPeaks, gpu: SimulatedGpu) -> Iterator[str]:
    """Notes about GPUs that a real card's memory would not have been enough for."""
    for index, held in children.together.items():
        if held is not None and held > gpu.gpu.total_bytes:
            yield (
                f"GPU {index} has {format_size(gpu.gpu.total_bytes)}, and processes held "
                f"{format_size(held)} of it together: simulated, each of them has the whole card to itself"
            )
