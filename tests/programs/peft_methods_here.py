"""Every PEFT method on a simulated GPU and in a trace; tests look at what became of them.

Run as a script in an empty directory: prints one JSON document, by method the allocated peaks in
bytes of the run and of the trace, or the reason why there is none.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

simgpu.activate("l40s")

import torch  # noqa: E402 - after the simulated GPU

from llmmem.catalogue.gpus import find_gpu  # noqa: E402
from llmmem.errors import LlmmemError  # noqa: E402
from llmmem.estimation.trace import trace  # noqa: E402
from llmmem.setups import Setup  # noqa: E402
from llmmem.workload.step import execute  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from peft_methods import TINY, TINY_CONFIG, methods, save_experts  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PATH = os.environ["PATH"]


class Observer:
    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    @contextmanager
    def step(self) -> Iterator[None]:
        yield

    def watch(self, model: torch.nn.Module) -> None: ...

    def label(self, component: str, tensors: Iterable[torch.Tensor]) -> None: ...


def run(setup: Setup) -> int | str:
    # What earlier runs left to cuBLAS would be part of this one's peak.
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    held = torch.cuda.memory_allocated()  # some methods keep tensors for the next model
    torch.cuda.reset_peak_memory_stats()
    try:
        execute(setup, torch.device("cuda"), Observer())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return torch.cuda.max_memory_allocated() - held


def traced(setup: Setup) -> int | str:
    try:
        found = trace(setup, find_gpu("l40s"))
    except LlmmemError as error:
        return str(error)
    return found.peaks.allocated or found.message


def both(adapter: dict[str, Any]) -> dict[str, int | str]:
    # BOFT would compile a CUDA extension of its own if it found a compiler.
    os.environ["PATH"] = "" if adapter["peft_type"] == "BOFT" else PATH
    setup = Setup(model=TINY, seq_len=32, steps=1, adapter=adapter)
    return {"run": run(setup), "trace": traced(setup)}


def main() -> None:
    torch.set_num_threads(1)  # FRoD decomposes small matrices on the host
    Path(TINY).write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    save_experts(Setup(model=TINY, seq_len=32))
    gc.freeze()  # what is imported stays: collections, of which each run makes one, need not look
    adapters = methods(TINY_CONFIG["hidden_size"], TINY_CONFIG["num_hidden_layers"])
    json.dump({name: both(adapter) for name, adapter in adapters.items()}, sys.stdout)


if __name__ == "__main__":
    main()
