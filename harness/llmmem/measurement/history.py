"""The history of PyTorch's CUDA allocator, as events for the attribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from llmmem.accounting.allocator import AllocatorConfig, CachingAllocator
from llmmem.accounting.attribution import Event
from llmmem.accounting.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from torch import Tensor

__all__ = ["Entry", "History", "allocator_events"]

Entry: TypeAlias = "Mapping[str, Any]"

# The number of entries that the allocator keeps; a step of a large model makes about 100,000.
MAX_ENTRIES = 50_000_000
ENDLESS = 2**62


class History:
    """Records every allocation of one CUDA device, from `start` to `stop`.

    Attributes:
        timeline: The observer to pass to the step.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._before = 0
        self.timeline = Timeline(self._events_so_far, self._address)

    def start(self, stacks: Literal["alloc"] | None = None) -> None:
        """Begin recording.

        Args:
            stacks: Whether to record allocations with their Python stacks, which is slower.
        """
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self._before = self._count()
        # Only stopping a recording clears it in every version of PyTorch.
        torch.cuda.memory._record_memory_history(None, device=self._device)
        torch.cuda.memory._record_memory_history(
            "all",
            context=stacks,
            stacks="python",
            max_entries=MAX_ENTRIES,
            device=self._device,
        )

    def stop(self) -> list[Entry]:
        """Stop recording; the entries that PyTorch has recorded, in order."""
        entries: list[Entry] = torch.cuda.memory._snapshot(self._device)["device_traces"][
            self._device
        ]
        torch.cuda.memory._record_memory_history(None, device=self._device)
        return entries

    def _events_so_far(self) -> int:
        return self._count() - self._before

    def _count(self) -> int:
        stats = torch.cuda.memory_stats_as_nested_dict(self._device)
        allocations = stats["allocation"]["all"]
        return int(allocations["allocated"]) + int(allocations["freed"])

    def _address(self, tensor: Tensor) -> int | None:
        if tensor.device != torch.device("cuda", self._device):
            return None
        return tensor.untyped_storage().data_ptr()


def allocator_events(entries: Iterable[Entry], allocator: str) -> list[Event]:
    """Allocations and frees with the sizes of the blocks that the allocator returned.

    The history has the requested sizes. A block can be larger (rounding, a remainder too small to split
    off), depending on everything that was allocated before, so the model of the allocator replays the
    history to find the block sizes.

    Args:
        entries: The entries from `History.stop`.
        allocator: The allocator settings of the run (``PYTORCH_ALLOC_CONF``).
    """
    config = AllocatorConfig.parse(allocator)
    model = CachingAllocator(config, total_bytes=ENDLESS, free_bytes=ENDLESS)
    blocks: dict[int, Any] = {}
    events: list[Event] = []
    giving_back = False
    for entry in entries:
        action = entry["action"]
        if action == "alloc":
            block = model.malloc(entry["size"], entry["stream"])
            blocks[entry["addr"]] = block
            events.append(Event("alloc", entry["addr"], block.size))
        elif action == "free_requested":
            block = blocks.pop(entry["addr"], None)
            events.append(Event("free", entry["addr"], block.size if block is not None else 0))
            if block is not None:
                model.free(block)  # it may become part of a larger one
        elif action == "segment_free" and not giving_back:
            # Cached segments go back to the driver all at once: empty_cache, or a retry.
            model.empty_cache()
        giving_back = action == "segment_free"
    return events
