"""Runs setups on a simulated card like another but for its memory, and prints their peaks.

    python needed_runs.py rtx4090 '{"model": "..."}' ...

Prints a JSON list with an object for each setup. Each setup has a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

from llmmem import simgpu
from llmmem.catalogue.gpus import find_gpu
from llmmem.devices import parse_device
from llmmem.setups import Setup
from llmmem.units import GIB

MEMORY = 256 * GIB


def main(card: str, *setups: str) -> None:
    gpu = find_gpu(card)
    reserve = gpu.nvml_total_bytes - gpu.total_bytes
    simgpu.activate(replace(gpu, total_bytes=MEMORY, nvml_total_bytes=MEMORY + reserve))
    from llmmem.execution.preload import preload

    given = [Setup.from_mapping(json.loads(keys)) for keys in setups]
    for setup in given:  # once, and not in every child
        preload(setup)
    print(json.dumps([in_child(card, setup) for setup in given]))  # noqa: T201


def in_child(card: str, setup: Setup) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            from llmmem.measurement.run import run_here

            result = run_here(setup, parse_device(f"sim:{card}"))
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump({"outcome": result.outcome, **result.peaks.to_dict()}, pipe)
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(answer)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
