"""How long an estimate takes: as a whole process beside accelerate's, and by size once imported.

    python benchmarks/estimate_speed.py

Writes ``reports/estimate-speed.md`` and ``.csv``. Every time is the median of several, taken in
turns, so that whatever else the machine does falls on all alike. Seconds of processor time (user
and system) stand beside those of the clock: they are what is left of a figure on a busy machine.

``accelerate estimate-memory`` asks the hub about the model before it reads the config. Here it
runs unmodified, offline, as its own code allows: it starts in a directory that holds the model's
config under the model's name, where `AutoConfig.from_pretrained` looks first, and ``HF_ENDPOINT``
names a server on this machine that answers its one question, which library the model is of.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from timing import Seconds, of_ended_children, speed_of_machine, table, timed

from llmmem.accounting.allocator import AllocatorConfig, CachingAllocator
from llmmem.catalogue.gpus import find_gpu
from llmmem.catalogue.models import find_model
from llmmem.setups import Setup
from llmmem.units import GIB
from llmmem.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

REPORTS = Path(__file__).parents[1] / "reports"
GPU = "h100"
SMALL = "EleutherAI/pythia-70m"
MODEL = "meta-llama/Llama-3.1-8B"
MODELS = (MODEL, "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-405B")
METHODS = ("full", "lora", "qlora")
PROCESSES = 5
TRACES = 5
# What is varied, keys of the config, and keys of the setup.
DIMENSIONS: tuple[tuple[str, dict[str, int], dict[str, int]], ...] = (
    ("as it is", {}, {}),
    ("32 layers", {"layers": 32}, {}),
    ("64 layers", {"layers": 64}, {}),
    ("width 8,192", {"width": 8192}, {}),
    ("32 sequences", {}, {"batch_size": 32}),
    ("32,768 tokens", {}, {"seq_len": 32_768}),
)
EVENTS = 100_000
MOST_LIVE = 2000
ALLOCATORS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:64",
    "roundup_power2_divisions:4",
    "garbage_collection_threshold:0.6",
)
WAYS = {
    "accelerate estimate-memory (weights only)": ("accelerate.commands.estimate", MODEL),
    "llmmem estimate --method full": ("llmmem", "estimate", MODEL, "--method=full"),
    "llmmem estimate --method lora": ("llmmem", "estimate", MODEL, "--method=lora"),
    "llmmem estimate --method qlora": ("llmmem", "estimate", MODEL, "--method=qlora"),
}


class _Hub(BaseHTTPRequestHandler):
    """Says of every model that it is one of transformers."""

    def do_GET(self) -> None:
        answer = json.dumps({"id": MODEL, "library_name": "transformers", "config": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        """Nothing: the requests are not news."""


@contextmanager
def offline_hub() -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory with the config of `MODEL`, and the environment of a process that starts there."""
    entry = find_model(MODEL)
    assert entry is not None
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    environment.pop("HF_HUB_OFFLINE", None)
    try:
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory, MODEL, "config.json")
            config.parent.mkdir(parents=True)
            config.write_text(entry.path.read_text())
            yield Path(directory), environment
    finally:
        server.shutdown()
        server.server_close()


def whole_processes() -> dict[str, Seconds]:
    """Times of a process from its start to its end, by what it does."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with offline_hub() as (directory, environment):
        for command in WAYS.values():
            _process(command, directory, environment)  # the first reads its files from the disk
        for _ in range(PROCESSES):
            for name, command in WAYS.items():
                taken[name].append(_process(command, directory, environment))
    return {name: Seconds.of(times) for name, times in taken.items()}


def _process(
    command: Sequence[str], directory: Path, environment: dict[str, str]
) -> tuple[float, float]:
    def run() -> None:
        subprocess.run(
            [sys.executable, "-m", *command],
            cwd=directory,
            env=environment,
            capture_output=True,
            check=True,
        )

    return timed(run, of_ended_children)


def traces(setups: Iterable[Setup]) -> list[tuple[Setup, Seconds]]:
    """Times of traces in this process, each after a first one that imports what it needs."""
    listed = list(setups)
    for setup in listed:
        _trace(Setup.from_mapping({"model": SMALL, "method": setup.method, "seq_len": 128}))
    taken: list[list[tuple[float, float]]] = [[] for _ in listed]
    for _ in range(TRACES):
        for setup, times in zip(listed, taken, strict=True):
            times.append(_trace(setup))
    return [(setup, Seconds.of(times)) for setup, times in zip(listed, taken, strict=True)]


def _trace(setup: Setup) -> tuple[float, float]:
    from llmmem.estimation.trace import trace

    wall, processor = time.perf_counter(), time.process_time()
    # A trace ends where the card is full.
    result = trace(setup, replace(find_gpu(GPU), total_bytes=32_768 * GIB))
    times = time.perf_counter() - wall, time.process_time() - processor
    assert result.outcome == "ok", f"{setup.model}: {result.outcome}: {result.message}"
    return times


def by_size() -> list[tuple[Setup, Seconds]]:
    """Traces of models of three sizes, in three methods."""
    return traces(Setup(model=model, method=method) for model in MODELS for method in METHODS)


def by_dimension() -> list[tuple[str, Seconds]]:
    """Traces of full training of one architecture, one dimension varied at a time."""
    with tempfile.TemporaryDirectory() as directory:
        names, setups = [], []
        for name, keys, options in DIMENSIONS:
            path = Path(directory, f"{len(names)}.json")
            path.write_text(json.dumps(_llama(**keys)))
            names.append(name)
            setups.append(Setup.from_mapping({"model": str(path), **options}))
        return [(name, seconds) for name, (_, seconds) in zip(names, traces(setups), strict=True)]


def allocators() -> list[tuple[str, Seconds]]:
    """Times of 100,000 random requests and frees of the allocator's model, by its settings."""
    operations = _random_operations()
    taken: dict[str, list[tuple[float, float]]] = {text: [] for text in ALLOCATORS}
    for _ in range(TRACES):
        for text, times in taken.items():
            allocator = CachingAllocator(AllocatorConfig.parse(text), 1 << 45, 1 << 45)
            held: dict[int, Any] = {}
            wall, processor = time.perf_counter(), time.process_time()
            for number, nbytes in operations:
                if nbytes:
                    held[number] = allocator.malloc(nbytes)
                else:
                    allocator.free(held.pop(number))
            times.append((time.perf_counter() - wall, time.process_time() - processor))
    return [(text or "the defaults", Seconds.of(times)) for text, times in taken.items()]


def _random_operations() -> list[tuple[int, int]]:
    """Blocks by number, with their bytes where they are asked for and 0 where they are freed."""
    chance = random.Random(0)
    operations: list[tuple[int, int]] = []
    live: list[int] = []
    for number in range(EVENTS):
        if live and (len(live) > MOST_LIVE or chance.random() < 0.5):
            operations.append((live.pop(chance.randrange(len(live))), 0))
        else:
            live.append(number)
            operations.append((number, int(2 ** chance.uniform(8, 27))))
    return operations


def _llama(layers: int = 16, width: int = 2048) -> dict[str, Any]:
    entry = find_model(MODEL)
    assert entry is not None
    config: dict[str, Any] = json.loads(entry.path.read_text())
    heads = {"num_attention_heads": width // 128, "num_key_value_heads": width // 512}
    changed = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    return {**config, **changed, **heads, "head_dim": 128}


def main() -> None:
    """Take all times and write the report."""
    load_before = os.getloadavg()[0]
    rows = [{"what": name, **asdict(seconds)} for name, seconds in whole_processes().items()]
    processes = len(rows)
    rows += [
        {"what": f"trace of {setup.model}, {setup.method}", **asdict(seconds)}
        for setup, seconds in by_size()
    ]
    sizes = len(rows)
    rows += [{"what": name, **asdict(seconds)} for name, seconds in by_dimension()]
    dimensions = len(rows)
    rows += [{"what": name, **asdict(seconds)} for name, seconds in allocators()]
    frame = pd.DataFrame(rows)
    frame.round(3).to_csv(REPORTS / "estimate-speed.csv", index=False)
    versions = library_versions() | {"accelerate": version("accelerate")}
    load = f"load average {load_before:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    text = f"""# How long an estimate takes

Made by `python benchmarks/estimate_speed.py`.

- machine: {platform.machine()}, {os.cpu_count()} cores, {load}, Python {platform.python_version()};
  {speed_of_machine()}
- versions: {", ".join(f"{name} {number}" for name, number in versions.items() if number)}

Medians in seconds, taken in turns: by the clock, and of processor time (user and system), which
says more where other programs take the cores (a load average above 1).

## Whole processes

From start to end, {PROCESSES} times each: the default step ({MODEL}, 2,048 tokens, two
steps) on the {GPU}, beside `accelerate estimate-memory`, which counts weights. It runs unmodified
and offline: the config lies under the model's name where it starts, and `HF_ENDPOINT` names a
server on the same machine that tells it the library of the model.

{table(frame[:processes])}

## Traces

Once everything is imported, {TRACES} times each, on a card that is large enough for all of them.

{table(frame[processes:sizes])}

## What the time depends on

Full training of Llamas of other sizes: 16 layers, width 2,048, one sequence of 2,048 tokens, but
for what is named.

{table(frame[sizes:dimensions])}

## The allocator's model

{EVENTS:,} requests and frees, of 256 B to 128 MiB, by the setting of `PYTORCH_CUDA_ALLOC_CONF`.

{table(frame[dimensions:])}
"""
    (REPORTS / "estimate-speed.md").write_text(text)


if __name__ == "__main__":
    main()
