"""Reports as tables for people: Markdown for a page, rich for a terminal."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from io import StringIO
from typing import TYPE_CHECKING, Any

from llmmem.guesses import GUESS
from llmmem.report.records import SESSION, TOTAL
from llmmem.report.text import printable
from llmmem.results import METRICS
from llmmem.setups import Setup
from llmmem.units import format_change, format_size, format_written

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
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

# A label and a value; lines without a label have an empty one.
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
LONGEST_WRITTEN = 10  # "123.45 GiB"; longer text would make the column too wide

SHOWN_PROCESSES = 4


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a report as plain values; missing ones are ``None``."""
    import pandas as pd

    names = [str(name) for name in frame.columns]
    values = (frame[name].astype(object).tolist() for name in names)
    columns = ([None if value is pd.NA else value for value in column] for column in values)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def markdown(frame: pd.DataFrame) -> str:
    """The totals of all records as one Markdown table, without empty columns."""
    rows = plain_rows(frame)
    told = [
        f"**Incomplete**: {_on_one_line(row['message'])}\n\n"
        for row in rows
        if row["phase"] == SESSION
    ]
    return "".join([*told, _markdown_table([row for row in rows if row["phase"] == TOTAL])])


def _markdown_table(totals: Sequence[Mapping[str, Any]]) -> str:
    from tabulate import tabulate

    if not totals:
        return "Nothing was recorded.\n"
    rows = [_markdown_cells(row) for row in totals]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    table = tabulate(
        [[_markdown_text(row[name]) for name in names] for row in rows],
        headers=names,
        tablefmt="pipe",
        colalign=["left" if name in MARKDOWN_TEXTS else "right" for name in names],
        disable_numparse=True,
    )
    return f"{table}\n"


def console_table(records: Iterable[Record], width: int) -> Table:
    """A table for a terminal that is `width` columns wide (at least 80), readable without colour.

    The figures of a record are stacked in groups: peaks, estimate, components, limit. In a narrow
    terminal, some groups share a column.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    layout = _WIDE if width >= _WIDE_COLUMNS else _NARROW
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_lines=True)
    name, *figures = layout
    table.add_column(name)
    for heading in figures:
        table.add_column(heading, no_wrap=True)
    for record in records:
        groups = _groups(record)
        first, *stacks = (
            _stack([line for name in names for line in groups[name]]) for names in layout.values()
        )
        table.add_row(_Name(first), *map(Text, stacks))
    return table


class _Name:
    """Text for a column of any width; test ids are wrapped between their parts."""

    def __init__(self, text: str) -> None:
        self._lines = printable(text).splitlines()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        longest_word = max(len(word) for line in self._lines for word in _words(line))
        return Measurement(longest_word, max(map(len, self._lines))).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for line in self._lines:
            for part in _broken(line, options.max_width):
                yield Text(part)  # Text: a test id such as test[bold] is not markup


def _broken(line: str, width: int) -> list[str]:
    """Wrap a line to parts of at most `width` characters.

    Wraps between the parts of a path or test id, or else between words; a single longer word is kept whole.
    """
    parts = [""]
    for name in re.findall(r"::[^/:]*|/?[^/:]+/?|.", line):
        fits_a_line = len(name) <= width
        for piece in [name] if fits_a_line else _words(name):
            if len(parts[-1]) + len(piece) <= width:
                parts[-1] += piece
            else:
                parts.append(piece)
    return [part for part in parts if part]


def _words(text: str) -> list[str]:
    return re.findall(r"(?:::)?[^\W_]*[\W_]?", text)


def console_text(records: Iterable[Record], width: int) -> str:
    """The table of `console_table` as plain text, no line longer than `width`."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(console_table(records, width))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _markdown_text(text: str) -> str:
    """Escape text for a table cell: on one line, with pipes escaped."""
    # A backslash before a pipe, or at the end of the cell, would escape our own.
    kept = re.sub(r"(\\+)(?=\||$)", r"\1\1", _on_one_line(text))
    return kept.replace("|", "\\|")


def _on_one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _markdown_cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {name: row.get(name) or "" for name in MARKDOWN_TEXTS}
    cells["guess"] = next((n for n in (row["notes"] or "").split("; ") if n.startswith(GUESS)), "")
    if row["setup"] is not None:
        cells["setup"] = Setup.from_mapping(json.loads(row["setup"])).describe()
    for name in MARKDOWN_SIZES:
        size = row[f"{name}_bytes"]
        if name == "needed_process" and row["outcome"] == "ok":
            size = None  # the same as the peak
        cells[name.replace("_", " ")] = "" if size is None else format_size(size)
        if name == "limit" and size is not None:
            cells["limit"] = format_written(size, row["limit"])
        if name == "trace":
            off = row["trace_error_percent"]
            cells["trace off by"] = "" if off is None else f"{off:+.2f}%"
    return cells


def _groups(record: Record) -> dict[str, list[_Line]]:
    """The lines of each group of a record's figures; empty if nothing is known."""
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
    off = record.trace_error_percent
    needed = record.needed.process
    return [
        *([("needs", format_size(needed))] if needed and record.outcome == "oom" else []),
        ("trace", format_size(record.trace_bytes)),
        *([] if off is None else [("off by", f"{off:+.2f}%")]),
        ("rules", format_size(record.rule_bytes)),
    ]


def _limit(record: Record) -> list[_Line]:
    lines = []
    if record.limit_bytes is not None:
        lines += [
            (_limit_label(record), format_size(record.limit_bytes)),
            ("headroom", format_size(record.headroom_bytes)),
        ]
    if record.baseline_bytes is not None:
        change = record.change_bytes
        lines += [
            ("baseline", format_size(record.baseline_bytes)),
            ("change", "-" if change is None else format_change(change)),
        ]
    return [*lines, ("metric", record.metric)] if lines else []


def _limit_label(record: Record) -> str:
    """``"limit"``, followed by the limit as written if that differs from its size in GiB."""
    shown = format_size(record.limit_bytes)
    written = record.limit or ""
    says_more = format_written(record.limit_bytes or 0, written) != shown
    return f"limit {written}" if says_more and len(written) <= LONGEST_WRITTEN else "limit"


def _stack(lines: Sequence[_Line]) -> str:
    """The lines of one cell, with labels and values aligned."""
    width = max((len(label) for label, _ in lines), default=0)
    return "\n".join(
        f"{label:<{width}} {value:>10}" if label else value for label, value in lines or [("", "-")]
    )
