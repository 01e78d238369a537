"""What measuring costs a test: suites of small tests, with and without --llmmem-report.

    python benchmarks/plugin_cost.py

Writes ``reports/plugin-cost.md`` and ``.csv``. A conftest takes the time of each test, from before its
setup to after its teardown, by the clock and of the processor; what is told is the median over the
tests of a suite, and the median without a report is taken off it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from tabulate import tabulate
from timing import Seconds, speed_of_machine

from llmmem.versions import library_versions

REPORTS = Path(__file__).parents[1] / "reports"
DEVICE = "sim:rtx4090"
TESTS = 200

CONFTEST = """
import json, time
import pytest
import torch, transformers  # what suites of this field have imported

TIMES = []

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    clock, processor = time.perf_counter(), time.process_time()
    try:
        return (yield)
    finally:
        TIMES.append((time.perf_counter() - clock, time.process_time() - processor))

def pytest_sessionfinish():
    with open("times.json", "w") as file:
        json.dump(TIMES, file)
"""

BODIES = {
    "does not touch the device": "assert torch.ones(3).sum() == 3",
    "allocates a tensor": "torch.empty(1 << 20, device='cuda')",
    "takes a training step": (
        "model = torch.nn.Linear(512, 512).cuda()\n"
        "    model(torch.randn(8, 512, device='cuda')).sum().backward()"
    ),
}
SUITE = """
import pytest
import torch

{marker}
@pytest.mark.parametrize("number", range({count}))
def test_it(number):
    {body}
"""
MARKERS = {"": "", "marked": '@pytest.mark.max_vram("20GiB")'}
WAYS = {"without a report": (), "with a report": ("--llmmem-report=report.csv",)}


def time_of_a_test(body: str, marker: str, options: tuple[str, ...]) -> Seconds:
    """The median time of the tests of a suite that all do the same; the first is left out."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "conftest.py").write_text(CONFTEST)
        suite = SUITE.format(marker=marker, count=TESTS, body=body)
        Path(directory, "test_suite.py").write_text(suite)
        command = [sys.executable, "-m", "pytest", "-q", f"--llmmem-device={DEVICE}", *options]
        subprocess.run(command, cwd=directory, check=False, capture_output=True)
        times = json.loads(Path(directory, "times.json").read_text())
    assert len(times) == TESTS
    return Seconds.of(times[1:])


def rows() -> list[dict[str, object]]:
    """One row per kind of test, in milliseconds."""
    found: list[dict[str, object]] = []
    for what, body in BODIES.items():
        bare, reported = (time_of_a_test(body, "", options) for options in WAYS.values())
        found.append(row(what, bare, reported))
        if what != "does not touch the device":
            marked = time_of_a_test(body, MARKERS["marked"], WAYS["with a report"])
            found.append(row(f"{what}, marked", bare, marked))
    return found


def row(what: str, bare: Seconds, measured: Seconds) -> dict[str, object]:
    """What measuring adds to a test."""
    return {
        "a test that": what,
        "clock_ms": 1000 * (measured.wall - bare.wall),
        "processor_ms": 1000 * (measured.processor - bare.processor),
        "unmeasured_clock_ms": 1000 * bare.wall,
    }


def main() -> None:
    """Take all times and write the report."""
    load_before = os.getloadavg()[0]
    frame = pd.DataFrame(rows())
    frame.round(2).to_csv(REPORTS / "plugin-cost.csv", index=False)
    load = f"load average {load_before:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    versions = library_versions()
    table = tabulate(
        frame.to_numpy().tolist(),
        headers=["a test that", "added, clock", "added, processor", "without a report, clock"],
        tablefmt="github",
        floatfmt=".1f",
    )
    text = f"""# What measuring costs a test

Made by `python benchmarks/plugin_cost.py`.

- machine: {platform.machine()}, {os.cpu_count()} cores, {load}, Python {platform.python_version()};
  {speed_of_machine()}
- versions: {", ".join(f"{name} {number}" for name, number in versions.items() if number)}

What `--llmmem-report` adds to a test on `{DEVICE}`, in milliseconds: medians over suites of {TESTS}
tests, torch and transformers being imported, less the medians of the same tests without a report.
With the marker `max_vram`, the lines that hold the peak are recorded too.

{table}
"""
    (REPORTS / "plugin-cost.md").write_text(text)


if __name__ == "__main__":
    main()
