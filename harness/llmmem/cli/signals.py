"""Termination signals: the command stops what it started and reports the signal in one line."""

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
    """A signal asked the command to end; not an `Exception`, so that libraries do not swallow it.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"ended by {self.signal.name}")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While inside, SIGTERM and SIGHUP raise `SignalledError`; a second one kills.

    Signals that are ignored, as under ``nohup``, stay ignored. In other threads than the main one this does
    nothing, because only the main thread can handle signals.

    Raises:
        SignalledError: One of these signals arrived.
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
