"""Every method of the installed PEFT on the simulated GPU: which run, and what memory they take.

    python benchmarks/peft_methods.py [METHOD ...]

Runs each PEFT type, and LoRA's initialisations and variants beside it, on a tiny Llama and on
Llama-3.2-3B, and writes ``reports/peft-sim-l40s.md`` and ``.csv``. With names of methods only these
run, and their rows are printed and not written.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from llmmem.errors import LlmmemError
from llmmem.report import Record, frame, write
from llmmem.results import RunResult
from llmmem.runner import Runner
from llmmem.setups import Setup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

DEVICE = "sim:l40s"
REPORT = Path(__file__).parents[1] / "reports" / "peft-sim-l40s.md"
COMMAND = "python benchmarks/peft_methods.py"

#: Large enough for PEFT's default block and vector sizes of 256.
TINY = "tiny-llama.json"
TINY_CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
}
MODELS = {TINY: 128, "meta-llama/Llama-3.2-3B": 512}  # and the tokens of a sequence

EXPERTS = {"0": "expert-0", "1": "expert-1"}

#: What a type needs beside its defaults.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "ADALORA": {"total_step": 100},
    "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 2},
    "CARTRIDGE": {"num_virtual_tokens": 20},
    "CPT": {"cpt_token_ids": [*range(8)], "cpt_tokens_type_mask": [1, 1, 2, 2, 3, 3, 4, 4]},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 20, "num_tasks": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 20},
    "PROMPT_TUNING": {"num_virtual_tokens": 20},
    "P_TUNING": {"num_virtual_tokens": 20},
    "TRAINABLE_TOKENS": {"token_indices": [*range(8)]},
}

#: LoRA's initialisations and variants.
LORA: Mapping[str, Mapping[str, Any]] = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, fast SVD": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "MiCA": {"init_lora_weights": "mica"},
    "EVA": {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
    "CorDA": {"init_lora_weights": "corda", "corda_config": {"corda_method": "kpm"}},
    "LoftQ": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "LoRA-GA": {"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "ArB2r"}},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA, offloaded": {"use_dora": True, "runtime_config": {"ephemeral_gpu_offload": True}},
    "aLoRA": {"alora_invocation_tokens": [1, 2]},
    "VeLoRA": {"velora_config": {"num_groups": 8}},
    "KaSA": {"kasa_config": {"beta": 1e-4}},
    "MonteCLoRA": {"monteclora_config": {"num_samples": 4}},
    "BD-LoRA": {"use_bdlora": {"nblocks": 4, "target_modules_bd_a": ["q_proj", "v_proj"]}},
    "layer replication": {"layer_replication": [[0, 2], [1, 2]]},
    "trainable tokens": {"trainable_token_indices": [*range(8)]},
    "saved modules": {"modules_to_save": ["lm_head"]},
}


@dataclass(frozen=True)
class Row:
    """A method on a model: what its run came to, and the bytes that it adds to the weights."""

    method: str
    result: RunResult
    adapter_bytes: int | None


def methods(hidden_size: int) -> dict[str, dict[str, Any]]:
    """The adapters to run, by name: each PEFT type with what it needs, then LoRA's variants."""
    from peft import PeftType

    types = {
        kind.value: {"peft_type": kind.value} | NEEDED.get(kind.value, {}) for kind in PeftType
    }
    types["XLORA"] |= {"hidden_size": hidden_size, "adapters": EXPERTS}
    variants = {f"LORA ({name})": {"peft_type": "LORA"} | keys for name, keys in LORA.items()}
    return types | variants


def main(chosen: list[str]) -> None:
    """Run the methods (all of them if none is named) and write or print the tables."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        Path(TINY).write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
        rows = {model: run_all(model, seq_len, chosen) for model, seq_len in MODELS.items()}
    if chosen:
        print(page(rows))
        return
    REPORT.write_text(page(rows), encoding="utf-8")
    write(table(row for of_model in rows.values() for row in of_model), REPORT.with_suffix(".csv"))


def run_all(model: str, seq_len: int, chosen: list[str]) -> list[Row]:
    """Run the chosen methods, or all, on one model."""
    from llmmem.build import load_config

    base = Setup(model=model, seq_len=seq_len, mode="forward")
    adapters = methods(load_config(base).hidden_size)
    save_experts(base)
    with Runner(DEVICE) as runner:
        plain = runner.run(base, estimate=False)
        assert plain.components is not None, plain.message
        return [
            run_one(runner, name, adapters[name], base, plain.components.weights)
            for name in track(chosen or adapters, description=model, console=_stderr())
        ]


def run_one(
    runner: Runner, name: str, adapter: Mapping[str, Any], base: Setup, base_bytes: int
) -> Row:
    """Two training steps of the model with the adapter."""
    setup = Setup(model=base.model, seq_len=base.seq_len, adapter=adapter)
    try:
        result = runner.run(setup, estimate=False)
    except LlmmemError as error:  # the adapter does not fit this model
        result = RunResult(setup, DEVICE, "simulated", "unsupported", str(error))
    weights = result.components.weights if result.components and result.outcome == "ok" else None
    return Row(name, result, None if weights is None else weights - base_bytes)


def save_experts(base: Setup) -> None:
    """Write the LoRA adapters that X-LoRA mixes: of zeros, and without the model's weights."""
    import peft
    import torch
    from safetensors.torch import save_file

    from llmmem.build import quiet_libraries, skeleton

    with quiet_libraries():
        model = peft.get_peft_model(skeleton(base), peft.LoraConfig(task_type="CAUSAL_LM"))
        weights = {
            name: torch.zeros(tensor.shape)
            for name, tensor in peft.get_peft_model_state_dict(model).items()
        }
        for folder in EXPERTS.values():
            model.peft_config["default"].save_pretrained(folder)
            save_file(weights, Path(folder) / "adapter_model.safetensors")


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """The report's own columns, and what this one adds."""
    rows = list(rows)
    whole = frame(Record.from_run(row.result) for row in rows)
    whole = whole[whole["phase"] == "total"].reset_index(drop=True)
    added = {
        "peft_method": [row.method for row in rows],
        "trainable_parameters": [row.result.trainable_parameters for row in rows],
        "adapter_bytes": [row.adapter_bytes for row in rows],
    }
    return whole.assign(
        **{name: whole["phase"].__class__(values) for name, values in added.items()}
    )


def page(rows: Mapping[str, list[Row]]) -> str:
    """The tables as Markdown, one for each model."""
    lines = ["# PEFT's methods on a simulated L40S", "", f"Made by `{COMMAND}`."]
    return "\n".join(lines)


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


if __name__ == "__main__":
    main(sys.argv[1:])
