"""What an estimate says a step needs, beside runs on a card that has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmmem import simgpu
from llmmem.results import METRICS

RUNS = Path(__file__).parent / "needed_runs.py"
SETUPS: tuple[dict[str, Any], ...] = (
    {"model": "meta-llama/Llama-3.1-8B"},
    {"model": "HuggingFaceTB/SmolLM2-360M", "method": "lora", "batch_size": 16, "seq_len": 1024},
    {
        "model": "HuggingFaceTB/SmolLM2-360M",
        "method": "qlora",
        "batch_size": 16,
        "seq_len": 1024,
        "allocator": "expandable_segments:True",
    },
)


def estimated(keys: dict[str, Any]) -> dict[str, Any]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in keys.items()]
    done = llmmem("estimate", options.pop(0).partition("=")[2], *options, "--gpu=rtx4090", "--json")
    assert done.returncode == 1, done.stderr
    trace: dict[str, Any] = json.loads(done.stdout)["trace"]
    return trace


def llmmem(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmmem", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(bool(simgpu.check()), reason="the simulated GPU does not work here")
def test_a_step_needs_what_it_takes_on_a_card_that_is_large_enough() -> None:
    traces = [estimated(keys) for keys in SETUPS]
    command = [sys.executable, str(RUNS), "rtx4090", *map(json.dumps, SETUPS)]
    runs = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    for trace, run in zip(traces, runs, strict=True):
        assert (trace["outcome"], run["outcome"]) == ("oom", "ok")
        for metric in METRICS:
            assert trace[f"needed_{metric}_bytes"] == run[f"peak_{metric}_bytes"]


def test_what_does_not_fit_is_shown_with_what_it_needs_and_the_cards_that_have_it() -> None:
    done = llmmem("estimate", "openai-community/gpt2", "--batch-size=32", "--gpu=t4")
    assert done.returncode == 1, done.stderr
    headline, needed = (" ".join(done.stdout.split()).partition("components")[0], done.stdout)
    assert "estimated for t4: oom: needs " in headline
    assert "GiB, has 14.56 GiB: out of memory" in headline
    rows = [line.split()[:2] for line in needed.splitlines()]
    assert rows.index(["needed", "process"]) < rows.index(["peak", "allocated"])
    assert "Fits by memory alone: " in needed
    assert " t4" not in needed.partition("Fits by memory alone: ")[2].splitlines()[0]
