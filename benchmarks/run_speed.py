"""How long a simulated run takes: once its worker is warm, beside its trace, and from a cold start.

    python benchmarks/run_speed.py

Writes ``reports/run-speed.md`` and ``.csv``. Every time is the median of several, taken in turns, so
that whatever else the machine does falls on all alike. Seconds of processor time (user and system,
of the worker and its runs) stand beside those of the clock: they are what is left of a figure on a
busy machine.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from timing import Seconds, of_ended_children, speed_of_machine, table, timed

from llmmem.catalogue.gpus import find_gpu
from llmmem.estimation.trace import trace
from llmmem.execution.runner import Runner
from llmmem.setups import Setup
from llmmem.versions import library_versions

REPORTS = Path(__file__).parents[1] / "reports"
GPU = "h100"
DEVICE = f"sim:{GPU}"
MODEL = "meta-llama/Llama-3.1-8B"
METHODS = ("full", "lora", "qlora")
TIMES = 5
TINY_RUNS = 100
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def _of_children() -> float:
    """Processor time of this process's children, ended ones of theirs included (Linux)."""
    ticks = 0
    for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        # After the name in parentheses the fields are numbered from 3 on; 14 to 17 are times.
        fields = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def setups() -> dict[str, Setup]:
    """The steps that are timed, by method: all with gradient checkpointing."""
    return {
        method: Setup(model=MODEL, method=method, gradient_checkpointing=True) for method in METHODS
    }


def warm() -> dict[str, tuple[Seconds, Seconds]]:
    """Of every method, times of a run in a warm worker and of its trace in a warm process."""
    taken: dict[str, list[list[tuple[float, float]]]] = {name: [[], []] for name in METHODS}
    with Runner(DEVICE) as runner:
        for round_number in range(TIMES + 1):
            for name, setup in setups().items():
                run = timed(lambda setup=setup: _run(runner, setup), _of_children)
                traced = timed(lambda setup=setup: _trace(setup), time.process_time)
                if round_number:  # the first imports what it needs
                    taken[name][0].append(run)
                    taken[name][1].append(traced)
    return {name: (Seconds.of(runs), Seconds.of(traces)) for name, (runs, traces) in taken.items()}


def _run(runner: Runner, setup: Setup) -> None:
    result = runner.run(setup, estimate=False)
    assert result.outcome == "ok", f"{setup.describe()}: {result.outcome}: {result.message}"


def _trace(setup: Setup) -> None:
    result = trace(setup, find_gpu(GPU))
    assert result.outcome == "ok", f"{setup.describe()}: {result.outcome}: {result.message}"


def cold() -> dict[str, Seconds]:
    """Times of a whole process that does one run, by method."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for round_number in range(TIMES + 1):
        for name in METHODS:
            seconds = timed(lambda name=name: _process(name), of_ended_children)
            if round_number:  # the first reads its files from the disk
                taken[name].append(seconds)
    return {name: Seconds.of(times) for name, times in taken.items()}


def _process(method: str) -> None:
    command = ["llmmem", "run", MODEL, f"--method={method}", "--gradient-checkpointing"]
    subprocess.run(
        [sys.executable, "-m", *command, f"--device={DEVICE}"], capture_output=True, check=True
    )


def tiny() -> tuple[float, float]:
    """Times of many runs of a tiny model in one runner, with its start."""

    def runs() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "tiny.json")
            path.write_text(json.dumps(TINY))
            with Runner(DEVICE) as runner:
                for number in range(TINY_RUNS):
                    method = METHODS[number % len(METHODS)]
                    _run(runner, Setup(model=str(path), method=method, seq_len=64))

    return timed(runs, of_ended_children)


def main() -> None:
    """Take all times and write the report."""
    load_before = os.getloadavg()[0]
    rows = []
    for name, (run, traced) in warm().items():
        rows.append({"what": f"run, {name}", **asdict(run)})
        rows.append({"what": f"trace, {name}", **asdict(traced)})
    ratios = [
        (METHODS[index], rows[2 * index]["wall"] / rows[2 * index + 1]["wall"])
        for index in range(len(METHODS))
    ]
    after_start = len(rows)
    rows += [{"what": f"llmmem run, {name}", **asdict(seconds)} for name, seconds in cold().items()]
    processes = len(rows)
    rows.append({"what": f"{TINY_RUNS} runs", **asdict(Seconds(*tiny()))})
    frame = pd.DataFrame(rows)
    frame.round(3).to_csv(REPORTS / "run-speed.csv", index=False)
    load = f"load average {load_before:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    versions = library_versions()
    text = f"""# How long a simulated run takes

Made by `python benchmarks/run_speed.py`.

- machine: {platform.machine()}, {os.cpu_count()} cores, {load}, Python {platform.python_version()};
  {speed_of_machine()}
- versions: {", ".join(f"{name} {number}" for name, number in versions.items() if number)}

Seconds: by the clock, and of processor time (user and system), which says more where other programs
take the cores (a load average above 1).

## After start-up

One step setup ({MODEL}, 2,048 tokens, two steps, gradient checkpointing) on `{DEVICE}`: a run in a
process of its own, forked from a worker that has imported everything, and its trace in a process
that has. Medians of {TIMES}, in turns.

{table(frame[:after_start])}

A run takes {", ".join(f"{ratio:.1f} ({name})" for name, ratio in ratios)} times as long as its trace.

## From a cold start

`llmmem run` of the same, from its start to its end, with the estimate beside the run. Medians of
{TIMES}, in turns.

{table(frame[after_start:processes])}

## Many small runs

{TINY_RUNS} runs of a Llama of two layers and width 64, full, LoRA and QLoRA in turns, one runner, its
start included. Taken once.

{table(frame[processes:])}
"""
    (REPORTS / "run-speed.md").write_text(text)


if __name__ == "__main__":
    main()
