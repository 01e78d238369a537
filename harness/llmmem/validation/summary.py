"""The summary page of a table of the accuracy matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmmem.results import COMPONENTS
from llmmem.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

__all__ = ["summary"]

HEADERS = (
    "setups", "equal", "median", "p95", "worst", "bias", "under-estimates",
)  # fmt: skip


def summary(path: Path, device: str, command: str) -> str:
    """The page: errors of the trace and of the rules, by part, method and component.

    An error is 100 x (estimate - run) / run. Median, 95th percentile and worst are computed from its
    absolute value, the bias is the mean of the signed error.

    Args:
        path: The table that `validate` wrote.
        device: Where it ran.
        command: The command that wrote it.
    """
    import pandas as pd

    table = pd.read_csv(path)
    both = table[(table.run_outcome == "ok") & (table.trace_outcome == "ok")]
    equal = len(both) - len(_different(both))
    parts = [
        f"# Accuracy of estimates against {device}\n",
        f"Made by `{command}` ({_versions()}): estimate beside run over the accuracy matrix "
        f"({len(table)} setups of {table.model.nunique()} models; "
        f"`llmmem/validation/matrix.py`). Errors are of the peak, in percent of the run's; equal "
        "means to the byte. The held-out setups were selected before any estimate was corrected against "
        "the matrix, and no estimate was changed because of them.\n",
        f"Both peaks are equal to the byte in {equal} of the {len(both)} setups that ran to their "
        "end and were traced.\n",
        _section("Trace, allocated peak", _by_part(both, "allocated")),
        _section("Trace, reserved peak", _by_part(both, "reserved")),
        _section("Trace, allocated peak, by method", _by_method(both)),
        _section("Trace, components at the allocated peak", _components(both)),
        _section("Rules (closed forms), allocated peak", _rules(both)),
        _section("Phases", _phases(both)),
        _section("What differs", _differences(both)),
        _section("What did not run or was not traced", _others(table)),
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, lines: Iterator[str]) -> str:
    text = "\n".join(lines)
    return f"## {title}\n\n{text}\n" if text else ""


def _header(first: str) -> Iterator[str]:
    yield "| " + " | ".join((first, *HEADERS)) + " |"
    yield "| --- |" + " ---: |" * len(HEADERS)


def _line(name: str, estimates: pd.Series[float], runs: pd.Series[float]) -> str:
    error = 100 * (estimates - runs) / runs
    size = error.abs()
    cells = (
        name,
        str(len(error)),
        f"{int((error == 0).sum())}",
        f"{size.median():.4f}%",
        f"{size.quantile(0.95):.4f}%",
        f"{size.max():.4f}%",
        f"{error.mean():+.4f}%",
        f"{100 * (error < 0).mean():.1f}%",
    )
    return "| " + " | ".join(cells) + " |"


def _by_part(both: pd.DataFrame, metric: str) -> Iterator[str]:
    yield from _header("part")
    for name, rows in (
        ("all", both),
        ("development", both[~both.is_held_out]),
        ("held out", both[both.is_held_out]),
    ):
        if len(rows):
            yield _line(name, rows[f"trace_{metric}"], rows[f"run_{metric}"])


def _by_method(both: pd.DataFrame) -> Iterator[str]:
    yield from _header("method")
    for name, rows in both.groupby("method"):
        yield _line(str(name), rows.trace_allocated, rows.run_allocated)


def _components(both: pd.DataFrame) -> Iterator[str]:
    yield "| component | setups | equal | worst |"
    yield "| --- | ---: | ---: | ---: |"
    for name in COMPONENTS:
        error = both[f"{name}_error"].dropna()
        yield f"| {name} | {len(error)} | {int((error == 0).sum())} | {error.abs().max():,.0f} B |"


def _rules(both: pd.DataFrame) -> Iterator[str]:
    known = both[both.rule_allocated.notna()]
    yield from _header("method")
    for name, rows in (("all", known), *known.groupby("method")):
        yield _line(str(name), rows.rule_allocated, rows.run_allocated)


def _phases(both: pd.DataFrame) -> Iterator[str]:
    equal = int((both.phases_equal == True).sum())  # noqa: E712  # read from text
    yield (
        f"All phases have the run's allocated and reserved peaks and components in {equal} of "
        f"{len(both)} setups."
    )


def _different(both: pd.DataFrame) -> pd.DataFrame:
    allocated = both.trace_allocated != both.run_allocated
    return both[allocated | (both.trace_reserved != both.run_reserved)]


def _versions() -> str:
    found = library_versions()
    names = ("torch", "transformers", "peft", "bitsandbytes")
    return ", ".join(f"{name} {found[name]}" for name in names)


def _differences(both: pd.DataFrame) -> Iterator[str]:
    different = _different(both)
    if not len(different):
        yield "Nothing."
        return
    yield "| setup | allocated | reserved |"
    yield "| --- | ---: | ---: |"
    allocated = different.trace_allocated - different.run_allocated
    reserved = different.trace_reserved - different.run_reserved
    for setup, one, other in zip(different.setup, allocated, reserved, strict=True):
        yield f"| `{setup}` | {one:+,.0f} B | {other:+,.0f} B |"


def _others(table: pd.DataFrame) -> Iterator[str]:
    others = table[(table.run_outcome != "ok") | (table.trace_outcome != "ok")]
    if not len(others):
        yield "Nothing."
        return
    yield "| setup | run | trace | why |"
    yield "| --- | --- | --- | --- |"
    for row in others.itertuples():
        why = str(row.message).replace("|", "\\|")[:300]
        yield f"| `{row.setup}` | {row.run_outcome} | {row.trace_outcome} | {why} |"
