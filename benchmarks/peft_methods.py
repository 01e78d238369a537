"""Every method of the installed PEFT on the simulated GPU: which run, and what memory they take.

    python benchmarks/peft_methods.py [METHOD ...]

Runs each PEFT type, and LoRA's initialisations and variants beside it, on a tiny Llama and on
Llama-3.2-3B, and writes ``reports/peft-sim-l40s.md`` and ``.csv``. With names of methods only these
run, and their tables are printed and not written.

AdaMSS needs scikit-learn, and LoftQ scipy: without them their rows say so.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from tabulate import tabulate

from llmmem.errors import LlmmemError
from llmmem.execution.runner import Runner
from llmmem.report import Record, frame, write
from llmmem.results import Peaks, RunResult
from llmmem.setups import Setup
from llmmem.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from llmmem.results import Estimate

DEVICE = "sim:l40s"
LONGEST_REASON = 120
TEXTS = ("method", "outcome", "why not")
REPORT = Path(__file__).parents[1] / "reports" / "peft-sim-l40s.md"
TIMEOUT = 300.0

#: Large enough for PEFT's default blocks and vectors of 256.
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
#: The models, and the tokens of a sequence.
MODELS = {TINY: 128, "meta-llama/Llama-3.2-3B": 512}

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
    "layer replication": {"layer_replication": [[0, 2], [0, 2]]},
    "trainable tokens": {"trainable_token_indices": [*range(8)]},
    "saved modules": {"modules_to_save": ["lm_head"]},
}

#: Why a method does not run here, where its own message does not say it.
REASONS: Mapping[str, str] = {
    "ADAMSS": "it clusters singular vectors, which nothing computes on a simulated GPU",
    "FROD": f"it decomposes all weights on the host, which takes longer than {TIMEOUT:g} s",
    "LORA (CorDA)": "PEFT needs preprocess_corda before it, a run over calibration data",
}


@dataclass(frozen=True)
class Row:
    """A method on a model: what its run came to, and the bytes that it adds to the weights."""

    method: str
    result: RunResult
    adapter_bytes: int | None


def methods(hidden_size: int, layers: int) -> dict[str, dict[str, Any]]:
    """The adapters to run, by name: each PEFT type with what it needs, then LoRA's variants."""
    from peft import PeftType

    types = {
        kind.value: {"peft_type": kind.value, **NEEDED.get(kind.value, {})} for kind in PeftType
    }
    types["XLORA"] |= {"hidden_size": hidden_size, "adapters": EXPERTS}
    variants = {f"LORA ({name})": {"peft_type": "LORA", **keys} for name, keys in LORA.items()}
    variants["LORA (layer replication)"]["layer_replication"] = [[0, layers], [layers - 1, layers]]
    return types | variants


def main(chosen: list[str]) -> None:
    """Run the methods (all of them if none is named) and write or print the tables."""
    # The setups name files of this directory: reports should not name where it lies.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        Path(TINY).write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
        rows = {model: run_all(model, seq_len, chosen) for model, seq_len in MODELS.items()}
    if chosen:
        print(page(rows))
        return
    REPORT.write_text(page(rows), encoding="utf-8")
    write(table(row for of_model in rows.values() for row in of_model), REPORT.with_suffix(".csv"))


def run_all(model: str, seq_len: int, chosen: list[str]) -> list[Row]:
    """Run the chosen methods, or all of them, on one model."""
    from llmmem.workload.build import load_config

    base = Setup(model=model, seq_len=seq_len, mode="forward")
    config = load_config(base)
    adapters = methods(config.hidden_size, config.num_hidden_layers)
    save_experts(base)
    names = track(chosen or adapters, description=model, console=Console(stderr=True))
    with Runner(DEVICE) as runner:
        without = runner.run(base, estimate=False)
        assert without.components is not None, without.message
        weights = without.components.weights
        return [run_one(runner, name, adapters[name], base, weights) for name in names]


def run_one(
    runner: Runner, method: str, adapter: Mapping[str, Any], base: Setup, base_bytes: int
) -> Row:
    """Two training steps of the model with the adapter, beside what its own weights take."""
    setup = Setup(model=base.model, seq_len=base.seq_len, adapter=adapter)
    try:
        result = runner.run(setup, estimate=False, timeout=TIMEOUT)
    except LlmmemError as error:  # the adapter does not fit this model
        result = RunResult(setup, DEVICE, "simulated", "unsupported", str(error))
    if result.outcome == "ok" and result.components is not None:
        adapter_bytes = result.components.weights - base_bytes
        return Row(method, replace(result, estimate=estimate(runner, setup)), adapter_bytes)
    if method in REASONS:
        result = replace(result, outcome="unsupported", message=REASONS[method])
    return Row(method, result, None)


def estimate(runner: Runner, setup: Setup) -> Estimate | None:
    """The estimate of a setup that runs, if it can be traced too."""
    try:
        return runner.estimate(setup, timeout=TIMEOUT)
    except LlmmemError:
        return None


def save_experts(base: Setup) -> None:
    """Write the LoRA adapters that X-LoRA mixes: zeros, made without the model's weights."""
    import peft
    import torch
    from safetensors.torch import save_file

    from llmmem.workload.build import quiet_libraries, skeleton

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
    """The report's own columns for each run as a whole, and what this report adds."""
    rows = list(rows)
    whole = frame(Record.from_run(row.result) for row in rows)
    whole = whole[whole["phase"] == "total"].reset_index(drop=True)
    whole["peft_method"] = [row.method for row in rows]
    whole["trainable_parameters"] = [row.result.trainable_parameters for row in rows]
    whole["adapter_bytes"] = [row.adapter_bytes for row in rows]
    return whole.astype({"trainable_parameters": "Int64", "adapter_bytes": "Int64"})


def page(rows: Mapping[str, list[Row]]) -> str:
    """The tables as Markdown, one for each model."""
    versions = next(iter(rows.values()))[0].result.versions
    libraries = ", ".join(
        f"{name} {versions.get(name)}" for name in ("torch", "transformers", "peft")
    )
    return "\n".join(
        [
            f"# PEFT's methods on {DEVICE}",
            "",
            f"Made by `python benchmarks/{Path(__file__).name}` ({libraries}). Two training steps "
            "in bfloat16, batch size 1, fused AdamW; each method with PEFT's defaults. *Adapter*: "
            "what the method adds to the weights, trainable or not. *Allocated*, *reserved*: peaks, "
            "simulated; where an initialisation goes through cuSOLVER or cuFFT, its workspace is a "
            "model. EVA and LoRA-GA are without the runs over data that initialise them. *Trace*: how "
            'far the estimate is from the allocated and from the reserved peak; "equal" is to the byte.',
            *(line for model, of_model in rows.items() for line in section(model, of_model)),
            "",
        ]
    )


def section(model: str, rows: list[Row]) -> list[str]:
    """One model's table, under a heading that counts the types that ran."""
    types = [row for row in rows if " " not in row.method]
    ran = sum(row.result.outcome == "ok" for row in types)
    traced = [row.result for row in rows if trace_peaks(row.result) != Peaks()]
    equal = sum(trace_peaks(result) == in_allocator(result.peaks) for result in traced)
    lines = [cells(row) for row in rows]
    aligned = ["left" if name in TEXTS else "right" for name in lines[0]]
    markdown = tabulate(lines, "keys", "pipe", colalign=aligned, disable_numparse=True)
    title = f"## {model}, {rows[0].result.setup.seq_len} tokens"
    counts = (
        f"{ran} of {len(types)} PEFT types run. Of {len(traced)} traces, {equal} have both peaks of "
        "the run to the byte."
    )
    return ["", title, "", counts, "", markdown]


def in_allocator(peaks: Peaks) -> Peaks:
    """The peaks without that of the process."""
    return replace(peaks, process=None)


def trace_peaks(result: RunResult) -> Peaks:
    """The peaks that the trace gives; none where there is no trace."""
    if result.estimate is None or result.estimate.trace.outcome != "ok":
        return Peaks()
    return in_allocator(result.estimate.trace.peaks)


def difference(estimated: int | None, peak: int | None) -> str:
    """How far an estimate is from a peak."""
    if estimated is None or peak is None:
        return "-"
    return "equal" if estimated == peak else f"{100 * (estimated - peak) / peak:+.2f}%"


def cells(row: Row) -> dict[str, str]:
    """A row of the Markdown table, by column."""
    result = row.result
    traced = trace_peaks(result)
    return {
        "method": row.method,
        "outcome": result.outcome,
        "trainable": f"{result.trainable_parameters:,}" if result.trainable_parameters else "-",
        "adapter": format_size(row.adapter_bytes),
        "allocated": format_size(result.peaks.allocated),
        "reserved": format_size(result.peaks.reserved),
        "trace: allocated": difference(traced.allocated, result.peaks.allocated),
        "trace: reserved": difference(traced.reserved, result.peaks.reserved),
        "why not": textwrap.shorten(result.message, LONGEST_REASON).replace("|", "\\|"),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
