"""Estimates of every model of the catalogue, in full, LoRA and QLoRA fine-tuning.

    python benchmarks/all_models.py

Writes ``reports/models.md`` and ``.csv``. The kernels are those of an H100; its memory is taken as
unlimited, so that what does not fit has a peak too.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tabulate import tabulate

from llmmem.catalogue.gpus import find_gpu
from llmmem.catalogue.models import models
from llmmem.estimation.trace import trace
from llmmem.setups import Setup
from llmmem.units import GIB
from llmmem.versions import library_versions

if TYPE_CHECKING:
    from llmmem.catalogue.models import ModelEntry

REPORTS = Path(__file__).parents[1] / "reports"
METHODS = ("full", "lora", "qlora")
TASKS = {
    "AutoModelForCausalLM": "causal-lm",
    "AutoModelForMaskedLM": "masked-lm",
    "AutoModelForSeq2SeqLM": "seq2seq-lm",
}
SEQ_LEN = 512
UNLIMITED = 1 << 50


def row(entry: ModelEntry, method: str) -> dict[str, object]:
    """What the trace says of a model and a method; sizes are bytes."""
    card = replace(find_gpu("h100"), total_bytes=UNLIMITED)
    setup = Setup(model=entry.id, task=TASKS[entry.auto_class], method=method, seq_len=SEQ_LEN)
    start = time.perf_counter()
    traced = trace(setup, card)
    return {
        "model": entry.id,
        "parameters": entry.unique_parameters,
        "method": method,
        "outcome": traced.outcome,
        "allocated": traced.peaks.allocated,
        "reserved": traced.peaks.reserved,
        "seconds": round(time.perf_counter() - start, 2),
        "message": traced.message,
    }


def page(table: pd.DataFrame) -> str:
    """The report: a line per model, a column per method."""
    by_model = table.pivot(index=["model", "parameters"], columns="method", values="allocated")
    lines = [
        {"model": model, "parameters": f"{parameters:,}"}
        | {
            name: "-" if pd.isna(peaks[name]) else f"{peaks[name] / GIB:.2f} GiB"
            for name in METHODS
        }
        for (model, parameters), peaks in by_model.sort_index(level="parameters").iterrows()
    ]
    others = table[table.outcome != "ok"]
    versions = library_versions()
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft"))
    parts = [
        "# Estimates of all models of the catalogue",
        "",
        f"Made by `python benchmarks/all_models.py` ({named}). Allocated peaks of two training steps, "
        f"by trace, nothing run: batch size 1, {SEQ_LEN} tokens, bfloat16, each method with the "
        "defaults of a setup; an H100's kernels with unlimited memory.",
        "",
        tabulate(lines, headers="keys", tablefmt="github", colalign=("left", *["right"] * 4)),
        "",
        f"{len(table) - len(others)} of {len(table)} are estimated.",
        "",
        "With a mixture of experts, QLoRA takes more than LoRA: bitsandbytes quantizes linear layers, "
        "transformers keeps experts as parameters of their own, and PEFT's preparation casts what is "
        "not quantized to float32.",
        "",
    ]
    if len(others):
        parts += [
            tabulate(
                others[["model", "method", "outcome", "message"]].values.tolist(),
                headers=["model", "method", "outcome", "why"],
                tablefmt="github",
            ),
            "",
        ]
    return "\n".join(parts)


def main() -> None:
    """Estimate them all, and write the report."""
    table = pd.DataFrame([row(entry, method) for entry in models() for method in METHODS])
    table.to_csv(REPORTS / "models.csv", index=False)
    (REPORTS / "models.md").write_text(page(table))


if __name__ == "__main__":
    main()
