"""Counts how often tests read values that a simulated GPU does not know."""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from types import FrameType

__all__ = ["Reads", "ValueReads"]

#: Modules that format the message of an assertion that has already failed.
WRITE_MESSAGES = ("_pytest._io.", "_pytest.assertion.util", "unittest.util")


@dataclass(frozen=True)
class Reads:
    """How often the host has read unknown values.

    Attributes:
        unknown: Reads of any kind.
        guesses: Reads of integers and booleans, which may have decided sizes or branches.
    """

    unknown: int = 0
    guesses: int = 0

    def __add__(self, other: Reads) -> Reads:
        return Reads(self.unknown + other.unknown, self.guesses + other.guesses)

    def __sub__(self, other: Reads) -> Reads:
        return Reads(self.unknown - other.unknown, self.guesses - other.guesses)


class ValueReads:
    """Counts reads of unknown values in this process, and remembers the fixtures that made some.

    The message of a failed assertion shows tensors, and reads their values to do so. Such reads did not
    cause the failure, so they are not counted.
    """

    def __init__(self) -> None:
        self._for_messages = Reads()
        self._is_writing = False
        self._stop_watching: Callable[[], None] | None = None
        self._fixtures: set[str] = set()

    def now(self) -> Reads:
        """The reads so far; none without a simulated GPU."""
        if simgpu.active() is None:
            return Reads()
        self._watch_messages()
        return _all_reads() - self._for_messages

    def note_fixture(self, name: str, since: Reads) -> None:
        """Remember a fixture if it has read unknown values, as tests may compare what it returns.

        Args:
            name: The name of the fixture, which has just been set up.
            since: The reads before its setup.
        """
        if self.now().unknown > since.unknown:
            self._fixtures.add(name)

    def forget_fixture(self, name: str) -> None:
        """Forget a fixture that was torn down."""
        self._fixtures.discard(name)

    def were_in(self, fixtures: Iterable[str]) -> bool:
        """Whether one of these fixtures has read unknown values."""
        return not self._fixtures.isdisjoint(fixtures)

    def close(self) -> None:
        """Restore PyTorch."""
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None

    def _watch_messages(self) -> None:
        tensor: Any = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor is None or self._stop_watching is not None:
            return
        write = tensor.__repr__

        @functools.wraps(write)
        def write_and_count(*args: Any, **options: Any) -> str:
            if self._is_writing or not _is_for_message(sys._getframe()):
                return str(write(*args, **options))
            before = _all_reads()
            self._is_writing = True
            try:
                with _without_guesses():
                    return str(write(*args, **options))
            finally:
                self._is_writing = False
                self._for_messages += _all_reads() - before

        def restore() -> None:
            if tensor.__repr__ is write_and_count:
                tensor.__repr__ = write

        tensor.__repr__ = write_and_count
        self._stop_watching = restore


def _all_reads() -> Reads:
    simulated = simgpu.active()
    if simulated is None:
        return Reads()
    return Reads(simulated.unknown_reads, simulated.guesses.clock)


def _without_guesses() -> AbstractContextManager[None]:
    """While inside, no read is recorded as a guess."""
    simulated = simgpu.active()
    return nullcontext() if simulated is None else simulated.guesses.ignored()


def _is_for_message(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(WRITE_MESSAGES):
            return True
        frame = frame.f_back
    return False
