"""Reports as tables for people: Markdown for a page, rich for a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from typing import TYPE_CHECKING, Any

from llmmem.guesses import GUESS
from llmmem.report.records import TOTAL
from llmmem.results import METRICS
from llmmem.setups import Setup
from llmmem.units import format_change, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from rich.table import Table

    from llmmem.report.records import Record

__all__ = ["console_table", "console_text", "markdown", "plain_rows"]

MARKDOWN_TEXTS = (
    "test",
    "model",
    "setup",
    "device",
    "gpu",
    "source",
    "outcome",
    "message",
    "guess",
)
MARKDOWN_SIZES = (
    "needed_process",
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "temporaries",
    "peak_allocated",
    "peak_reserved",
    "peak_process",
    "rule",
    "trace",
    "limit",
    "headroom",
    "baseline",
    "change",
)

# A label, empty for a line of its own, and a value.
_Line = tuple[str, str]

# Headings of the console table, each with the groups of figures that are stacked under it.
_WIDE: Mapping[str, Sequence[str]] = {
    "test or setup": ("name", "where"),
    "estimate": ("estimate",),
    "peak": ("peaks",),
    "at the peak": ("components",),
    "limit": ("limit", "outcome"),
}
_NARROW: Mapping[str, Sequence[str]] = {
    "test or setup": ("name", "where"),
    "peak, estimate": ("peaks", "estimate"),
    "at the peak, limit": ("components", "limit", "outcome"),
}
_WIDE_COLUMNS = 116

SHOWN_PROCESSES = 4


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a report as plain values, ``None`` where one is missing."""
    values = frame.astype(object)
    rows = values.where(values.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def markdown(frame: pd.DataFrame) -> str:
    """The total of every record as one Markdown table; columns with nothing in them left out."""
    from tabulate import tabulate

    rows = [_markdown_cells(row) for row in plain_rows(frame) if row["phase"] == TOTAL]
    if not rows:
        return "Nothing was recorded.\n"
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    table = tabulate(
        [[row[name].replace("|", "\\|").replace("\n", " ") for name in names] for row in rows],
        headers=names,
        tablefmt="pipe",
        colalign=["left" if name in MARKDOWN_TEXTS else "right" for name in names],
        disable_numparse=True,
    )
    return f"{table}\n"


def console_table(records: Iterable[Record], width: int) -> Table:
    """A table for a terminal of `width` columns, readable from 80 up and without colour.

    The figures of a record are stacked in groups: peaks, estimate, components, limit. Where the
    terminal is narrow two groups share a column.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    layout = _WIDE if width >= _WIDE_COLUMNS else _NARROW
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_lines=True)
    name, *figures = layout
    table.add_column(name, overflow="fold")
    for heading in figures:
        table.add_column(heading, no_wrap=True)
    for record in records:
        groups = _groups(record)
        stacks = (
            _stack([line for name in names for line in groups[name]]) for names in layout.values()
        )
        table.add_row(*map(Text, stacks))  # Text: a test id such as test[bold] is no markup
    return table


def console_text(records: Iterable[Record], width: int) -> str:
    """The table of `console_table` as plain text, no line longer than `width`."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(console_table(records, width))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _markdown_cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {name: row.get(name) or "" for name in MARKDOWN_TEXTS}
    cells["guess"] = next((n for n in (row["notes"] or "").split("; ") if n.startswith(GUESS)), "")
    if row["setup"] is not None:
        cells["setup"] = Setup.from_mapping(json.loads(row["setup"])).describe()
    for name in MARKDOWN_SIZES:
        size = row[f"{name}_bytes"]
        if name == "needed_process" and row["outcome"] == "ok":
            size = None  # the peak says it
        cells[name.replace("_", " ")] = "" if size is None else format_size(size)
        if name == "trace":
            error = row["trace_error_percent"]
            cells["trace error"] = "" if error is None else f"{error:+.2f}%"
    return cells


def _groups(record: Record) -> dict[str, list[_Line]]:
    """The lines of each group of a record's figures; none where nothing is known."""
    place = f"{record.device} ({record.gpu})" if record.device == "estimate" else record.place
    components = asdict(record.components) if record.components else {}
    return {
        "name": [("", text) for text in _name(record)],
        "where": [("", text) for text in (place, record.source, *_processes(record))],
        "estimate": _estimate(record),
        "peaks": [(metric, format_size(record.peaks.get(metric))) for metric in METRICS],
        "components": [(name, format_size(size)) for name, size in components.items()],
        "limit": _limit(record),
        "outcome": [
            ("outcome", _verdict(record)),
            *([("sizes", "guessed")] if record.guesses else []),
        ],
    }


def _name(record: Record) -> list[str]:
    test = [] if record.test is None else [record.test]
    setup = [] if record.setup is None else [record.setup.model, record.setup.describe()]
    return test + setup


def _processes(record: Record) -> list[str]:
    """The processes with the largest peaks, each on a line."""
    largest = sorted(record.processes, key=lambda each: each.peaks.process or 0, reverse=True)
    lines = [f"{format_size(each.peaks.process)} {each.phase}" for each in largest]
    more = len(lines) - SHOWN_PROCESSES
    return [*lines[:SHOWN_PROCESSES], f"and {more} more processes"] if more > 0 else lines


def _verdict(record: Record) -> str:
    headroom = record.headroom_bytes
    if record.outcome == "ok" and headroom is not None and headroom < 0:
        return "over limit"
    return record.outcome


def _estimate(record: Record) -> list[_Line]:
    if record.estimate is None:
        return []
    error = record.trace_error_percent
    needed = record.needed.process
    return [
        *([("needs", format_size(needed))] if needed and record.outcome == "oom" else []),
        ("trace", format_size(record.trace_bytes)),
        *([] if error is None else [("error", f"{error:+.2f}%")]),
        ("rules", format_size(record.rule_bytes)),
    ]


def _limit(record: Record) -> list[_Line]:
    lines = []
    if record.limit_bytes is not None:
        lines += [
            ("limit", format_size(record.limit_bytes)),
            ("headroom", format_size(record.headroom_bytes)),
        ]
    if record.baseline_bytes is not None:
        change = record.change_bytes
        lines += [
            ("baseline", format_size(record.baseline_bytes)),
            ("change", "-" if change is None else format_change(change)),
        ]
    return [*lines, ("metric", record.metric)] if lines else []


def _stack(lines: Sequence[_Line]) -> str:
    """Lines of one cell, labels and values in columns that line up."""
    width = max((len(label) for label, _ in lines), default=0)
    return "\n".join(
        f"{label:<{width}} {value:>10}" if label else value for label, value in lines or [("", "-")]
    )
