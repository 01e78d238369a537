"""The libraries of the simulated GPU, used by several threads at once, in the programs of
simgpu_threads.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parents[1] / "programs" / "simgpu_threads.py"


def outcome_of(program: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS), program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_program_forks_while_another_thread_frees_memory() -> None:
    assert outcome_of("forks_while_memory_is_freed") == 100


def test_a_kernel_is_launched_while_others_are_loaded() -> None:
    assert outcome_of("launches_while_kernels_are_loaded") == [0]
