"""Peaks of a tiny Llama on the simulated GPU, with the versions that are installed.

Run as a script, prints rows of ``tests/data/versions.csv``.
"""

from __future__ import annotations

import csv
import sys
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from llmmem import Runner, RunResult, Setup, UnsupportedError
from llmmem.versions import library_versions

MODEL = str(Path(__file__).parents[1] / "data" / "tiny_llama.json")
VERSIONS = ("torch", "cuda", "transformers", "peft", "bitsandbytes")

SETUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("sim:h100", {"method": "lora"}),
    "lora, expandable segments": (
        "sim:h100",
        {"method": "lora", "allocator": "expandable_segments:True"},
    ),
    "qlora": ("sim:h100", {"method": "qlora"}),
    "lora on a V100": ("sim:v100-32gb", {"method": "lora", "dtype": "float16"}),
}


def rows() -> list[dict[str, Any]]:
    versions = {key: library_versions()[key] for key in VERSIONS}
    return [
        versions | {"setup": name, "device": device} | found
        for device, group in groupby(SETUPS, key=lambda name: SETUPS[name][0])
        for name, found in peaks(device, list(group)).items()
    ]


def peaks(device: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """What the setups of one device take, by their names."""
    found: dict[str, dict[str, Any]] = {name: {"outcome": "unsupported"} for name in names}
    # Where this PyTorch has no kernels for the card, nothing runs.
    with suppress(UnsupportedError), Runner(device) as runner:
        for name in names:
            found[name] = figures(runner.run(Setup(model=MODEL, seq_len=1024, **SETUPS[name][1])))
    return found


def figures(result: RunResult) -> dict[str, Any]:
    assert result.estimate is not None
    trace = result.estimate.trace.peaks
    return {
        "outcome": result.outcome,
        "peak_allocated_bytes": result.peaks.allocated,
        "peak_reserved_bytes": result.peaks.reserved,
        "trace_allocated_bytes": trace.allocated,
        "trace_reserved_bytes": trace.reserved,
    }


if __name__ == "__main__":
    measured = rows()
    writer = csv.DictWriter(sys.stdout, list(measured[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(measured)
