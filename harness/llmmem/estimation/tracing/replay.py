"""Allocation replay: what a kernel made of operators allocated, in order, done again for like arguments.

The Python half of a library's kernel takes the same blocks for like arguments in every layer of a
model. Where a trace needs nothing else of it, the blocks are taken again without running it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from torch import Tensor

from llmmem.estimation.tracing.meta_cache import laid_out, layout_of, tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmmem.accounting.allocator import Block
    from llmmem.accounting.attribution import Event
    from llmmem.estimation.tracing.meta_cache import Layout

__all__ = ["AllocationReplay"]

#: Take a block (bytes), give back what a step took (its index), or lay out an output (its index).
_Step: TypeAlias = tuple[Literal["take", "give", "output"], int]


class Storages(Protocol):
    """What allocates for a trace."""

    def address(self, tensor: Tensor) -> int | None:
        """The address of a tensor's block."""

    def requested(self, address: int) -> int:
        """The bytes that were asked for, for the block at an address."""

    def take(self, nbytes: int) -> tuple[int, Block]:
        """Allocate a block; its number and the block."""

    def give(self, number: int, block: Block) -> None:
        """Free a block."""

    def born(self, tensor: Tensor) -> None:
        """Allocate a block for a new tensor."""


@dataclass(frozen=True, slots=True)
class AllocationReplay:
    """The blocks that a kernel takes and gives back, and its outputs.

    Attributes:
        steps: In order.
        outputs: Layouts of the outputs.
        is_one: Whether the kernel gives its output itself, and not a tuple of outputs.
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
        """The replay of a kernel that has just run, if nothing but its outputs is left of it.

        Args:
            events: What it took and gave back.
            inputs: Its arguments.
            out: What it gave.
            storages: What it allocated from.
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
        if len(given) < len(outputs):  # two of them are one block
            return None
        steps: list[_Step] = []
        live: dict[int, int] = {}
        for event in events:
            if event.kind == "free":
                if event.address not in live:
                    return None
                steps.append(("give", live.pop(event.address)))
            elif event.address in given:
                steps.append(("output", given.pop(event.address)))
            else:
                live[event.address] = len(steps)
                # Not the size of the block, which may be what was left of a larger one.
                steps.append(("take", storages.requested(event.address)))
        return None if live or given else cls(tuple(steps), tuple(layouts), out is outputs[0])

    def run(self, storages: Storages) -> Any:
        """Take and free the blocks, and return the outputs.

        Raises:
            OutOfMemory: The card is full.
        """
        taken: dict[int, tuple[int, Block]] = {}
        outputs: list[Any] = [None] * len(self.outputs)
        for index, (step, value) in enumerate(self.steps):
            if step == "take":
                taken[index] = storages.take(value)
            elif step == "give":
                storages.give(*taken[value])
            else:
                outputs[value] = laid_out(self.outputs[value])
                storages.born(outputs[value])
        return outputs[0] if self.is_one else tuple(outputs)
