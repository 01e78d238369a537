"""The peaks on the simulated GPU are those that were recorded for the installed PyTorch.

They come from runs of the simulated GPU: what is guarded is that they stay what they are, and why
they differ between versions of PyTorch is told in ``reports/versions.md``.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from llmmem import simgpu
from llmmem.versions import library_versions

PEAKS = Path(__file__).with_name("peaks.py")
RECORDED = Path(__file__).parents[1] / "data" / "versions.csv"
FIGURES = ("outcome", "peak_allocated_bytes", "peak_reserved_bytes")

Row = dict[str, str]

pytestmark = pytest.mark.skipif(
    bool(simgpu.check()), reason=f"no simulated GPU here: {', '.join(map(str, simgpu.check()))}"
)


def release(torch: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in torch.split(".")[:2])


@pytest.fixture(scope="module")
def found() -> dict[str, Row]:
    done = subprocess.run(
        [sys.executable, str(PEAKS)], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return {row["setup"]: row for row in csv.DictReader(StringIO(done.stdout))}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Row]:
    """The rows of the installed PyTorch, or of the newest one before it."""
    with RECORDED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    installed = release(library_versions()["torch"] or "")
    newest = max(release(row["torch"]) for row in rows if release(row["torch"]) <= installed)
    return {row["setup"]: row for row in rows if release(row["torch"]) == newest}


@pytest.mark.parametrize("setup", ["lora", "lora, expandable segments", "qlora", "lora on a V100"])
def test_the_peaks_are_the_recorded_ones(
    found: dict[str, Row], recorded: dict[str, Row], setup: str
) -> None:
    now, before = ([rows[setup][key] for key in FIGURES] for rows in (found, recorded))
    assert now == before, f"recorded with {recorded[setup]}, now with {found[setup]}"
