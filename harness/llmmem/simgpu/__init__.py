"""A simulated GPU: CUDA's libraries replaced by ones that account memory and run no kernel.

The CUDA build of PyTorch then runs unmodified on a machine without a GPU, and every allocation that
its host code makes is accounted as on a real card. Values are not computed.

    from llmmem import simgpu

    gpu = simgpu.activate("rtx4090")   # before anything imports torch
    import torch
    torch.empty(1000, 1000, device="cuda")
    gpu.peak_process_bytes()
"""

from __future__ import annotations

from llmmem.simgpu.activation import (
    Problem,
    SimulatedGpu,
    activate,
    active,
    check,
    program_environment,
)
from llmmem.simgpu.faults import Faults

__all__ = [
    "Faults",
    "Problem",
    "SimulatedGpu",
    "activate",
    "active",
    "check",
    "program_environment",
]
