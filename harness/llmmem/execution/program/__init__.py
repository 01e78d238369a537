"""Runs unmodified programs and their children on simulated GPUs, and collects the peaks of each process."""

from __future__ import annotations

from llmmem.execution.program.result import ProcessPeaks, ProgramResult
from llmmem.execution.program.run import run_program

__all__ = ["ProcessPeaks", "ProgramResult", "run_program"]
