"""The tests of other libraries under the plugin, on the simulated GPU.

    python benchmarks/suites.py DIRECTORY [--limit SECONDS] [SUITE ...]

Runs tests of bitsandbytes, PEFT, accelerate, TRL and Liger with ``--llmmem-device`` and
``--llmmem-report``, in one process and with two workers of pytest-xdist, and writes
``reports/suites.md`` and ``.csv``. :data:`SUITES` names the files of tests: those that use a GPU
and build their models themselves, since no model hub is there.

``DIRECTORY/SUITE`` is a checkout that fits the installed library. Where there is none, the source
distribution of the installed version is downloaded and unpacked there; :data:`NOT_DISTRIBUTED`
names the suites whose distributions hold no tests: for a checkout of another version, put that version of
the library on ``PYTHONPATH``. Results are kept in ``DIRECTORY/results``: a
suite that has some does not run again. With names of suites, only these run. A run is interrupted
after ``--limit`` seconds (default 1200), and the report says so.

Where a test fails and nothing known explains it, it runs again without the plugin and without a
GPU; where it compares bytes of memory, alone on the simulated GPU and without a report. The exit code
is 1 where one passes there, or where a record is wrong. The tests need
parameterized, scipy and lion-pytorch.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from llmmem.catalogue.gpus import find_gpu
from llmmem.report import load_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEVICE = "sim:h100"
REPORT = Path(__file__).parents[1] / "reports" / "suites.md"
LONGEST_MESSAGE = 160
#: Seconds that a run of a suite has to end, once it was interrupted at the limit of time.
GRACE = 60
#: How far peaks of two runs may differ: when Python frees cycles, and what tests before have kept.
MOST_DRIFT = 1e-3
#: Workers of pytest-xdist; 0 is a session in one process.
WORKERS = (0, 2)


@dataclass(frozen=True)
class Suite:
    """Some tests of a library."""

    distribution: str  #: on PyPI
    tests: str  #: the folder of its tests, in the checkout
    files: Sequence[str]  #: in that folder
    options: Sequence[str] = ()  #: of pytest


SUITES: Mapping[str, Suite] = {
    "accelerate": Suite(
        "accelerate",
        "tests",
        (
            "test_accelerator.py",
            "test_activation_checkpointing_offload.py",
            "test_big_modeling.py",
            "test_hooks.py",
            "test_kwargs_handlers.py",
            "test_memory_utils.py",
            "test_modeling_utils.py",
            "test_optimizer.py",
        ),
    ),
    "bitsandbytes": Suite(
        "bitsandbytes",
        "tests",
        ("test_linear8bitlt.py", "test_modules.py"),
        ("-k", "cuda and not compile"),
    ),
    "liger": Suite(
        "liger-kernel",
        "test",
        ("transformers/test_geglu.py",),
    ),
    "peft": Suite(
        "peft",
        "tests",
        ("test_mixed.py", "test_lorafa.py", "test_riemannian_lora.py", "test_loraplus.py"),
    ),
    "trl": Suite(
        "trl",
        "tests",
        ("test_activation_offloading.py", "test_utils.py", "experimental/test_gold_trainer.py"),
    ),
}

#: Suites whose source distributions hold no tests, and why they cannot be had from PyPI.
NOT_DISTRIBUTED: Mapping[str, str] = {
    "bitsandbytes": "has no source distribution of versions after 0.42",
    "trl": "has a source distribution without tests",
}

HUB = "needs a model or a dataset of the hub"
VALUES = "compares values, which are not computed"
FOLLOWS = "fails on what follows from values, which are not computed"
LIBRARY = "needs a library that is not installed"
HARDWARE = "needs other or more hardware"
SLOW = "runs only on request (slow)"
CHECKOUT = "skips or fails for a reason of its own"
BYTES = "compares bytes of memory"
ALONE = "depends on an earlier test: fails alone on the simulated GPU without a report, too"
ANYWHERE = "fails without the plugin and without a GPU too"
OURS = "not explained"

#: What a failure or a skip says, and its cause; the first that is found counts.
CAUSES: Sequence[tuple[str, str]] = (
    (r"\bheld \d+ bytes", BYTES),
    (r"^values are not computed on a simulated GPU|^llmmem: .*values are not computed", VALUES),
    (r"huggingface\.co|LocalEntryNotFound|[Oo]ffline|model hub|is not a local folder", HUB),
    (r"llmmem: (values are not computed|this may follow from)", FOLLOWS),
    (r"cannot import name", "is of a version that does not fit the installed library"),
    (r"\bslow\b", SLOW),
    (r"requires (multiple|at least|only a CPU|FP8|XPU|NPU|HPU|MLU|MPS|TPU)", HARDWARE),
    (r"No module named|requires? |not installed|not available|is required", LIBRARY),
)


@dataclass(frozen=True)
class Result:
    """How one test ended."""

    suite: str
    workers: int  #: of pytest-xdist
    test: str  #: pytest's node id
    outcome: str  #: ``passed``, ``failed`` or ``skipped``
    cause: str = ""  #: why it failed or skipped
    message: str = ""  #: what the failure or the skip says


@dataclass(frozen=True)
class Run:
    """One run of a suite."""

    suite: str
    workers: int
    results: Sequence[Result]
    peaks: Mapping[str, Mapping[str, int]]  #: by test and metric, in bytes
    wrong: Sequence[str]  #: what is wrong with the report
    interrupted: bool
    records: int = field(default=0)


def main(directory: Path, chosen: Sequence[str], limit: float) -> int:
    """Run what has no results yet, and write the report; the exit code."""
    for name in chosen or SUITES:
        checkout = find_checkout(directory, name)
        for workers in WORKERS if checkout else ():
            run_suite(directory, name, workers, limit)
    runs = [
        read_run(directory, name, workers)
        for name in SUITES
        for workers in WORKERS
        if results_of(directory, name, workers).with_suffix(".xml").exists()
    ]
    differences = [
        line for name in SUITES for line in compare([r for r in runs if r.suite == name])
    ]
    REPORT.write_text(page(directory, runs, differences), encoding="utf-8")
    write_csv([result for run in runs for result in run.results], REPORT.with_suffix(".csv"))
    bad = [f"{r.suite} -n {r.workers}: {r.test}: {r.message}" for r in unexplained(runs)]
    bad += [line for run in runs for line in run.wrong] + differences
    print("\n".join(bad))
    return 1 if bad else 0


def find_checkout(directory: Path, name: str) -> bool:
    """Whether the tests of a suite are there, or could be downloaded."""
    suite = SUITES[name]
    target = directory / name
    if not target.exists() and name not in NOT_DISTRIBUTED:
        download(suite, target)
    if (target / suite.tests).is_dir():
        return True
    print(f"{name}: not run: no checkout {target}, and {name} {NOT_DISTRIBUTED[name]}")
    return False


def download(suite: Suite, target: Path) -> None:
    """Unpack the source distribution of the installed version of a library."""
    with tempfile.TemporaryDirectory() as scratch:
        requirement = f"{suite.distribution}=={version(suite.distribution)}"
        options = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "-d", scratch]
        program = [sys.executable, "-m", "pip", "download", "--quiet", *options, requirement]
        subprocess.run(program, check=True)
        [archive] = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        [unpacked] = [path for path in Path(scratch).iterdir() if path.is_dir()]
        shutil.move(unpacked, target)


def results_of(directory: Path, name: str, workers: int) -> Path:
    """The results of a run, without a suffix."""
    return directory / "results" / f"{name}-n{workers}"


def run_suite(directory: Path, name: str, workers: int, limit: float) -> None:
    """Run a suite, unless it has results, and run again what fails for no known reason."""
    target = results_of(directory, name, workers).resolve()
    target.parent.mkdir(exist_ok=True)
    suite = SUITES[name]
    with tempfile.TemporaryDirectory() as scratch:
        # Without the library itself, which the checkout has too: the installed one is tested.
        shutil.copytree(directory / name / suite.tests, Path(scratch) / suite.tests)
        (Path(scratch) / suite.tests / "__init__.py").touch()  # PEFT's distribution lacks it
        on_gpu = f"--llmmem-device={DEVICE}"
        if not target.with_suffix(".xml").exists():
            tests = [*suite.options, *(f"{suite.tests}/{file}" for file in suite.files)]
            under_plugin = ["-n", str(workers), on_gpu]
            under_plugin += [f"--llmmem-report={target.with_suffix('.csv')}"]
            run_pytest(Path(scratch), target, [*under_plugin, *tests], {}, limit)
        results = read_results(name, workers, target)
        failing = [result.test for result in results if result.cause == OURS]
        elsewhere = without_plugin(target)
        if failing and not elsewhere.with_suffix(".xml").exists():
            hidden = {"CUDA_VISIBLE_DEVICES": ""}
            run_pytest(Path(scratch), elsewhere, ["-p", "no:llmmem", *failing], hidden, limit)
        for result in results:
            alone = by_itself(target, result)
            if result.cause == BYTES and not alone.with_suffix(".xml").exists():
                run_pytest(Path(scratch), alone, [on_gpu, result.test], {}, limit)


def without_plugin(target: Path) -> Path:
    """The results of what ran again without the plugin and without a GPU."""
    return target.with_name(f"{target.name}-without-plugin")


def by_itself(target: Path, result: Result) -> Path:
    """The results of a test that ran again alone, on the simulated GPU and without a report."""
    test = re.sub(r"\W+", "-", result.test.rpartition("::")[2])
    return target.with_name(f"{target.name}-alone-{test}")


def run_pytest(
    folder: Path, target: Path, options: list[str], settings: Mapping[str, str], limit: float
) -> None:
    """Run pytest in a folder; interrupt it when it takes too long.

    The checkout's own configuration is made for its CI. Without a cache for the hub, what is found
    does not depend on what was downloaded before.
    """
    common = ["-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider", "-q", "-ra"]
    common += ["--continue-on-collection-errors"]
    common += ["--junitxml", str(target.with_suffix(".xml")), "-o", "junit_family=xunit1"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    program = [sys.executable, "-m", "pytest", *common, *options]
    with target.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            program, cwd=folder, env=os.environ | offline | settings, stdout=log, stderr=log
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            finally:
                process.kill()


def read_run(directory: Path, name: str, workers: int) -> Run:
    """What a run left."""
    target = results_of(directory, name, workers)
    elsewhere = without_plugin(target)
    outcomes = {}
    if elsewhere.with_suffix(".xml").exists():
        outcomes = {result.test: result for result in read_results(name, workers, elsewhere)}
    results = [
        explained_by(result, outcomes.get(result.test))
        if result.cause != BYTES
        else explained_alone(result, read_results(name, workers, by_itself(target, result)))
        for result in read_results(name, workers, target)
    ]
    rows = load_report(target.with_suffix(".csv"))
    interrupted = bool((rows["phase"] == "session").any())
    totals = rows[rows["phase"] == "total"].to_dict("records")
    peaks = {row["test"]: peaks_of(row) for row in totals}
    return Run(name, workers, results, peaks, wrong(totals, results), interrupted, len(totals))


def read_results(name: str, workers: int, target: Path) -> list[Result]:
    """The results of the tests in pytest's XML report.

    A test that fails and whose teardown fails too is there twice: the first counts. One that was
    interrupted has no name.
    """
    results: dict[str, Result] = {}
    for case in ElementTree.parse(target.with_suffix(".xml")).iter("testcase"):
        if "name" in case.attrib:
            result = ending(case, name, workers)
            results.setdefault(result.test, result)
    return list(results.values())


def ending(case: ElementTree.Element, name: str, workers: int) -> Result:
    """How a test ended, and the cause of it."""
    test = node_id(case)
    problem = next((child for child in case if child.tag in OUTCOMES), None)
    if problem is None:
        return Result(name, workers, test, "passed")
    message = problem.attrib.get("message", "")
    outcome = OUTCOMES[problem.tag]
    says = message if outcome == "skipped" else f"{message}\n{problem.text or ''}"
    cause = cause_of(says, outcome)
    return Result(name, workers, test, outcome, cause, readable(message))


#: What an element of pytest's XML report says of a test.
OUTCOMES: Mapping[str, str] = {"failure": "failed", "error": "failed", "skipped": "skipped"}


def node_id(case: ElementTree.Element) -> str:
    """The node id of a test in pytest's XML report.

    Of a test that unittest itself skips, the report has a file of unittest, and of the test the module.
    """
    file, group = case.attrib.get("file", ""), case.attrib.get("classname", "")
    if file.startswith(".."):
        parts = list(takewhile(lambda part: not part[:1].isupper(), group.split(".")))
        file = f"{'/'.join(parts)}.py"
    module = file.removesuffix(".py").replace("/", ".")
    classes = group.removeprefix(module).strip(".").split(".")
    return "::".join([file, *filter(None, classes), case.attrib["name"]])


def cause_of(text: str, outcome: str) -> str:
    """Why a test failed or skipped, by what it says."""
    for pattern, cause in CAUSES:
        if re.search(pattern, text, re.MULTILINE):
            return cause
    return OURS if outcome == "failed" else CHECKOUT


def explained_by(result: Result, alone: Result | None) -> Result:
    """A result, with what the same test did without the plugin."""
    if result.cause != OURS or alone is None or alone.outcome != "failed":
        return result
    same = result.message.split(":")[0] == alone.message.split(":")[0]
    cause = ANYWHERE if same or alone.cause == OURS else alone.cause
    return Result(*(asdict(result) | {"cause": cause}).values())


def explained_alone(result: Result, alone: Sequence[Result]) -> Result:
    """A result that compares bytes, with what the same test did alone."""
    cause = ALONE if [each.outcome for each in alone] == ["failed"] else OURS
    return Result(*(asdict(result) | {"cause": cause}).values())


def readable(message: str) -> str:
    """A message on one line, without the folders of this machine."""
    return textwrap.shorten(re.sub(r"(?<![\w.])/[\w.+/-]*/", "", message), LONGEST_MESSAGE)


def peaks_of(row: Mapping[str, object]) -> dict[str, int]:
    """The peaks of a row of a report that are known, in bytes by metric."""
    metrics = ("allocated", "reserved", "process")
    found = {metric: row[f"peak_{metric}_bytes"] for metric in metrics}
    return {metric: int(str(value)) for metric, value in found.items() if isinstance(value, int)}


def wrong(rows: Sequence[Mapping[str, object]], results: Sequence[Result]) -> list[str]:
    """What is wrong with the records of a run."""
    outcomes = {result.test: result for result in results}
    times = Counter(str(row["test"]) for row in rows)
    lines = [f"{test}: {times[test]} records" for test in times if times[test] > 1]
    return lines + [line for row in rows for line in wrong_record(row, outcomes)]


def wrong_record(row: Mapping[str, object], outcomes: Mapping[str, Result]) -> list[str]:
    """What is wrong with a record, beside how pytest says that its test ended."""
    test, outcome, peaks = str(row["test"]), row["outcome"], peaks_of(row)
    result = outcomes.get(test)
    sizes = [peaks.get(metric, 0) for metric in ("allocated", "reserved", "process")]
    checks = {
        "is of no test that pytest knows": result is None,
        "has peaks out of order": sizes != sorted(sizes),
        "has more than the card": sizes[-1] > find_gpu("h100").total_bytes,
        f"is {outcome}, and the test passed": result is not None
        and result.outcome == "passed"
        and (outcome != "ok" or isinstance(row["message"], str)),
        "is complete, and the test failed": result is not None
        and result.outcome == "failed"
        and not isinstance(row["message"], str),
    }
    return [f"the record of {test} {text}" for text, holds in checks.items() if holds]


def compare(runs: Sequence[Run]) -> list[str]:
    """Where the runs of a suite differ: in how a test ended, or in its peaks."""
    if len(runs) < 2:
        return []
    one, two = ({result.test: result.outcome for result in run.results} for run in runs)
    lines = [
        f"{runs[0].suite} {test}: {one[test]} in one process, {two[test]} with workers"
        for test in sorted(one.keys() & two.keys())
        if one[test] != two[test]
    ]
    first, second = (run.peaks for run in runs)
    return lines + [
        f"{runs[0].suite} {test}: {first[test]} in one process, {second[test]} with workers"
        for test in sorted(first.keys() & second.keys())
        if drift(first[test], second[test]) > MOST_DRIFT
    ]


def drift(one: Mapping[str, int], two: Mapping[str, int]) -> float:
    """How far apart the peaks of two runs are: the largest difference, as a share."""
    return max((abs(one[name] - two.get(name, 0)) / max(one[name], 1) for name in one), default=0.0)


def unexplained(runs: Iterable[Run]) -> list[Result]:
    """The tests that fail, and nothing says why."""
    return [result for run in runs for result in run.results if result.cause == OURS]


def write_csv(results: Iterable[Result], path: Path) -> None:
    """Write a row for each test that did not pass."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Result.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(result) for result in results if result.outcome != "passed")


def page(directory: Path, runs: Sequence[Run], differences: Sequence[str]) -> str:
    """The report as Markdown."""
    libraries = ["torch", "transformers", *(suite.distribution for suite in SUITES.values())]
    missing = [name for name in SUITES if name not in {run.suite for run in runs}]
    return "\n".join(
        [
            "# The tests of other libraries under the plugin",
            "",
            f"Made by `python benchmarks/{Path(__file__).name} DIRECTORY`: tests that use a GPU and build "
            f"their models themselves, run on `{DEVICE}` with `--llmmem-report`, in one process "
            "(workers 0) and with two workers of pytest-xdist. Nothing in the tests is changed; their "
            "folder is run without the library beside it, so that the installed one is tested, and "
            "without its pytest configuration. No model hub is there. `records` counts the tests that "
            "the plugin's report has a row of: those that allocated on the GPU.",
            "",
            "Installed: " + ", ".join(f"{name} {version(name)}" for name in libraries) + ".",
            "",
            tabulate([counts(run) for run in runs], "keys", "pipe"),
            "",
            "Of each suite these tests ran, and no others; they come from:",
            "",
            *(f"- {name}: {origin(directory, name)}: {files_of(name)}" for name in SUITES),
            *(["", f"Not run: {', '.join(missing)}."] if missing else []),
            "",
            "## Records",
            "",
            "Each record is held to how pytest says that its test ended: a test that passes has the "
            "outcome `ok` and no remark, one that fails has a remark that what it would have taken is "
            "not known, no test has two, peaks are in order and within the card. Between the two runs "
            "of a suite, outcomes are compared, and peaks to 0.1%: Python frees reference cycles of a "
            "loop at other times, and tests keep tensors for those that follow them in a process.",
            "",
            *(f"- {line}" for run in runs for line in run.wrong),
            *(f"- {line}" for line in differences),
            *exact(runs),
            *([] if differences or any(run.wrong for run in runs) else ["None is wrong."]),
            *section("Causes", causes(runs), "None."),
            *section("Tests that fail", failures(runs), "None."),
            "",
        ]
    )


def exact(runs: Sequence[Run]) -> list[str]:
    """For each suite, how many tests have the same peaks in both runs."""
    lines = []
    for name in SUITES:
        peaks = [run.peaks for run in runs if run.suite == name]
        if len(peaks) == len(WORKERS):
            both = peaks[0].keys() & peaks[1].keys()
            same = sum(peaks[0][test] == peaks[1][test] for test in both)
            lines.append(f"- {name}: {same} of {len(both)} tests have the same peaks to the byte")
    return [*lines, ""]


def origin(directory: Path, name: str) -> str:
    """Where the tests of a suite come from."""
    if name in NOT_DISTRIBUTED:
        return f"a checkout that was given ({name} {NOT_DISTRIBUTED[name]})"
    downloaded = (directory / name / "PKG-INFO").exists()
    return "the source distribution" if downloaded else "a checkout that was given"


def files_of(name: str) -> str:
    """The tests of a suite that run."""
    suite = SUITES[name]
    options = f" with `{' '.join(suite.options)}`" if suite.options else ""
    return ", ".join(f"`{file}`" for file in suite.files) + options


def counts(run: Run) -> dict[str, object]:
    """How the tests of a run ended."""
    outcomes = Counter(result.outcome for result in run.results)
    return {
        "suite": run.suite,
        "workers": run.workers,
        "tests": len(run.results),
        "passed": outcomes["passed"],
        "skipped": outcomes["skipped"],
        "failed": outcomes["failed"],
        "of these ours": sum(
            result.outcome == "failed" and result.cause == OURS for result in run.results
        ),
        "records": run.records,
        "to the end": "no: stopped at the limit of time" if run.interrupted else "yes",
    }


def causes(runs: Sequence[Run]) -> list[dict[str, object]]:
    """How many tests failed or skipped for each cause."""
    totals = Counter(
        (result.suite, result.outcome, result.cause, result.workers)
        for run in runs
        for result in run.results
        if result.cause
    )
    kinds = sorted({key[:3] for key in totals})
    return [
        {"suite": suite, "outcome": outcome, "cause": cause}
        | {f"-n {workers}": totals[suite, outcome, cause, workers] for workers in WORKERS}
        for suite, outcome, cause in kinds
    ]


def failures(runs: Sequence[Run]) -> list[dict[str, object]]:
    """The tests that fail, but for want of a hub; one row where the runs agree."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for result in (result for run in runs for result in run.results):
        if result.outcome == "failed" and result.cause != HUB:
            key = (result.suite, result.test, result.cause, result.message.replace("|", "\\|"))
            rows.setdefault(key, []).append(str(result.workers))
    return [
        {"suite": suite, "test": f"`{test}`", "workers": ", ".join(workers)}
        | {"cause": cause, "message": message}
        for (suite, test, cause, message), workers in rows.items()
    ]


def section(title: str, rows: Sequence[Mapping[str, object]], empty: str) -> list[str]:
    """A table under a title."""
    table = tabulate(rows, "keys", "pipe", disable_numparse=True) if rows else empty
    return ["", f"## {title}", "", table]


if __name__ == "__main__":
    # Started in the background, this may be ignored; what is started then ignores it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("suites", nargs="*", metavar="SUITE")
    parser.add_argument("--limit", type=float, default=1200, metavar="SECONDS")
    given = parser.parse_intermixed_args()
    if unknown := sorted(set(given.suites) - set(SUITES)):
        parser.error(f"unknown suite {', '.join(unknown)} (accepted: {', '.join(SUITES)})")
    sys.exit(main(given.directory.resolve(), given.suites, given.limit))
