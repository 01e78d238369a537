"""Allocation replay: repeats the allocations of a kernel without running it.

A library kernel that is written in Python allocates the same blocks for alike arguments in every layer
of a model. If a trace needs nothing else of the kernel, it replays these allocations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from torch import Tensor

from llmmem.estimation.tracing.meta_cache import laid_out, layout_of
from llmmem.estimation.tracing.tensors import tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmmem.accounting.allocator import Block
    from llmmem.accounting.attribution import Event
    from llmmem.estimation.tracing.meta_cache import Layout

__all__ = ["AllocationReplay"]

#: Allocate a block (of so many bytes), free the block of an earlier step (its index), or create an
#: output (its index).
_Step: TypeAlias = tuple[Literal["malloc", "free", "output"], int]


class Storages(Protocol):
    """Allocates blocks for a trace."""

    def address(self, tensor: Tensor) -> int | None:
        """The address of a tensor's block."""

    def requested(self, address: int) -> int:
        """The bytes that were requested for the block at an address."""

    def malloc(self, nbytes: int) -> tuple[int, Block]:
        """Allocate a block, and return its number and the block."""

    def free(self, number: int, block: Block) -> None:
        """Free a block."""

    def allocate(self, tensor: Tensor) -> None:
        """Allocate a block for a new tensor."""


@dataclass(frozen=True, slots=True)
class AllocationReplay:
    """The allocations and frees of a kernel, and its outputs.

    Attributes:
        steps: Allocations, frees and outputs, in order.
        outputs: Layouts of the outputs.
        is_one: Whether the kernel returns a single tensor rather than a tuple.
    """

    steps: tuple[_Step, ...]
    outputs: tuple[Layout, ...]
    is_one: bool

    @classmethod
    def of(
        cls,
        events: Sequence[Event],
        inputs: Iterable[Any],
        out: Any,
        storages: Storages,
    ) -> AllocationReplay | None:
        """The replay of a kernel that has just run; ``None`` if the kernel cannot be replayed.

        Args:
            events: The kernel's allocations and frees.
            inputs: Its arguments.
            out: What it returned.
            storages: Allocated its blocks.
        """
        outputs = [out] if isinstance(out, Tensor) else out
        if not isinstance(outputs, tuple | list) or not outputs:
            return None
        given: dict[int | None, int] = {}
        layouts = []
        for index, output in enumerate(outputs):
            layout = layout_of(output, tensors_in(inputs)) if isinstance(output, Tensor) else None
            if layout is None:
                return None
            given[storages.address(output)] = index
            layouts.append(layout)
        if len(given) < len(outputs):  # two of them share a block
            return None
        steps: list[_Step] = []
        live: dict[int, int] = {}
        for event in events:
            if event.kind == "free":
                if event.address not in live:
                    return None
                steps.append(("free", live.pop(event.address)))
            elif event.address in given:
                steps.append(("output", given.pop(event.address)))
            else:
                live[event.address] = len(steps)
                # The size of the block may be larger: the rest of a block is not always split off.
                steps.append(("malloc", storages.requested(event.address)))
        return None if live or given else cls(tuple(steps), tuple(layouts), out is outputs[0])

    def run(self, storages: Storages) -> Any:
        """Take and free the blocks, and return the outputs.

        Raises:
            OutOfMemory: The card is full.
        """
        taken: dict[int, tuple[int, Block]] = {}
        outputs: list[Any] = [None] * len(self.outputs)
        for index, (step, value) in enumerate(self.steps):
            if step == "malloc":
                taken[index] = storages.malloc(value)
            elif step == "free":
                storages.free(*taken[value])
            else:
                outputs[value] = laid_out(self.outputs[value])
                storages.allocate(outputs[value])
        return outputs[0] if self.is_one else tuple(outputs)
