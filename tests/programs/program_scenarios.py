"""A program with children on a GPU, each of which ends in another way; prints their process ids.

It knows nothing of llmmem. The children are forked before CUDA is used, or new programs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20

NEW_PROGRAM = """
import torch
x = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")
torch.nn.Linear(8, 8).cuda()(torch.randn(8, 8, device="cuda")).sum().backward()
"""


def hold(mib: int, device: int = 0) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device=f"cuda:{device}")


def ends_by_itself() -> None:
    hold(100)
    assert torch.cuda.get_device_name() == "NVIDIA GeForce RTX 4090"  # LLMMEM_BARE_GPU_NAME


def resets_its_peaks() -> None:
    hold(200)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    hold(1)


def is_killed() -> None:
    hold(300)
    os.kill(os.getpid(), signal.SIGKILL)


def becomes_another_program() -> None:
    hold(400)
    os.execv(sys.executable, [sys.executable, "-c", "pass"])


def uses_two_gpus() -> None:
    hold(500)
    hold(600, device=1)


def uses_none() -> None:
    torch.cuda.is_available()


def in_a_fork(program: Callable[[], None]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=program)
    process.start()
    process.join()
    return process.pid


def main() -> None:
    programs = (
        ends_by_itself,
        resets_its_peaks,
        is_killed,
        becomes_another_program,
        uses_two_gpus,
        uses_none,
    )
    pids = {program.__name__: in_a_fork(program) for program in programs}
    # Isolated: neither PYTHONPATH nor what lies beside the program tells where llmmem is.
    command = [sys.executable, "-I", "-W", "error", "-c", NEW_PROGRAM]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        _, printed = process.communicate()
    pids["a_new_program"] = process.pid
    json.dump({"pids": pids, "new_program": [process.returncode, printed]}, sys.stdout)


if __name__ == "__main__":
    main()
