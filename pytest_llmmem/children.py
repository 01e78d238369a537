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

ONLY_SIMULATED = "that is done on a simulated GPU only"


class ChildrenOfTests:
    """Gives the children of tests the device of this process, until it is closed.

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
        """The environment of a process that is no child of a test: as it would be without tests."""
        environment = {**os.environ}
        for name, value in self._before.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        return environment

    def start(self) -> None:
        """Begin to count for a test."""
        self._children.start()

    def stop(self) -> ChildPeaks:
        """What was counted."""
        return self._children.stop()

    def close(self) -> None:
        """Leave the environment as it was."""
        self._undo.close()


def with_children(record: Record, children: ChildPeaks, gpu: SimulatedGpu | None) -> Record:
    """The record of a test and of the processes that it started.

    Its peaks are those of the process that took most of the metric, or, for ``process``, what all
    held of one GPU at the same time if that is more.

    Args:
        record: What the pytest process took. With nothing but a CUDA context it does not take part.
        children: What the others took.
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
    """What is not known may be more than anything that is."""
    return float("inf") if size is None else size


def _together(
    children: ChildPeaks, named: Mapping[str, Peaks], own: Mapping[str, Peaks]
) -> Iterator[tuple[str, Peaks]]:
    """What processes held of each GPU together, where that is more than each has held."""
    largest: Counter[int] = Counter()
    for process in children.processes:
        largest[process.index] = max(largest[process.index], process.peaks.process or 0)
    for index in sorted(largest):
        held = children.together.get(index)
        alone = max(largest[index], *(peaks.process or 0 for peaks in own.values()), 0)
        if held is None or held > alone:
            yield f"together on GPU {index}", Peaks(process=held)


def _crowded(children: ChildPeaks, gpu: SimulatedGpu) -> Iterator[str]:
    """A real card would not have had room for all."""
    for index, held in children.together.items():
        if held is not None and held > gpu.gpu.total_bytes:
            yield (
                f"GPU {index} has {format_size(gpu.gpu.total_bytes)}, and processes held "
                f"{format_size(held)} of it together: they take no memory from each other when simulated"
            )
