"""Values that decide sizes are followed by one rule on the simulated GPU and in a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llmmem
from llmmem import simgpu
from llmmem.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "programs"))
import value_programs

if TYPE_CHECKING:
    from collections.abc import Callable

needs_simulated_gpu = pytest.mark.skipif(
    bool(simgpu.check()), reason=f"no simulated GPU here: {', '.join(map(str, simgpu.check()))}"
)


def run_simulated(**environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, value_programs.__file__],
        env=os.environ | simgpu.program_environment("h100") | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    return run_simulated()


def traced(program: Callable[[str], list[Any]]) -> list[Any]:
    seen: list[Any] = []
    trace = llmmem.estimate(lambda: seen.extend(program("cuda")), "h100")
    assert trace.outcome == "ok", trace.message
    return seen


@needs_simulated_gpu
@pytest.mark.parametrize("name", value_programs.KNOWN)
def test_known_values_read_on_a_simulated_gpu_as_on_the_host(
    simulated: dict[str, Any], name: str
) -> None:
    assert simulated["seen"][name] == value_programs.KNOWN[name]("cpu")


@pytest.mark.parametrize("name", value_programs.KNOWN)
def test_known_values_read_in_a_trace_as_on_the_host(name: str) -> None:
    program = value_programs.KNOWN[name]
    assert traced(program) == program("cpu")


@needs_simulated_gpu
@pytest.mark.parametrize("name", value_programs.ALIKE)
def test_what_follows_from_unknown_values_is_the_same_in_both(
    simulated: dict[str, Any], name: str
) -> None:
    assert simulated["seen"][name] == traced(value_programs.ALIKE[name])


def test_choices_are_valid_and_spread_evenly() -> None:
    rows, columns, masked, best, *_ = traced(value_programs.choices)
    assert sorted(index for row in rows for index in row) == list(range(8))
    assert all(sorted(set(picked)) == sorted(picked) for picked in zip(*columns, strict=True))
    assert all(0 <= index < 4 for row in columns for index in row)
    assert all(4 <= index < 8 for row in masked for index in row)
    assert len(set(best)) == 4


def test_a_setting_has_all_rows_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMMEM_CHOICES", "same")
    rows, *_ = traced(value_programs.choices)
    assert rows == 4 * [[4, 5]]
    if not simgpu.check():
        assert run_simulated()["seen"]["choices"][0] == rows


def test_a_setting_of_choices_that_is_not_valid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMMEM_CHOICES", "fair")
    with pytest.raises(InputError, match=r"LLMMEM_CHOICES 'fair' \(accepted: even, same\)"):
        llmmem.estimate(lambda: None, "h100")


@needs_simulated_gpu
def test_a_simulated_run_says_where_it_read_a_guess(simulated: dict[str, Any]) -> None:
    sure, guessed = simulated["notes"]
    assert sure == []
    (note,) = guessed
    assert note.startswith("a guess: ")
    assert "value_programs.py:" in note
    assert "in reads_a_guess (nonzero)" in note


def test_a_trace_says_where_it_read_a_guess() -> None:
    sure = llmmem.estimate(lambda: value_programs.reads_a_sure_mask("cuda"), "h100")
    guessed = llmmem.estimate(lambda: value_programs.reads_a_guess("cuda"), "h100")
    assert not [text for text in sure.assumptions if text.startswith("a guess")]
    (note,) = [text for text in guessed.assumptions if text.startswith("a guess")]
    assert "in reads_a_guess (nonzero)" in note


def test_an_error_that_may_follow_from_a_guess_says_so() -> None:
    import torch

    def program() -> None:
        found = (torch.randn(8, device="cuda") > 0.5).nonzero()
        assert len(found), "nothing was found"

    with pytest.raises(AssertionError, match="nothing was found") as caught:
        llmmem.estimate(program, "h100")
    guesses = [note for note in caught.value.__notes__ if "this may follow from a guess: " in note]
    assert len(guesses) == 1
    assert "in program (nonzero)" in guesses[0]
