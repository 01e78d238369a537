"""An unmodified program on simulated GPUs, its children included, and the peaks of its processes."""

from __future__ import annotations

from llmmem.execution.program.result import ProcessPeaks, ProgramResult
from llmmem.execution.program.run import run_program

__all__ = ["ProcessPeaks", "ProgramResult", "run_program"]
