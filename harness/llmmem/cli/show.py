"""What the commands print for people: rich tables, readable without colour and in narrow terminals."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llmmem.results import COMPONENTS, METRICS, Peaks
from llmmem.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmmem.catalogue.gpus import Gpu
    from llmmem.catalogue.models import ModelEntry
    from llmmem.cli.diagnosis import Diagnosis
    from llmmem.execution.program import ProgramResult
    from llmmem.results import Components, Estimate, PhaseResult, Rules, RunResult, Trace

__all__ = [
    "show_diagnosis",
    "show_estimate",
    "show_gpus",
    "show_models",
    "show_program",
    "show_run",
]

PEAK_ALLOCATED = "peak allocated"
ALLOCATIONS_SHOWN = 10
#: Names in a list of what is missing.
MISSING_SHOWN = 4


def show_estimate(estimate: Estimate) -> None:
    """Print needed memory, trace and rules side by side, the phases of the trace, and assumptions."""
    trace, rules = estimate.trace, estimate.rules
    console = _console()
    console.print(f"{estimate.setup.model}: {estimate.setup.describe()}")
    console.print(f"estimated for {estimate.gpu}: {_ending(trace.outcome, trace.message)}")
    table = _table("", "trace", "rules")
    for name, size in _needed(trace).items():
        table.add_row(name, format_size(size), "-")
    table.add_section()
    for name, size in _figures(trace.peaks, trace.components).items():
        rule = rules.peak_allocated_bytes if name == PEAK_ALLOCATED else None
        table.add_row(name, format_size(size), format_size(rule))
    _print_table(console, table)
    _print_fits(console, trace)
    _print_rules(console, rules)
    _print_phases(console, trace.phases)
    _print_lines(console, "Assumed by the trace", trace.assumptions)


def show_run(result: RunResult) -> None:
    """Print peaks and components next to the estimate, phases, and the largest allocations."""
    console = _console()
    console.print(f"{result.setup.model}: {result.setup.describe()}")
    card = f" ({result.gpu})" if result.gpu else ""
    ending = _ending(result.outcome, result.message)
    console.print(f"{result.source} on {result.device}{card}: {ending}")
    if result.outcome == "oom" and result.estimate is not None:
        _print_fits(console, result.estimate.trace)
    if result.estimate is not None or result.peaks != Peaks():
        _print_account(console, result)
    _print_phases(console, result.phases)
    if result.holders:
        table = _table("largest allocations", "of", "size", left=2)
        for holder in result.holders[:ALLOCATIONS_SHOWN]:
            table.add_row(holder.module, holder.component, format_size(holder.bytes))
        _print_table(console, table)
    if result.step_seconds is not None:
        console.print(f"\nLast step: {result.step_seconds:.3f} s")
    _print_lines(console, "Notes", result.notes)


def show_program(result: ProgramResult) -> None:
    """Print the peaks of each process on standard error; standard output belongs to the program."""
    console = _console(stderr=True)
    ending = _ending(result.outcome, result.message)
    headline = f"llmmem: {result.source} on {result.device} ({result.gpu}): {ending}"
    console.print(f"\n{headline}", soft_wrap=True)
    if result.processes:
        ranked = any(process.rank is not None for process in result.processes)
        rank = ("rank",) if ranked else ()
        table = _table("process", *rank, "GPU", *(f"peak {metric}" for metric in METRICS))
        for process in result.processes:
            table.add_row(
                f"{process.pid} {shlex.join(process.command)}",
                *("" if process.rank is None else str(process.rank) for _ in rank),
                str(process.index),
                *(format_size(process.peaks.get(metric)) for metric in METRICS),
            )
        if len(result.processes) > 1:
            highest = (format_size(result.peaks.get(metric)) for metric in METRICS)
            table.add_row("highest", *("" for _ in rank), "", *highest)
        _print_table(console, table)
    _print_lines(console, "Notes", result.notes)


def show_models(entries: Iterable[ModelEntry]) -> None:
    """Print the models of the catalogue; shared parameters are counted once."""
    table = _table("model", "type", "parameters", left=2)
    for entry in entries:
        table.add_row(entry.id, entry.model_type, f"{entry.unique_parameters:,}")
    _console().print(table)


def show_gpus(entries: Iterable[Gpu]) -> None:
    """Print the GPUs of the catalogue."""
    listed = list(entries)
    table = _table("GPU", "title", "compute capability", "memory", "context", left=2)
    for gpu in listed:
        table.add_row(
            gpu.name,
            gpu.title,
            ".".join(map(str, gpu.compute_capability)),
            format_size(gpu.total_bytes),
            format_size(gpu.context_bytes),
        )
    console = _console()
    console.print(table)
    _print_lines(
        console, "Source of the context", list(dict.fromkeys(gpu.context_source for gpu in listed))
    )


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what this machine can do, what is missing for the rest, and versions."""
    console = _console()
    for ability in diagnosis.abilities:
        console.print(f"{'yes' if ability.works else 'no':<4} {ability.source}: {ability.detail}")
        for problem in ability.problems:
            console.print(f"     {problem}")
    _print_coverage(console, diagnosis)
    versions = diagnosis.versions.items()
    console.print("\n" + ", ".join(f"{name} {text or '-'}" for name, text in versions))


def _print_coverage(console: Console, diagnosis: Diagnosis) -> None:
    if diagnosis.coverage_problem:
        console.print(f"\nWhat the simulated GPU recognises: {diagnosis.coverage_problem}")
    if not diagnosis.coverage:
        return
    console.print(f"\nThe simulated GPU recognises, in torch {diagnosis.versions['torch']}:")
    for figure in diagnosis.coverage:
        counts = f"{figure.found:>8} of {figure.expected:<4}"
        console.print(f"{counts} {figure.subject}", soft_wrap=True)
        if figure.missing:
            more = len(figure.missing) - MISSING_SHOWN
            rest = f" and {more} more (--json lists them)" if more > 0 else ""
            names = ", ".join(figure.missing[:MISSING_SHOWN])
            console.print(f"{'':17}without {names}{rest}", soft_wrap=True)


def _console(*, stderr: bool = False) -> Console:
    # No markup or highlighting: module names can contain "[0]".
    return Console(markup=False, highlight=False, stderr=stderr)


def _table(*headings: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text, the others figures."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for position, heading in enumerate(headings):
        if position < left:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right")
    return table


def _print_table(console: Console, table: Table) -> None:
    console.print()
    console.print(table)


def _ending(outcome: str, message: str) -> str:
    return f"{outcome}: {message}" if message else outcome


def _print_account(console: Console, result: RunResult) -> None:
    """Print the figures of the run next to those of its estimate, if it has one."""
    estimate = result.estimate
    if estimate is None:
        table = _table("", result.source)
        for name, size in _figures(result.peaks, result.components).items():
            table.add_row(name, format_size(size))
    else:
        table = _table("", result.source, "trace", "off by", "rules")
        traced = _figures(estimate.trace.peaks, estimate.trace.components)
        comparable = result.outcome == "ok" and estimate.trace.outcome == "ok"
        if not comparable:
            for name, size in _needed(estimate.trace).items():
                table.add_row(name, "-", format_size(size), "-", "-")
            table.add_section()
        for name, size in _figures(result.peaks, result.components).items():
            off = _off_by(traced[name], size) if comparable else "-"
            rule = estimate.rules.peak_allocated_bytes if name == PEAK_ALLOCATED else None
            table.add_row(
                name, format_size(size), format_size(traced[name]), off, format_size(rule)
            )
    _print_table(console, table)
    if estimate is not None and estimate.trace.outcome != "ok":
        console.print(f"Trace: {_ending(estimate.trace.outcome, estimate.trace.message)}")


def _needed(trace: Trace) -> dict[str, int | None]:
    """The peaks on a card without a limit, in bytes."""
    return {f"needed {metric}": trace.needed.get(metric) for metric in METRICS}


def _print_fits(console: Console, trace: Trace) -> None:
    fits = trace.fits_by_memory
    if fits is not None:
        needed = format_size(trace.needed.process)
        cards = ", ".join(fits) or "no card of the catalogue"
        console.print(f"\nNeeds {needed}, as estimated. Fits by memory alone: {cards}")


def _figures(peaks: Peaks, components: Components | None) -> dict[str, int | None]:
    """The rows of the table, in bytes.

    The components sum to the allocated peak. Adding the reserve gives the reserved peak, and adding the
    context gives the process peak.
    """
    known = asdict(components) if components else {}
    return {name: known.get(name) for name in COMPONENTS} | {
        PEAK_ALLOCATED: peaks.allocated,
        "+ reserve": _difference(peaks.reserved, peaks.allocated),
        "peak reserved": peaks.reserved,
        "+ context": _difference(peaks.process, peaks.reserved),
        "peak process": peaks.process,
    }


def _difference(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left - right


def _off_by(estimated: int | None, peak: int | None) -> str:
    return "-" if estimated is None or not peak else f"{100 * (estimated - peak) / peak:+.2f}%"


def _print_rules(console: Console, rules: Rules) -> None:
    console.print(f"\nRule: {rules.formula}")
    if rules.table:
        columns = list(dict.fromkeys(name for row in rules.table.values() for name in row))
        table = _table("known closed forms", *(column.replace("_", " ") for column in columns))
        for name, row in rules.table.items():
            table.add_row(name, *(format_size(row.get(column)) for column in columns))
        _print_table(console, table)


def _print_phases(console: Console, phases: Sequence[PhaseResult]) -> None:
    if not phases:
        return
    table = _table("phase", *(f"peak {metric}" for metric in METRICS))
    for phase in phases:
        table.add_row(phase.phase, *(format_size(phase.peaks.get(metric)) for metric in METRICS))
    _print_table(console, table)


def _print_lines(console: Console, heading: str, lines: Sequence[str]) -> None:
    if lines:
        console.print(f"\n{heading}:")
        for line in lines:
            console.print(f"- {line}")
