"""Every type of the installed PEFT is an adapter of a setup: it runs, and a trace equals the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROGRAM = Path(__file__).parents[1] / "programs" / "peft_methods_here.py"

#: It clusters singular vectors, which nothing computes here, and wants scikit-learn for that.
NOT_RUN = {"ADAMSS"}
#: It decomposes the weights on the host.
NOT_TRACED = {"FROD"}

#: By method the allocated peaks in bytes of its run and of its trace, or why there is none.
Outcomes: TypeAlias = "dict[str, dict[str, int | str]]"


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    once: Callable[[str, Callable[[], str]], str],
) -> Outcomes:
    directory = tmp_path_factory.mktemp("peft")
    found: Outcomes = json.loads(once("peft", lambda: run_methods(directory)))
    return found


def run_methods(directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_type_of_peft_but_one_takes_a_training_step(outcomes: Outcomes) -> None:
    stopped = {
        name: both["run"]
        for name, both in outcomes.items()
        if isinstance(both["run"], str) and not name.startswith("LORA (")
    }
    assert stopped.keys() == NOT_RUN, stopped


def test_the_adapter_decides_the_peak(outcomes: dict[str, Any]) -> None:
    # Householder reflections keep matrices of the size of the weights for the backward pass, and
    # OSF trains most of the weights; LoRA does neither.
    lora = outcomes["LORA"]["run"]
    assert outcomes["HRA"]["run"] > 1.25 * lora
    assert outcomes["OSF"]["run"] > 1.5 * lora


def test_the_trace_of_every_method_that_runs_but_one_equals_the_run(outcomes: Outcomes) -> None:
    ran = {name: both for name, both in outcomes.items() if isinstance(both["run"], int)}
    other = {name: both for name, both in ran.items() if both["trace"] != both["run"]}
    assert other.keys() == NOT_TRACED, other


def test_what_is_not_traced_is_said_with_the_reason(outcomes: Outcomes) -> None:
    for name in NOT_RUN | NOT_TRACED:
        assert f"peft_type {name} cannot be traced: it " in str(outcomes[name]["trace"])
