"""Limits PyTorch to the memory of a smaller card."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llmmem.measurement.allocator_statistics import is_native

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmmem.catalogue.gpus import Gpu

__all__ = ["capped", "is_smaller"]


def is_smaller(gpu: Gpu, device: int) -> bool:
    """Whether the card has less memory than the device."""
    return gpu.total_bytes < int(torch.cuda.get_device_properties(device).total_memory)


@contextmanager
def capped(gpu: Gpu, device: int) -> Iterator[None]:
    """While inside, PyTorch can use no more memory of the device than it could on the card.

    The allocator gets the card's memory less its CUDA context, and raises ``torch.OutOfMemoryError``
    beyond that. Kernels and their workspaces stay those of the device, and allocations that bypass the
    allocator are not limited. Does nothing if the device is no larger than the card, or if the allocator
    is not PyTorch's own: others may not support a limit.
    """
    if not is_smaller(gpu, device) or not is_native():
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    fraction = (gpu.total_bytes - gpu.context_bytes) / total
    before = torch.cuda.get_per_process_memory_fraction(device)
    torch.cuda.set_per_process_memory_fraction(min(fraction, before), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)
