"""Messages for tests that exceed a limit and for runs that fail."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from llmmem.results import METRICS
from llmmem.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmmem.report import Record
    from llmmem.results import Trace
    from pytest_llmmem.marker import Limit

__all__ = ["PYTEST", "SIMULATED_VALUES", "may_be_over", "over_limit", "peak_unknown", "run_failed"]

SIMULATED_VALUES = "values are not computed on a simulated GPU"

#: The name of the process that runs the tests, among the processes that tests start.
PYTEST = "the pytest process"

SHOWN_ALLOCATIONS = 5
SHOWN_PROCESSES = 5
LONGEST_NAME = 80


def over_limit(
    record: Record, limit: Limit, top_allocations: Sequence[tuple[str, int]] = ()
) -> str:
    """By how much the peak of a record exceeds the limit, and what held the peak."""
    peak = record.peak_bytes or 0
    what = "needed" if record.is_cut_short else "peak"
    return "\n".join(
        (
            f"{what} {limit.metric} {format_size(peak)} is over the limit of "
            f"{limit.size} by {format_size(peak - limit.bytes)}",
            f"  {what:<12} {_exact(peak)}",
            f"  limit        {limit}",
            f"  excess       {_exact(peak - limit.bytes)}",
            *_account(record, top_allocations),
        )
    )


def may_be_over(record: Record) -> str:
    """The warning for a test whose headroom is smaller than what a note leaves unknown."""
    headroom = (record.limit_bytes or 0) - (record.peak_bytes or 0)
    return (
        f"{record.test} passed with a headroom of {format_size(headroom)}, less than the "
        f"{format_size(record.unknown_bytes)} that are unknown (see the notes in a report)"
    )


def peak_unknown(record: Record) -> str:
    """Why the peak that the limit applies to is unknown, and what to do about it."""
    if record.source == "estimated":
        return f"not estimated: {record.message}"
    decided_by = record.decided_by
    if decided_by not in (None, PYTEST):
        return _peak_of_child_unknown(record.metric, decided_by)
    if record.metric == "process":
        what = f"NVML does not report the memory of this process on {record.place}"
        others = '"reserved" or "allocated"'
    else:
        what = f"the allocator in use keeps no statistics of what is {record.metric}"
        others = '"process"'
    return f"not measured: {what}; use metric={others}"


def _peak_of_child_unknown(metric: str, child: str | None) -> str:
    if metric == "process":
        return f"not measured: too many processes ran at the same time ({child})"
    return (
        f"not measured: the peak of {metric} of {child} is not known (it was killed, is still running, "
        'started before the test or does not use PyTorch); use metric="process"'
    )


def run_failed(
    record: Record, limit: Limit | None, top_allocations: Sequence[tuple[str, int]] = ()
) -> str:
    """Why a run did not reach its end, what it needs (if known), and its peaks up to then."""
    estimate = record.estimate if record.outcome == "oom" else None
    return "\n".join(
        (
            f"outcome {record.outcome}: {_needs(record)}{record.message}",
            *(_needed(estimate.trace) if estimate else ()),
            *([f"  limit        {limit}"] if limit else []),
            *_account(record, top_allocations),
        )
    )


def _needs(record: Record) -> str:
    """What a run needs, as the start of its message; messages of estimates contain it already."""
    needed = record.needed.process
    if record.outcome != "oom" or record.source == "estimated" or needed is None:
        return ""
    return f"needs an estimated {format_size(needed)}; "


def _needed(trace: Trace) -> Iterable[str]:
    fits = trace.fits_by_memory
    if fits is None:
        return
    peaks = (f"{metric} {format_size(trace.needed.get(metric))}" for metric in METRICS)
    yield f"  needed       {', '.join(peaks)}, estimated"
    yield f"  fits         {', '.join(fits) or 'no card of the catalogue'}, by memory alone"


def _account(record: Record, top_allocations: Sequence[tuple[str, int]]) -> Iterable[str]:
    card = f" ({record.gpu})" if record.gpu else ""
    yield f"  device       {record.place}{card}, {record.source}"
    if record.setup is not None:
        yield f"  setup        {record.setup.model} {record.setup.describe()}"
    yield "  peaks        " + ", ".join(
        f"{metric} {format_size(record.peaks.get(metric))}" for metric in METRICS
    )
    yield from _processes(record)
    for device in record.other_devices:
        sizes = (f"{metric} {format_size(device.peaks.get(metric))}" for metric in METRICS)
        yield f"  {device.name:<12} {', '.join(sizes)}"
    if record.held_before_bytes:
        yield f"  held before  {format_size(record.held_before_bytes)} allocated"
    if record.components is not None:
        yield "  components   " + ", ".join(
            f"{name} {format_size(size)}" for name, size in asdict(record.components).items()
        )
    for position, (what, size) in enumerate(top_allocations[:SHOWN_ALLOCATIONS]):
        heading = "largest" if position == 0 else ""
        yield f"  {heading:<12} {format_size(size):>10}  {what}"
    if record.unknown_bytes:
        yield f"  unknown      up to {_exact(record.unknown_bytes)} more: see the notes in a report"
    for guess in record.guesses:
        yield f"  note         {guess}"
    if record.source == "simulated" and record.setup is None:
        yield f"  note         {SIMULATED_VALUES}"


def _processes(record: Record) -> Iterable[str]:
    """The process whose peak was compared with the limit, and the largest processes."""
    if record.decided_by is not None:
        yield f"  decided by   {_short(record.decided_by)}"
    largest = sorted(record.processes, key=lambda each: each.peaks.process or 0, reverse=True)
    for position, process in enumerate(largest[:SHOWN_PROCESSES]):
        heading = "processes" if position == 0 else ""
        size = format_size(process.peaks.get(record.metric))
        yield f"  {heading:<12} {size:>10}  {_short(process.phase)}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}..."


def _exact(size: int) -> str:
    return f"{format_size(size)} ({size} B)"
