"""A QLoRA run whose imports are shared, as a worker shares them, or made by the run itself.

Run as ``preload_program.py shared|alone``: prints one JSON document.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from llmmem.devices import parse_device
from llmmem.setups import Setup

TINY = str(Path(__file__).parents[1] / "data" / "tiny_llama.json")
SETUP = Setup(model=TINY, method="qlora", gradient_checkpointing=True, seq_len=64)
DEVICE = parse_device("sim:h100")
TOUCHES_CUDA = "import torch\ntorch.cuda.init()\n"


def run() -> dict[str, Any]:
    from llmmem.measurement.run import run_here

    return run_here(SETUP, DEVICE).to_dict()


def alone() -> dict[str, Any]:
    from llmmem import simgpu

    simgpu.activate("h100")
    return {"run": run()}


def shared() -> dict[str, Any]:
    from llmmem import simgpu
    from llmmem.execution import worker

    worker._prepare(DEVICE)
    worker._import_for_run(DEVICE, {"setup": SETUP.to_dict()})
    import torch

    refused = import_that_initialises_cuda()
    simulated = simgpu.active()
    assert simulated is not None
    return {
        "imported": sorted(sys.modules),
        "library": type(sys.modules["bitsandbytes.cextension"].lib).__name__,
        "initialised": torch.cuda.is_initialized(),
        "held": simulated.process_bytes(0),
        "refused": refused,
        "capability from": inspect.getmodule(torch.cuda.get_device_capability).__name__,
        "variable": os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"),
        **in_fork(),
    }


def import_that_initialises_cuda() -> bool:
    """Whether it is left out, so that a fork can do it."""
    from llmmem.execution.preload import cuda_kept_out

    try:
        with cuda_kept_out():
            exec(TOUCHES_CUDA, {})
    except BaseException:
        return True
    return False


def in_fork() -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        known = set(sys.modules)
        answer = {"run": run(), "imported by the run": sorted(set(sys.modules) - known)}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.waitpid(child, 0)
    return answer


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"shared": shared, "alone": alone}[sys.argv[1]]()) + "\n")
