"""Signals that ask a command to end: it ends what it started, and says so in one line."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["SignalledError", "ended_by_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class SignalledError(BaseException):
    """The command was asked to end; not an `Exception`, so that no library goes on regardless.

    Attributes:
        signal: How it was asked.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"ended by {self.signal.name}")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While inside, SIGTERM and SIGHUP raise `SignalledError`; a second one kills.

    A signal that is ignored, as ``nohup`` has it, stays so. Nothing changes in other threads than
    the main one, which alone can handle signals.

    Raises:
        SignalledError: Such a signal has arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def end(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise SignalledError(number)

    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
