"""The workspace of cuBLAS, which PyTorch allocates."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmmem.catalogue.gpus import Gpu

__all__ = ["cublas_workspace"]


def cublas_workspace(gpu: Gpu) -> int:
    """Bytes of a cuBLAS workspace: one per host thread and stream that uses cuBLAS, never freed.

    Source: ``aten/src/ATen/cuda/CublasHandlePool.cpp``, ``parseChosenWorkspaceSize``.
    """
    major, _ = gpu.compute_capability
    return 32 * 2**20 if major in (9, 10, 12) else 2 * 4096 * 1024 + 8 * 16 * 1024
