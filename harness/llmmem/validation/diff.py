"""The first allocation in which a trace differs from its run on the simulated GPU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from llmmem.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llmmem.accounting.attribution import Event
    from llmmem.accounting.timeline import Timeline
    from llmmem.catalogue.gpus import Gpu
    from llmmem.setups import Setup

__all__ = ["Comparison", "Moment", "compare", "lines"]

EVENTS_BEFORE = 6
EVENTS_AFTER = 10


@dataclass(frozen=True)
class Moment:
    """One allocation or free.

    Attributes:
        kind: ``alloc`` or ``free``.
        block: The number of the block that it allocates or frees, counted from 0.
        bytes: The size of the block.
        module: The innermost module whose call it lies in, else the phase.
        where: In a trace, the operator. In a run, the line of the program ("" for a free).
    """

    kind: str
    block: int
    bytes: int
    module: str
    where: str

    def is_same(self, other: Moment) -> bool:
        """Whether the other one has the same effect on the allocator."""
        return (self.kind, self.block, self.bytes) == (other.kind, other.block, other.bytes)


@dataclass(frozen=True)
class Comparison:
    """The moments of a run and of a trace of the same setup.

    Attributes:
        run: The moments of the run on the simulated GPU.
        trace: The moments of the trace.
        difference: The position of the first difference; ``None`` if there is none.
    """

    run: tuple[Moment, ...]
    trace: tuple[Moment, ...]
    difference: int | None


def compare(setup: Setup, gpu: Gpu) -> Comparison:
    """Trace the setup, then run it, in this process.

    The simulated GPU must be active and not yet used.

    Raises:
        InputError: The setup names something that does not exist.
        UnsupportedError: The setup cannot be traced or run, or one of the two ran out of memory.
    """
    traced = _in_order(_traced(setup, gpu))
    ran = _in_order(_ran(setup))
    pairs = enumerate(zip_longest(ran, traced))
    difference = next(
        (i for i, (one, other) in pairs if not (one and other and one.is_same(other))), None
    )
    return Comparison(ran, traced, difference)


def _in_order(moments: Iterable[Moment]) -> tuple[Moment, ...]:
    """Sort frees between two allocations by block number, as their order makes no difference."""
    ordered: list[Moment] = []
    frees: list[Moment] = []
    for moment in moments:
        if moment.kind == "free":
            frees.append(moment)
            continue
        ordered += sorted(frees, key=lambda free: free.block)
        ordered.append(moment)
        frees.clear()
    return (*ordered, *sorted(frees, key=lambda free: free.block))


def _traced(setup: Setup, gpu: Gpu) -> Iterator[Moment]:
    from llmmem.estimation.trace import follow

    observer, outcome, message = follow(setup, gpu)
    if outcome != "ok":
        raise UnsupportedError(f"nothing to compare: the trace ended with {outcome}: {message}")
    tracer = observer.tracer
    sources = [str(operator) for operator in tracer.operators]
    return _moments(tracer.events, sources, observer.timeline)


def _ran(setup: Setup) -> Iterator[Moment]:
    import torch

    from llmmem.measurement.history import History, allocator_events
    from llmmem.measurement.run import configure_allocator
    from llmmem.measurement.source_lines import source_line_of
    from llmmem.workload.step import execute

    configure_allocator(setup.allocator)
    history = History(0)
    history.start(stacks="alloc")
    try:
        with history.timeline.recording_calls():
            execute(setup, torch.device("cuda", 0), history.timeline)
    except torch.OutOfMemoryError as error:
        raise UnsupportedError(f"nothing to compare: the run ended with oom: {error}") from error
    entries = history.stop()
    sources = [
        source_line_of(entry["frames"]) if entry["action"] == "alloc" else ""
        for entry in entries
        if entry["action"] in ("alloc", "free_requested")
    ]
    return _moments(allocator_events(entries, setup.allocator), sources, history.timeline)


def _moments(
    events: Sequence[Event], sources: Iterable[str], timeline: Timeline
) -> Iterator[Moment]:
    """The moments up to the end of the last phase; later frees belong to no step."""
    numbers: dict[int, int] = {}
    born = 0
    modules = timeline.modules(len(events))
    for event, source, module in zip(
        events[: timeline.phases[-1].end], sources, modules, strict=False
    ):
        if event.kind == "alloc":
            numbers[event.address] = born
            born += 1
        yield Moment(event.kind, numbers[event.address], event.bytes, module, source)


def lines(found: Comparison) -> Iterator[str]:
    """Lines that show the first difference and the moments around it, or that there is none."""
    if found.difference is None:
        yield f"equal: {len(found.run)} allocations and frees"
        return
    first = found.difference
    yield (
        f"different at {first} (the run has {len(found.run)} allocations and frees, "
        f"the trace {len(found.trace)})"
    )
    for position in range(max(0, first - EVENTS_BEFORE), first):
        yield f"   {position:>7}  {_line(found.trace, position)}"
    for position in range(first, first + EVENTS_AFTER):
        yield f"run   {position:>4}  {_line(found.run, position)}"
    for position in range(first, first + EVENTS_AFTER):
        yield f"trace {position:>4}  {_line(found.trace, position)}"


def _line(moments: Sequence[Moment], position: int) -> str:
    if position >= len(moments):
        return "(ended)"
    moment = moments[position]
    return (
        f"{moment.kind:<5} #{moment.block:<6} {moment.bytes:>13,} B  "
        f"{moment.module}  {moment.where}"
    )
