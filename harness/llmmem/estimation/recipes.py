"""What a kernel that consists of operators allocates, in order, remembered by its arguments.

The Python half of a library's kernel takes the same blocks for alike arguments, in every layer of a
model. Where that is all that it does for a trace, the blocks stand for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from llmmem.estimation.memo import laid_out, layout_of, tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmmem.estimation.allocator import Block
    from llmmem.estimation.memo import Layout
    from llmmem.estimation.tracer import Tracer
    from llmmem.measurement.attribution import Event

__all__ = ["Recipe"]

#: Take a block (bytes), give back what a step took (its index), or lay out an output (its index).
_Step: TypeAlias = tuple[Literal["take", "give", "output"], int]


@dataclass(frozen=True, slots=True)
class Recipe:
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
        tracer: Tracer,
    ) -> Recipe | None:
        """The recipe of a kernel that was just run, if its outputs are all that is left of it.

        Args:
            events: What it took and gave back.
            inputs: Its arguments.
            out: What it gave.
            tracer: What has seen it run.
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
            given[tracer.address(output)] = index
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
                steps.append(("take", tracer.requested(event.address)))
        return None if live or given else cls(tuple(steps), tuple(layouts), out is outputs[0])

    def follow(self, tracer: Tracer) -> Any:
        """Take and give back the blocks, and give the outputs.

        Raises:
            OutOfMemory: The card is full.
        """
        taken: dict[int, tuple[int, Block]] = {}
        outputs: list[Any] = [None] * len(self.outputs)
        for index, (step, value) in enumerate(self.steps):
            if step == "take":
                taken[index] = tracer.take(value)
            elif step == "give":
                tracer.give(*taken[value])
            else:
                outputs[value] = laid_out(self.outputs[value])
                tracer.born(outputs[value])
        return outputs[0] if self.is_one else tuple(outputs)
