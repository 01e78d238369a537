"""A small part of benchmarks/fuzz.py, which says what it holds hostile input to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from llmmem import simgpu

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def test_hostile_input_comes_to_a_result_or_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    counts = ["--setups=12", "--configs=8", "--commands=6"]
    device = "estimate" if simgpu.check() else "sim:h100"
    done = subprocess.run(
        [sys.executable, str(FUZZ), *counts, f"--device={device}", f"--report={tmp_path / 'r.md'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| setups        |      12 |" in (tmp_path / "r.md").read_text(encoding="utf-8")
