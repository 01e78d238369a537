"""Random programs never bring the account of the simulated GPU out of balance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "simgpu_fuzz.py"


@pytest.mark.parametrize(
    ("backend", "seeds"), [("native", range(1, 9)), ("cudaMallocAsync", range(1, 4))]
)
def test_the_account_holds_its_invariants_under_random_programs(backend: str, seeds: range) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, seeds)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTORCH_ALLOC_CONF": f"backend:{backend}"},
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 2 * len(seeds)
    wrong = [outcome for outcome in outcomes if "error" in outcome]
    # The seed that is named repeats the program: python simgpu_fuzz.py SEED
    assert not wrong, "\n".join(f"seed {o['seed']}, {o['kind']}: {o['error']}" for o in wrong)
    # Every program ran out of memory, or was refused something, on its way.
    assert all(outcome["met"] for outcome in outcomes)
