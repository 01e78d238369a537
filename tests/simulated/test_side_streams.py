"""``LLMMEM_SIDE_STREAMS`` in every way to a simulated GPU, and the notes in what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmmem import InputError, Runner, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("clean_environment")

MIB = 2**20
TINY = str(Path(__file__).parents[1] / "data" / "tiny_llama.json")

PROGRAM = """
import torch

def work(blocks=8):
    side = torch.cuda.Stream()
    for _ in range(blocks):
        x = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        x.record_stream(side)

def step():
    torch.nn.Linear(8, 8).cuda()(torch.randn(8, 8, device="cuda")).sum().backward()
"""

ACTIVATE = """
from llmmem import simgpu
simgpu.activate("h100")
"""

WINDOWS = """
from llmmem.measurement.window import Window
noted = []
with Window() as around:
    for part in (step, work, step):
        with Window() as window:
            part()
        noted.append(window)
for window in (*noted, around):
    print(any("LLMMEM_SIDE_STREAMS" in note for note in window.measurement.notes))
"""


@pytest.mark.parametrize(
    ("side_streams", "reserved", "said"),
    [
        ("early", 128, "LLMMEM_SIDE_STREAMS=late simulates the other extreme"),
        ("late", 512, "=late:"),
    ],
)
def test_a_program_ends_and_its_peaks_say_which_end_they_are(
    side_streams: str, reserved: int, said: str
) -> None:
    program = [sys.executable, "-c", PROGRAM + "work()"]
    done = subprocess.run(
        [sys.executable, "-m", "llmmem", "exec", "--json", "--device", "sim:h100", "--", *program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"LLMMEM_SIDE_STREAMS": side_streams},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (process,) = result["processes"]
    assert process["peak_reserved_bytes"] == reserved * MIB
    (note,) = (note for note in result["notes"] if "LLMMEM_SIDE_STREAMS" in note)
    assert said in note


def test_only_what_depends_on_it_has_the_note(run_python: Callable[[str], str]) -> None:
    assert run_python(ACTIVATE + PROGRAM + WINDOWS).split() == ["False", "True", "False", "True"]


def test_the_header_of_a_session_shows_the_setting(
    run_pytest: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMMEM_SIDE_STREAMS", "late")
    result = run_pytest("def test(): pass", "--llmmem-device=sim:h100")
    result.stdout.fnmatch_lines(["llmmem: device sim:h100 *, side streams: late"])
    monkeypatch.setenv("LLMMEM_SIDE_STREAMS", "sometimes")
    result = run_pytest("def test(): pass", "--llmmem-device=sim:h100")
    result.stderr.fnmatch_lines(
        ["ERROR: invalid LLMMEM_SIDE_STREAMS 'sometimes' (accepted: early, late)"]
    )


def test_a_runner_follows_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Setup(model=TINY, mode="forward", seq_len=64)
    with Runner("sim:h100") as runner:
        early = runner.run(tiny, estimate=False)
        monkeypatch.setenv("LLMMEM_SIDE_STREAMS", "late")
        late = runner.run(tiny, estimate=False)
        monkeypatch.setenv("LLMMEM_SIDE_STREAMS", "2")
        with pytest.raises(InputError, match="accepted: early, late"):
            runner.run(tiny, estimate=False)
    assert early.peaks == late.peaks  # it has no side streams
    assert not [note for note in early.notes if "LLMMEM_SIDE_STREAMS" in note]
    assert [note for note in late.notes if note.startswith("LLMMEM_SIDE_STREAMS=late")]
