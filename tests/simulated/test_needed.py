"""What an estimate says a step needs, beside runs on a card that has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
