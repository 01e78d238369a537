"""Places phases and module calls of a step among the events of the allocator.

The `Timeline` is the observer of a step. All it needs from the allocator is a clock: the number of
allocations and frees so far. So it works for a GPU and for the meta device.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from llmmem.accounting.attribution import (
    Attribution,
    Event,
    Label,
    Span,
    attribute,
    innermost_modules,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

__all__ = ["Timeline"]


class Timeline:
    """Records phases, module calls and labels against a clock of allocator events.

    Args:
        clock: The number of allocations and frees so far.
        address: Returns the address of a tensor's block in the events; ``None`` for a tensor that is not
            on the device.
    """

    def __init__(self, clock: Callable[[], int], address: Callable[[Tensor], int | None]) -> None:
        self._clock = clock
        self._address = address
        self._names: dict[int, str] = {}
        self._open_calls: list[tuple[str, int]] = []
        self.phases: list[Span] = []
        self.calls: list[Span] = []
        self.labels: list[Label] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside belongs to the phase."""
        start = self._clock()
        try:
            yield
        finally:
            self.phases.append(Span(name, start, self._clock()))

    def step(self) -> AbstractContextManager[None]:
        """Steps are not recorded."""
        return nullcontext()

    def watch(self, model: nn.Module) -> None:
        """Name the calls of this model's modules by their path in it."""
        root = type(model).__name__
        self._names |= {id(module): name or root for name, module in model.named_modules()}

    def label(self, component: str, tensors: Iterable[Tensor]) -> None:
        """These tensors belong to the component, now and for as long as they live."""
        now = self._clock()
        for tensor in tensors:
            address = self._address(tensor)
            if address is not None:
                self.labels.append(Label(now, address, component))

    def attribute(self, events: Sequence[Event], until: int | None = None) -> Attribution:
        """What held the peak of the allocator's events, or of those up to a position."""
        return attribute(
            events, phases=self.phases, calls=self.calls, labels=self.labels, until=until
        )

    def modules(self, size: int) -> list[str]:
        """For each of `size` events, the module that it happened in, else the phase."""
        return innermost_modules(self.calls, self.phases, size)

    @contextmanager
    def recording_calls(self) -> Iterator[None]:
        """Record the calls of all modules while inside."""
        hooks = (
            register_module_forward_pre_hook(self._enter),
            # Checkpointing ends a recomputation with an exception, which ends the call too.
            register_module_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        name = self._names.get(id(module), type(module).__name__)
        self._open_calls.append((name, self._clock()))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        name, start = self._open_calls.pop()
        self.calls.append(Span(name, start, self._clock()))
