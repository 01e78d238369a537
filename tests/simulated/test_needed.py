"""What an estimate says a step needs, beside runs on a card that has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmmem import simgpu
from llmmem.cli.show import show_estimate
from llmmem.estimation import estimate
from llmmem.results import METRICS
from llmmem.setups import Setup

RUNS = Path(__file__).parents[1] / "programs" / "needed_runs.py"
FULL = Setup(model="meta-llama/Llama-3.1-8B", steps=1)
QLORA = Setup(
    model="EleutherAI/pythia-70m",
    method="qlora",
    batch_size=48,
    seq_len=1024,
    allocator="expandable_segments:True",
)


@pytest.mark.skipif(bool(simgpu.check()), reason="the simulated GPU does not work here")
def test_a_step_needs_what_it_takes_on_a_card_that_is_large_enough() -> None:
    arguments = [FULL.model, "--steps=1", "--gpu=rtx4090", "--json"]
    command = [sys.executable, "-m", "llmmem", "estimate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    traces = [json.loads(done.stdout)["trace"], estimate(QLORA, "rtx4090").to_dict()["trace"]]
    command = [sys.executable, str(RUNS), "rtx4090", FULL.key(), QLORA.key()]
    runs = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    for trace, run in zip(traces, runs, strict=True):
        assert (trace["outcome"], run["outcome"]) == ("oom", "ok")
        for metric in METRICS:
            assert trace[f"needed_{metric}_bytes"] == run[f"peak_{metric}_bytes"]


def test_what_does_not_fit_is_shown_with_what_it_needs_and_the_cards_that_have_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup = Setup(model="openai-community/gpt2", seq_len=1024, batch_size=32)
    show_estimate(estimate(setup, "t4"))
    shown = capsys.readouterr().out
    headline, _, rest = " ".join(shown.split()).partition("needed allocated")
    assert "estimated for t4: oom: needs " in headline
    assert "GiB, has 14.56 GiB: out of memory" in headline
    assert rest.index("needed process") < rest.index("peak allocated")
    cards = rest.partition("Fits by memory alone: ")[2].partition(" Rule:")[0].split(", ")
    assert "b200" in cards
    assert "t4" not in cards
