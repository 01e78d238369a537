"""Attributes the memory at the peak to components and modules.

Both runs (from the history of PyTorch's allocator) and traces (from the meta device) use this module, so
components mean the same in both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from llmmem.results import COMPONENTS, Components, Holder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "Attribution",
    "Event",
    "Label",
    "PhaseAttribution",
    "Span",
    "attribute",
    "innermost_modules",
]

Key = TypeVar("Key")

FORWARD_PHASES = ("forward", "prefill", "decode")


class Event(NamedTuple):
    """One step of the allocator; its index in the sequence of events is its position.

    There are many events, so they are tuples, which are faster to create than dataclasses.

    Attributes:
        kind: Whether a block is allocated or freed.
        address: Identifies the block among all blocks that are live at the same time.
        bytes: The size of the block as the allocator counts it.
    """

    kind: Literal["alloc", "free"]
    address: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """The events from position `start` up to, not including, `end`: a phase or a module's call."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Label:
    """The block at `address`, live at `position`, belongs to a component."""

    position: int
    address: int
    component: str


@dataclass(frozen=True)
class PhaseAttribution:
    """The allocated peak within all spans of one phase, in bytes, and what held it."""

    phase: str
    peak_bytes: int
    components: Components


@dataclass(frozen=True)
class Attribution:
    """The allocated peak of a sequence of events, in bytes, and what held it.

    Attributes:
        peak_bytes: The largest sum of live blocks.
        components: That sum by component.
        phases: The same for every phase that occurred.
        top_allocations: That sum by component and innermost module, largest first. For allocations
            outside of modules, the phase in parentheses stands for the module.
    """

    peak_bytes: int
    components: Components
    phases: tuple[PhaseAttribution, ...]
    top_allocations: tuple[Holder, ...]


class _Life(NamedTuple):
    """The lifetime of a block: the positions of its allocation and its free (None: never freed)."""

    bytes: int
    born: int
    died: int | None
    component: str
    module: str


def attribute(
    events: Sequence[Event],
    *,
    phases: Sequence[Span],
    calls: Sequence[Span],
    labels: Sequence[Label],
    until: int | None = None,
) -> Attribution:
    """Find the allocated peak and attribute the blocks that were live at it.

    A labelled block (weights, gradients, optimizer state) belongs to the component of its label from its
    allocation on. Of the others, *activations* are blocks that are allocated in a module's call and
    outlive the outermost call around it (in a forward phase, or recomputed during backward), and blocks
    that are allocated in a forward phase outside of modules (the batch, the loss). All others are
    *temporaries*: blocks freed within the call, and workspaces that are never freed. A run that ended
    during the phase load has no labels: its blocks are *weights*.

    Args:
        events: All events in order. Blocks freed without having been allocated are ignored.
        phases: Spans of phases, in order; they do not overlap.
        calls: Spans of module calls, named by the module's path; they nest.
        labels: Which blocks are weights, gradients or optimizer state.
        until: The position up to which peaks are considered. Later events still decide how blocks are
            attributed, unless nothing was labelled by then.
    """
    if until is not None and not any(label.position <= until for label in labels):
        labels = ()
    lives = _lives(events, phases, calls, labels)
    if until is not None:
        lives = [life for life in lives if life.born < until]
        phases = [phase for phase in phases if phase.start <= until]
    positions = [0] * (len(events) + 1)
    for life in lives:
        positions[life.born] += life.bytes
        if life.died is not None:
            positions[life.died] -= life.bytes
    held = list(accumulate(positions))
    top = held.index(max(held))
    return Attribution(
        peak_bytes=held[top],
        components=_components(_alive(lives, top)),
        phases=tuple(_phase_peaks(lives, held, phases)),
        top_allocations=_top_allocations(_alive(lives, top)),
    )


def _lives(
    events: Sequence[Event], phases: Sequence[Span], calls: Sequence[Span], labels: Sequence[Label]
) -> list[_Life]:
    call_ends = _ends_of_outermost_calls(calls, len(events))
    modules = innermost_modules(calls, phases, len(events))
    phase_of = _phases_by_position(phases, len(events))
    label_of = _BlockLabels(labels)
    live: dict[int, tuple[int, int]] = {}
    lives: list[_Life] = []

    def end(address: int, born: int, size: int, died: int | None) -> None:
        component = label_of.component(address, born, died)
        if component is None:
            phase = phase_of[born]
            if not labels and phase == "load":
                component = "weights"
            else:
                component = _unlabelled(born, died, phase, call_ends[born])
        lives.append(_Life(size, born, died, component, modules[born]))

    for position, (kind, address, size) in enumerate(events):
        if kind == "alloc":
            live[address] = position, size
        elif address in live:
            end(address, *live.pop(address), position)
    for address, (born, size) in live.items():
        end(address, born, size, None)
    return lives


def _unlabelled(born: int, died: int | None, phase: str | None, call_end: int | None) -> str:
    if died is None:
        return "temporaries"
    if call_end is not None:
        return "activations" if died >= call_end else "temporaries"
    return "activations" if phase in FORWARD_PHASES else "temporaries"


def _ends_of_outermost_calls(calls: Sequence[Span], size: int) -> list[int | None]:
    """For each position, where the outermost module call around it ends, if there is one."""
    ends: list[int | None] = [None] * size
    reached = 0
    for span in sorted(calls, key=lambda span: (span.start, -span.end)):
        if span.start >= reached:
            reached = span.end
            ends[span.start : span.end] = [span.end] * (min(span.end, size) - span.start)
    return ends


def _phases_by_position(phases: Sequence[Span], size: int) -> list[str | None]:
    """For each position, the phase that it lies in."""
    found: list[str | None] = [None] * size
    for span in phases:
        found[span.start : span.end] = [span.name] * (min(span.end, size) - span.start)
    return found


class _BlockLabels:
    """The first label that was put on a block while it lived."""

    def __init__(self, labels: Iterable[Label]) -> None:
        self._by_address: dict[int, list[Label]] = defaultdict(list)
        for label in sorted(labels, key=lambda label: label.position):
            self._by_address[label.address].append(label)

    def component(self, address: int, born: int, died: int | None) -> str | None:
        found = self._by_address.get(address)
        if found is None:
            return None
        # A label at position p was taken before event p and after event p - 1.
        index = bisect_right(found, born, key=lambda label: label.position)
        if index == len(found) or (died is not None and found[index].position > died):
            return None
        return found[index].component


def innermost_modules(calls: Sequence[Span], phases: Sequence[Span], size: int) -> list[str]:
    """For each position, the innermost module whose call it lies in, else the phase."""
    modules = ["(outside of phases)"] * size
    named_spans = [(span, f"({span.name})") for span in phases]
    named_spans += [
        (span, span.name) for span in sorted(calls, key=lambda span: (span.start, -span.end))
    ]
    for span, name in named_spans:
        modules[span.start : span.end] = [name] * (min(span.end, size) - span.start)
    return modules


def _alive(lives: Iterable[_Life], position: int) -> list[_Life]:
    return [
        life
        for life in lives
        if life.born <= position and (life.died is None or position < life.died)
    ]


def _components(lives: Iterable[_Life]) -> Components:
    sums: Mapping[str, int] = _sums((life.component, life.bytes) for life in lives)
    return Components(**{name: sums.get(name, 0) for name in COMPONENTS})


def _top_allocations(lives: Iterable[_Life]) -> tuple[Holder, ...]:
    sums = _sums(((life.component, life.module), life.bytes) for life in lives)
    top_allocations = [
        Holder(component, module, size) for (component, module), size in sums.items()
    ]
    return tuple(
        sorted(top_allocations, key=lambda each: (-each.bytes, each.component, each.module))
    )


def _sums(pairs: Iterable[tuple[Key, int]]) -> Counter[Key]:
    sums: Counter[Key] = Counter()
    for key, size in pairs:
        sums[key] += size
    return sums


def _phase_peaks(
    lives: Sequence[_Life], held: Sequence[int], phases: Sequence[Span]
) -> Iterable[PhaseAttribution]:
    tops: dict[str, int] = {}
    for span in phases:
        # What was held when the phase began is part of its peak.
        start = max(span.start - 1, 0)
        within = held[start : span.end]
        top = start + within.index(max(within)) if within else 0
        if span.name not in tops or held[top] > held[tops[span.name]]:
            tops[span.name] = top
    for name, top in tops.items():
        yield PhaseAttribution(name, held[top], _components(_alive(lives, top)))
