"""Statistics of the allocator that PyTorch uses.

PyTorch's own allocator keeps statistics and a history. The driver's (``backend:cudaMallocAsync``)
counts bytes only, and one of another library (``CUDAPluggableAllocator``) keeps nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["AllocatorStatistics", "allocator_note", "is_native", "read_statistics"]

NATIVE = "native"


@dataclass(frozen=True)
class AllocatorStatistics:
    """The statistics of the allocator for one GPU; sizes are bytes.

    Attributes:
        allocated: What tensors hold now.
        peak_allocated: The most that tensors have held since the peaks were reset.
        reserved: What the allocator has reserved on the device now.
        peak_reserved: The most that it has reserved since the peaks were reset.
        allocations: The number of blocks that were allocated.
        frees: The number of blocks that were freed.
    """

    allocated: int
    peak_allocated: int
    reserved: int
    peak_reserved: int
    allocations: int
    frees: int


def is_native() -> bool:
    """Whether PyTorch uses its own caching allocator."""
    return bool(torch.cuda.get_allocator_backend() == NATIVE)


def read_statistics(device: int) -> AllocatorStatistics | None:
    """The statistics for a GPU, by its index; ``None`` if the allocator keeps none."""
    try:
        read: dict[str, Any] = torch.cuda.memory_stats_as_nested_dict(device)
    except RuntimeError:
        if is_native():
            raise
        return None
    allocated, reserved = read["allocated_bytes"]["all"], read["reserved_bytes"]["all"]
    blocks = read["allocation"]["all"]
    return AllocatorStatistics(
        allocated=int(allocated["current"]),
        peak_allocated=int(allocated["peak"]),
        reserved=int(reserved["current"]),
        peak_reserved=int(reserved["peak"]),
        allocations=int(blocks["allocated"]),
        frees=int(blocks["freed"]),
    )


def allocator_note() -> str | None:
    """A note on what is unknown because of the allocator in use; ``None`` for PyTorch's own."""
    if is_native():
        return None
    name = torch.cuda.get_allocator_backend()
    if read_statistics(torch.cuda.current_device()) is None:
        return f"the allocator in use ({name}) keeps no statistics: only the process is measured"
    return f"the allocator in use ({name}) keeps no history: what held the peak is not known"
