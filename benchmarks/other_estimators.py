"""What other estimators say of the accuracy matrix, beside what its setups took.

    pip install hf-vram-calc gpu-estimator deepspeed
    llmmem validate --device sim:h100 --output reports/accuracy-sim-h100.csv
    python benchmarks/other_estimators.py reports/accuracy-sim-h100.csv

Writes ``reports/other-estimators.md`` and ``.csv``. Each is asked as its own users would ask it, and
only what it answers: a tool without a notion of quantization is not asked about QLoRA. Configs are
given offline, the way each of them takes a local one.

- ``accelerate estimate-memory``: "training using Adam" of the setup's dtype for full fine-tuning;
  "total size", of the quantized dtype where the base is quantized, for what else there is, since it
  knows neither adapters nor activations. Its own function counts, on a model made as it makes it.
- ``hf-vram-calc``: its command, with dtype, batch size, length and LoRA rank; of its columns
  "Training", "LoRA" or "Inference Total".
- ``gpu-estimator``: `GPUEstimator.estimate` with the exact parameter count; it knows training of all
  parameters only.
- DeepSpeed: `estimate_zero2_model_states_mem_needs` on one GPU without offload; model states of Adam
  in mixed precision only.

``llm-mem-planner`` 0.2.2 is left out: it takes models with latent attention only, of which the matrix
has none.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tabulate import tabulate

from llmmem.catalogue.models import find_model
from llmmem.estimation.rules import accelerate_table
from llmmem.setups import Setup
from llmmem.units import GIB
from llmmem.workload.build import skeleton

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPORTS = Path(__file__).parents[1] / "reports"
QUANTIZED = {"int8": "int8", "nf4": "int4", "fp4": "int4"}
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Asked:
    """A setup that is asked about.

    Attributes:
        setup: The setup.
        parameters: Of its model, adapter not counted.
        sizes: What `accelerate estimate-memory` prints of it, in bytes, by dtype.
    """

    setup: Setup
    parameters: int
    sizes: dict[str, dict[str, int]]


def accelerate(asked: Asked) -> float | None:
    """Bytes by ``accelerate estimate-memory``."""
    setup = asked.setup
    if setup.is_quantized:
        return asked.sizes[QUANTIZED[str(setup.quantization)]]["total"]
    of_dtype = asked.sizes["float32" if setup.dtype == "float32" else "float16"]
    is_full = setup.is_train and not setup.has_adapter
    return of_dtype["training_adam" if is_full else "total"]


def hf_vram_calc(asked: Asked) -> float | None:
    """Bytes by the command ``hf-vram-calc``."""
    from hf_vram_calc.cli import main

    setup = asked.setup
    entry = find_model(setup.model)
    assert entry is not None
    if setup.is_train and setup.has_adapter:
        column = "lora_size_gib"
    else:
        column = "training_gib" if setup.is_train else "inference_total_gib"
    kind = QUANTIZED.get(str(setup.quantization), SHORT[str(setup.dtype)])
    adapter = setup.adapter if setup.has_adapter else {}
    assert not isinstance(adapter, str)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(entry.path.read_text())
        answer = Path(directory, "answer.json")
        arguments = {
            "model": setup.model,
            "model_path": directory,
            "dtype": kind,
            "max_batch_size": setup.batch_size,
            "max_seq_len": setup.seq_len,
            "lora_rank": (adapter or {}).get("r", 8),
            "output_json": answer,
        }
        command = [f"--{name}={value}" for name, value in arguments.items()]
        sys.argv = ["hf-vram-calc", *command]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            main()
        if not answer.is_file():
            return None
        said = json.loads(answer.read_text())["memory_requirements"][0][column]
    return float(said) * GIB


def gpu_estimator(asked: Asked) -> float | None:
    """Bytes by gpu-estimator, whose GB are GiB."""
    from gpu_estimator import GPUEstimator

    setup = asked.setup
    if not setup.is_train or setup.has_adapter or setup.is_quantized:
        return None
    result = GPUEstimator().estimate(
        asked.parameters,
        batch_size=setup.batch_size,
        sequence_length=setup.seq_len,
        precision=SHORT[str(setup.dtype)],
        optimizer="sgd" if setup.optimizer == "sgd" else "adamw",
        gradient_checkpointing=bool(setup.gradient_checkpointing),
    )
    return float(result.total_memory_gb) * GIB


def deepspeed(asked: Asked) -> float | None:
    """Bytes by DeepSpeed's function for ZeRO 2."""
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    setup = asked.setup
    is_adam = "adamw" in str(setup.optimizer) and "8bit" not in str(setup.optimizer)
    if not setup.is_train or setup.has_adapter or setup.is_quantized or not is_adam:
        return None
    _, gpu = estimate_zero2_model_states_mem_needs(
        asked.parameters, num_gpus_per_node=1, num_nodes=1, cpu_offload=False
    )
    return float(gpu)


ESTIMATORS: dict[str, Callable[[Asked], float | None]] = {
    "accelerate": accelerate,
    "hf-vram-calc": hf_vram_calc,
    "gpu-estimator": gpu_estimator,
    "deepspeed": deepspeed,
}


def answers(table: pd.DataFrame) -> pd.DataFrame:
    """A row per setup that ran: what it took, and what each estimator says, in bytes."""
    models: dict[tuple[str, str], tuple[int, dict[str, dict[str, int]]]] = {}
    rows = []
    for row in table[table.run_outcome == "ok"].itertuples():
        setup = Setup.from_mapping(json.loads(str(row.setup)))
        if (key := (setup.model, setup.task)) not in models:
            bare = Setup(model=setup.model, task=setup.task, mode="forward", dtype="float32")
            model = skeleton(bare)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            models[key] = parameters, accelerate_table(model)
        asked = Asked(setup, *models[key])
        said = {name: ask(asked) for name, ask in ESTIMATORS.items()}
        rows.append(
            {
                "setup": row.setup,
                "kind": kind_of(setup),
                "run": row.run_allocated,
                "llmmem trace": row.trace_allocated,
                "llmmem rules": row.rule_allocated,
                **said,
            }
        )
    return pd.DataFrame(rows)


def kind_of(setup: Setup) -> str:
    """What the tables group by."""
    if not setup.is_train:
        return str(setup.mode)
    if not setup.has_adapter:
        return "full"
    return "adapter, quantized base" if setup.is_quantized else "adapter"


def lines(said: pd.DataFrame) -> Iterator[dict[str, object]]:
    """How far each estimator is off, by kind of setup: one line each."""
    names = ["llmmem trace", "llmmem rules", *ESTIMATORS]
    for kind, rows in (("all", said), *said.groupby("kind")):
        for name in names:
            known = rows[rows[name].notna()]
            if not len(known):
                continue
            error = 100 * (known[name] - known.run) / known.run
            size = error.abs()
            yield {
                "setups": kind,
                "estimator": name,
                "answers": f"{len(known)} of {len(rows)}",
                "median": f"{size.median():.2f}%",
                "p95": f"{size.quantile(0.95):.2f}%",
                "worst": f"{size.max():.2f}%",
                "bias": f"{error.mean():+.2f}%",
                "under-estimates": f"{100 * (error < 0).mean():.0f}%",
            }


def page(said: pd.DataFrame, table: Path) -> str:
    """The report."""
    versions = ", ".join(f"{name} {version(name)}" for name in ESTIMATORS)
    return "\n".join(
        [
            "# Other estimators on the accuracy matrix",
            "",
            f"Made by `python benchmarks/other_estimators.py {table.as_posix()}` ({versions}). Errors "
            f"are of the peak of allocated memory in the run, simulated, over {len(said)} setups, in "
            "percent of it: median, 95th percentile and worst of its size, and mean with its sign. "
            "How each was asked is told in the program.",
            "",
            tabulate(list(lines(said)), headers="keys", tablefmt="github"),
            "",
        ]
    )


def main() -> None:
    """Ask about all setups of a table, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path, help="what llmmem validate wrote")
    table = parser.parse_args().table
    warnings.simplefilter("ignore")
    said = answers(pd.read_csv(table))
    said.to_csv(REPORTS / "other-estimators.csv", index=False)
    (REPORTS / "other-estimators.md").write_text(page(said, table))
    print(page(said, table))


if __name__ == "__main__":
    main()
