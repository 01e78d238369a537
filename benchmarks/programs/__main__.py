"""Training and inference programs of many libraries: run on a simulated GPU, and estimated.

    python benchmarks/programs [PROGRAM ...] [--resume] [--output reports/programs.md]

Each program is run by ``llmmem exec`` in a process of its own and estimated by ``llmmem.estimate``
in another. The report and a CSV file beside it are written anew after each program. A PROGRAM may
be the beginning of a name, such as ``trl/`` or ``torch/offload``: only these run, and the other
rows of the report stay. With ``--resume`` those that have a row already are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

from llmmem.report import write
from llmmem.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

HERE = Path(__file__).parent
COMMON = HERE / "common"
REPORT = HERE.parents[1] / "reports" / "programs.md"
DEVICE = "sim:h100"
TIMEOUT = 120.0
LONGEST_REASON = 150

#: What stands in a note before bytes that are one program's.
BOUND = ": up to "

#: Programs of several ranks: scripts whose docstrings have the lines that start them.
DISTRIBUTED = "distributed"
STARTS = "llmmem exec --device "

#: A folder is named for its distribution; the version of a folder of another name is this one's.
DISTRIBUTIONS = {DISTRIBUTED: "torch"}

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(COMMON), os.environ.get("PYTHONPATH")))),
}


@dataclass(frozen=True)
class Program:
    """A function of a module, or, where it has several ranks, a module that is launched.

    Attributes:
        name: Folder, module and function, such as ``trl/sft.packing``.
        about: The first line of its docstring.
        device: The simulated GPUs that it runs on.
        command: What starts it.
        estimated: Whether `llmmem.estimate` can be asked: not with several ranks.
    """

    name: str
    about: str
    device: str
    command: tuple[str, ...]
    estimated: bool

    @property
    def folder(self) -> str:
        """The library whose use it shows."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Figures:
    """What a run or an estimate came to; peaks in bytes, and what it says beside them."""

    outcome: str
    allocated: int | None = None
    reserved: int | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0


NOT_ESTIMATED = Figures("-")


@dataclass(frozen=True)
class Row:
    """A program, what its run came to, and what its estimate did."""

    program: str
    version: str
    run: Figures
    estimate: Figures

    @property
    def verdict(self) -> str:
        """How the estimate stands to the run."""
        if self.estimate.outcome == "-":
            return "not estimated"
        if self.estimate.outcome != "ok":
            return "refused" if self.estimate.outcome == "unsupported" else self.estimate.outcome
        if self.run.outcome != "ok":
            return "run failed"
        run = self.run.allocated, self.run.reserved
        return "equal" if run == (self.estimate.allocated, self.estimate.reserved) else "differs"


def main() -> None:
    """Run the chosen programs and write the report."""
    options = arguments()
    rows = read(options.output.with_suffix(".csv"))
    chosen = [
        program
        for program in programs()
        if any(program.name.startswith(name) for name in options.program or [""])
        and not (options.resume and program.name in rows)
    ]
    if not chosen:
        raise SystemExit("no program of that name (or all have a row already)")
    known = {program.name: program for program in programs()}
    console = Console(stderr=True)
    for program in track(chosen, description="programs", console=console):
        row = run_and_estimate(program)
        console.print(summary_line(row), highlight=False, markup=False, soft_wrap=True)
        rows[program.name] = row
        ordered = [rows[name] for name in known if name in rows]
        options.output.write_text(page(ordered, known), encoding="utf-8")
        write(table(ordered), options.output.with_suffix(".csv"))
    print(summary([rows[program.name] for program in chosen]))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/programs", description=__doc__)
    parser.add_argument("program", nargs="*", help="the beginning of a name")
    parser.add_argument("--resume", action="store_true", help="leave out what has a row already")
    parser.add_argument("--output", type=Path, default=REPORT, help="the report to write")
    return parser.parse_args()


def programs() -> list[Program]:
    """All programs, found without importing them: functions that take no arguments."""
    found = []
    for path in sorted(HERE.glob("*/*.py")):
        if path.parent == COMMON or path.name.startswith("_"):
            continue
        module = f"{path.parent.name}/{path.stem}"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.parent.name == DISTRIBUTED:
            found += launched(module, path, tree)
            continue
        found += [
            Program(
                name=f"{module}.{node.name}",
                about=first_line(node),
                device=DEVICE,
                command=(sys.executable, str(COMMON / "call.py"), str(path), node.name),
                estimated=True,
            )
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and not node.name.startswith("_")
            and not ast.unparse(node.args)
        ]
    return found


def launched(module: str, path: Path, tree: ast.Module) -> list[Program]:
    """Programs of several ranks: one for each line of the docstring that starts the script."""
    lines = [line.strip() for line in (ast.get_docstring(tree) or "").splitlines()]
    found = []
    for line in lines:
        if not line.startswith(STARTS):
            continue
        device, _, launcher, *rest = shlex.split(line.removeprefix(STARTS))
        after = rest[rest.index(path.name) + 1 :]
        found.append(
            Program(
                name=".".join([module, *after]),
                about=lines[0],
                device=device,
                command=(
                    str(Path(sys.executable).with_name(launcher)),
                    *(str(path) if argument == path.name else argument for argument in rest),
                ),
                estimated=False,
            )
        )
    return found


def first_line(node: ast.Module | ast.FunctionDef) -> str:
    """The first line of a docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0]


def run_and_estimate(program: Program) -> Row:
    """The program's run, then its estimate."""
    try:
        version = metadata.version(DISTRIBUTIONS.get(program.folder, program.folder))
    except metadata.PackageNotFoundError:
        version = "not installed"
        return Row(program.name, version, Figures("not installed"), NOT_ESTIMATED)
    estimated = estimate(program) if program.estimated else NOT_ESTIMATED
    return Row(program.name, version, run(program), estimated)


def run(program: Program) -> Figures:
    """What it takes on the simulated GPUs: of several processes, the highest peaks."""
    llmmem = (sys.executable, "-m", "llmmem", "exec", "--json", "--device", program.device, "--")
    output, error, figures = process((*llmmem, *program.command))
    if figures.outcome in ("timeout", "crashed") and not output.strip():
        return figures
    result = json.loads(output)
    return replace(
        figures,
        outcome=result["outcome"],
        allocated=result["peak_allocated_bytes"],
        reserved=result["peak_reserved_bytes"],
        notes=tuple(result["notes"]),
        error="" if result["outcome"] == "ok" else reason(error) or result["message"],
    )


def estimate(program: Program) -> Figures:
    """What `llmmem.estimate` says of it, on the same card."""
    gpu = program.device.removeprefix("sim:")
    module, function = program.command[-2:]
    output, _, figures = process(
        (sys.executable, str(COMMON / "call.py"), module, function, "--estimate", gpu)
    )
    if figures.outcome != "ok":
        return figures
    result = json.loads(output.splitlines()[-1])
    return replace(
        figures,
        outcome=result["outcome"],
        allocated=result["allocated"],
        reserved=result["reserved"],
        notes=tuple(result["assumptions"]),
        error=result["message"],
    )


def process(command: Sequence[str]) -> tuple[str, str, Figures]:
    """Start a process in a folder of its own; standard output, standard error, and how it ended."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        started = subprocess.Popen(
            command,
            cwd=scratch,
            env=os.environ | SETTINGS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, error = started.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            output, error = started.communicate()
            ended = Figures("timeout", error=f"not done after {TIMEOUT:g} s")
        else:
            code = started.returncode
            ended = Figures("ok") if code == 0 else Figures("crashed", error=reason(error))
            if code < 0:
                ended = replace(ended, error=f"{signal.Signals(-code).name} {ended.error}")
    return output, error, replace(ended, seconds=round(time.monotonic() - began, 1))


def reason(error: str) -> str:
    """The last line of a traceback that names an exception, or the last line."""
    lines = [line for line in error.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] and line[:1] not in " |+["]
    return (named or lines or [""])[-1].strip()


def summary_line(row: Row) -> str:
    """What became of a program, on one line."""
    run, estimated = row.run, row.estimate
    return (
        f"{row.program}: run {run.outcome} {run.allocated} {run.reserved} ({run.seconds} s) "
        f"{run.error}; estimate {row.verdict} {estimated.allocated} {estimated.reserved} "
        f"({estimated.seconds} s) {estimated.error}"
    )


def summary(rows: Sequence[Row]) -> str:
    """The counts, in two sentences."""
    ran = sum(row.run.outcome == "ok" for row in rows)
    verdicts = pd.Series([row.verdict for row in rows]).value_counts()
    estimated = sum(row.estimate.outcome == "ok" for row in rows)
    others = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    libraries = len({row.program.partition("/")[0] for row in rows})
    return (
        f"{ran} of {len(rows)} programs of {libraries} libraries run. "
        f"{estimated} are estimated; estimates: {others}."
    )


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """One line for each program."""
    lines = [
        {"program": row.program, "version": row.version, "verdict": row.verdict}
        | columns("run", row.run)
        | columns("estimate", row.estimate)
        for row in rows
    ]
    counts = [name for name in lines[0] if name.endswith("_bytes")]
    return pd.DataFrame(lines).astype(dict.fromkeys(counts, "Int64"))


def columns(prefix: str, figures: Figures) -> dict[str, Any]:
    """Figures as columns."""
    return {
        f"{prefix}_outcome": figures.outcome,
        f"{prefix}_peak_allocated_bytes": figures.allocated,
        f"{prefix}_peak_reserved_bytes": figures.reserved,
        f"{prefix}_seconds": figures.seconds,
        f"{prefix}_notes": "\n".join(figures.notes),
        f"{prefix}_error": figures.error,
    }


def read(path: Path) -> dict[str, Row]:
    """The rows of a report that was written before, by program."""
    if not path.exists():
        return {}
    lines = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    return {
        line["program"]: Row(
            line["program"], line["version"], figures(line, "run"), figures(line, "estimate")
        )
        for line in lines
    }


def figures(line: Mapping[str, str], prefix: str) -> Figures:
    """What `columns` made, read again."""
    peaks = (line[f"{prefix}_peak_{metric}_bytes"] for metric in ("allocated", "reserved"))
    return Figures(
        line[f"{prefix}_outcome"],
        *(int(peak) if peak else None for peak in peaks),
        notes=tuple(line[f"{prefix}_notes"].splitlines()),
        error=line[f"{prefix}_error"],
        seconds=float(line[f"{prefix}_seconds"]),
    )


def page(rows: Sequence[Row], known: Mapping[str, Program]) -> str:
    """The report as Markdown: the counts, a table for each library, and the notes."""
    said = dict.fromkeys(note for row in rows for note in remarks(row))
    notes = {note: number for number, note in enumerate(said, start=1)}
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft", "trl")
    )
    return "\n".join(
        [
            f"# Programs on {DEVICE}",
            "",
            f"Made by `python benchmarks/programs` ({versions}). Each program is run on simulated "
            f"GPUs with `llmmem exec` ({DEVICE}, or more of them where it has several ranks) and "
            "estimated with `llmmem.estimate`. *Allocated*, *reserved*: peaks of the run, of several "
            "processes the highest. *Estimate, allocated* and *reserved*: how far it is from them, "
            'in bytes; "equal" is to the byte. *s*: seconds of the run and of the estimate, imports '
            "included. *Notes*: of the run and of the estimate, listed at the end. All figures are "
            "in the CSV file beside this page.",
            "",
            summary(rows),
            *(
                line
                for library, of_library in groupby(rows, lambda row: known[row.program].folder)
                for line in section(library, list(of_library), known, notes)
            ),
            "",
            "## Notes",
            "",
            *(f"{number}. {note}" for note, number in notes.items()),
            "",
        ]
    )


def section(
    library: str, rows: Sequence[Row], known: Mapping[str, Program], notes: Mapping[str, int]
) -> list[str]:
    """One library's table."""
    lines = [cells(row, known[row.program], notes) for row in rows]
    title = library if library == DISTRIBUTED else f"{library} {rows[0].version}"
    return ["", f"## {title}", "", tabulate(lines, "keys", "pipe", disable_numparse=True)]


def remarks(row: Row) -> list[str]:
    """The notes of the run and of the estimate, without the bytes of this program in them."""
    return [
        note.partition(BOUND)[0].replace("\n", " ")
        for note in (*row.run.notes, *row.estimate.notes)
    ]


def cells(row: Row, program: Program, notes: Mapping[str, int]) -> dict[str, str]:
    """A row of the Markdown table, by column."""
    run, estimated = row.run, row.estimate
    errors = " / ".join(dict.fromkeys(filter(None, (run.error, estimated.error))))
    numbers = sorted({notes[note] for note in remarks(row)})
    return {
        "program": row.program.partition("/")[2],
        "what it does": program.about.rstrip("."),
        "run": run.outcome,
        "allocated": format_size(run.allocated),
        "reserved": format_size(run.reserved),
        "estimate": row.verdict,
        "estimate, allocated": difference(estimated.allocated, run.allocated),
        "estimate, reserved": difference(estimated.reserved, run.reserved),
        "s": f"{run.seconds:.0f} + {estimated.seconds:.0f}",
        "notes": ", ".join(map(str, numbers)),
        "why not": textwrap.shorten(errors, LONGEST_REASON).replace("|", "\\|"),
    }


def difference(estimated: int | None, peak: int | None) -> str:
    """How far an estimate is from a peak, in bytes and in percent."""
    if estimated is None or peak is None:
        return "-"
    if estimated == peak:
        return "equal"
    return f"{estimated - peak:+,} ({100 * (estimated - peak) / max(peak, 1):+.2f}%)"


if __name__ == "__main__":
    main()
