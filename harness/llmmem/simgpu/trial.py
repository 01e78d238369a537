"""Try the simulated GPU in another process, so that a crash there does not end this one."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Literal

from llmmem.catalogue.gpus import gpus
from llmmem.errors import LlmmemError

__all__ = ["try_out"]

#: How far to go: load the libraries, or have PyTorch initialise CUDA on them as well.
Part = Literal["libraries", "torch"]

LONGEST_SECONDS = 600


def try_out(part: Part) -> str | None:
    """Why the simulated GPU does not work here, on one line; None if it does.

    The libraries are compiled first if they are not in the cache. The process inherits the
    environment. Call it only where `llmmem.simgpu.check` finds nothing.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "llmmem.simgpu.trial", part],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {LONGEST_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    thrown = next((line for line in lines if line.startswith("what():")), None)  # by C++
    if done.returncode < 0:
        name = signal.strsignal(-done.returncode)
        return (
            f"its process was ended by signal {-done.returncode} ({name}): {thrown or lines[-1:]}"
        )
    return lines[-1] if lines else f"its process ended with code {done.returncode}"


def _main(part: str) -> None:
    from llmmem.simgpu.activation import activate
    from llmmem.simgpu.torch_build import installed_torch

    build = installed_torch()
    card = next(gpu for gpu in gpus() if build is None or build.runs_on(gpu.compute_capability))
    try:
        activate(card)
    except LlmmemError as error:
        sys.exit(" ".join(str(error).split()))
    if part == "torch":
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    _main(sys.argv[1])
