"""Traces and runs of a named set of setups, compared allocation by allocation.

Prints a JSON object: for each name None, or the first difference. Each setup has a process of its own.
Deep models have their first layers only: the rest of them repeats what these do.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmmem import simgpu
from llmmem.catalogue.gpus import find_gpu
from llmmem.catalogue.models import find_model
from llmmem.setups import Setup

CARD = "a100-80gb"
LAYERS = 6
SETUPS: dict[str, dict[str, Any]] = {
    "full": {"model": "EleutherAI/pythia-70m", "batch_size": 2},
    "lora": {"model": "HuggingFaceTB/SmolLM2-135M", "method": "lora", "max_grad_norm": 1.0},
    "qlora, checkpointing": {
        "model": "HuggingFaceTB/SmolLM2-135M",
        "method": "qlora",
        "gradient_checkpointing": True,
        "batch_size": 4,
    },
    "int8-lora": {"model": "EleutherAI/pythia-160m", "method": "int8-lora"},
    "autocast": {"model": "facebook/opt-125m", "dtype": "float32", "autocast": "bfloat16"},
    "eager float16": {
        "model": "openai-community/gpt2",
        "dtype": "float16",
        "attention": "eager",
        "method": "lora",
    },
    "8-bit optimizer, accumulation": {
        "model": "EleutherAI/pythia-70m",
        "optimizer": "adamw_bnb_8bit",
        "gradient_accumulation_steps": 2,
    },
    "encoder": {"model": "google-bert/bert-base-uncased", "task": "masked-lm", "batch_size": 8},
    "local attention": {"model": "answerdotai/ModernBERT-base", "task": "masked-lm"},
    "encoder and decoder": {
        "model": "google-t5/t5-small",
        "task": "seq2seq-lm",
        "batch_size": 2,
    },
    "forward": {"model": "Qwen/Qwen2.5-0.5B", "mode": "forward"},
    "generate": {"model": "HuggingFaceTB/SmolLM2-135M", "mode": "generate", "new_tokens": 8},
}


def main() -> None:
    simgpu.activate(CARD)
    from llmmem.execution.preload import preload

    with TemporaryDirectory() as directory:
        setups = {
            name: Setup.from_mapping(
                {"seq_len": 512, **keys, "model": shallow(keys["model"], Path(directory))}
            )
            for name, keys in SETUPS.items()
        }
        for setup in setups.values():  # once, and not in every child
            preload(setup)
        gc.freeze()
        found = {name: in_child(setup) for name, setup in setups.items()}
    print(json.dumps(found))  # noqa: T201


def shallow(model: str, directory: Path) -> str:
    """The path of the model's config, with fewer layers if it has many."""
    entry = find_model(model)
    assert entry is not None
    config = json.loads(entry.path.read_text(encoding="utf-8"))
    for key in ("num_hidden_layers", "n_layer"):
        if key in config:
            config[key] = min(config[key], LAYERS)
    path = directory / entry.path.name
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def in_child(setup: Setup) -> str | None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(difference(setup), pipe)
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    found: str | None = json.loads(answer or '"it died"')
    return found


def difference(setup: Setup) -> str | None:
    from llmmem.validation.diff import compare

    try:
        found = compare(setup, find_gpu(CARD))
    except Exception as error:  # it is told
        return f"{type(error).__name__}: {error}"
    at = found.difference
    if at is None:
        return None
    return f"{at}: run {found.run[at : at + 1]}, trace {found.trace[at : at + 1]}"


if __name__ == "__main__":
    main()
