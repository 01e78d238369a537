"""What a person is told where a figure follows from a value that is not known."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from llmmem import load_report, simgpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("simulated_gpu")

SUITE = """
    import pytest
    import torch

    def picked():
        scores = torch.randn(64, 8, device="cuda")
        return torch.zeros(64, 1 << 16, device="cuda")[scores.argmax(-1) == 4]

    @pytest.mark.max_vram("1MiB")
    def test_over():
        assert len(picked()) == 8

    @pytest.mark.max_vram("4GiB")
    def test_fails_by_itself():
        assert len(picked()) == 64

    @pytest.mark.max_vram("4GiB")
    def test_is_sure():
        mask = torch.arange(64, device="cuda") < 8
        assert len(torch.zeros(64, 1 << 16, device="cuda")[mask]) == 8

    @pytest.mark.max_vram("4GiB")
    def test_message_shows_a_tensor():
        values = torch.randn(64, device="cuda")
        assert values is None

    @pytest.mark.max_vram("4GiB")
    def test_prints_a_tensor():
        print(torch.randn(64, device="cuda"))
"""


def test_verdicts_and_reports_name_the_line_that_read_a_guess(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    reports = ("--llmmem-report=out.csv", "--llmmem-report")
    result = run_pytest(SUITE, "--llmmem-device=sim:rtx4090", *reports)
    result.assert_outcomes(passed=2, failed=3)
    line = "a guess: sizes or branches * in picked (nonzero)*"
    result.stdout.fnmatch_lines_random(
        [f"  note         {line}", f"E *llmmem: this may follow from {line}", "*sizes*guessed*"]
    )
    notes = load_report(pytester.path / "out.csv").set_index("test")["notes"]
    guesses = {test.rpartition("::")[2]: "a guess: " in text for test, text in notes.items()}
    assert guesses == {
        "test_over": True,
        "test_fails_by_itself": True,
        "test_is_sure": False,
        "test_message_shows_a_tensor": False,
        "test_prints_a_tensor": True,
    }
    assert not notes.str.contains("value_reads.py").any()  # the plugin's own lines


@pytest.mark.skipif(bool(simgpu.check()), reason="; ".join(map(str, simgpu.check())))
def test_a_program_that_fails_after_a_guess_is_told_so(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\n"
        "found = (torch.randn(8, device='cuda') > 0).nonzero()\n"
        "assert len(found), 'nothing was found'\n"
    )
    command = [sys.executable, "-m", "llmmem", "exec", "--device", "sim:h100", "--json", "--"]
    done = subprocess.run(
        [*command, sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert (
        "AssertionError: nothing was found\nllmmem: this may follow from a guess: " in done.stderr
    )
    document = json.loads(done.stdout)
    (guess,) = [note for note in document["notes"] if note.startswith("a guess: ")]
    assert "program.py:2 in <module> (nonzero)" in guess
