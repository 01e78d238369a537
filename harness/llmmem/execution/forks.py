"""Forks of this process that each do one job, within limits on time and host memory."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from llmmem.execution.host_memory import resident_memory
from llmmem.execution.parents import killed_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["DEFAULT_TIMEOUT", "Fork", "Forks"]

#: Seconds that a job has unless told otherwise.
DEFAULT_TIMEOUT = 900.0
PERIOD_S = 0.05


class Forks:
    """Forks that run in parallel; leaving the context kills those that are still running.

    Args:
        host_memory: The limit in bytes on their host memory together. Beyond it, the largest fork is
            killed. ``None`` is no limit.
    """

    def __init__(self, host_memory: int | None = None) -> None:
        self._host_memory = host_memory
        self._running: list[Fork] = []

    def __enter__(self) -> Forks:
        """The forks themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the forks that are still running."""
        while self._running:
            self._running.pop().abandon()

    def start(self, job: Callable[[], Mapping[str, Any]], timeout: float | None) -> Fork:
        """Do a job in a fork.

        Args:
            job: The function to call; returns a document for JSON.
            timeout: Seconds until the fork is killed.
        """
        fork = Fork(job, timeout)
        self._running.append(fork)
        return fork

    def reply(self, fork: Fork) -> dict[str, Any]:
        """Wait for a fork, and enforce the limits of all forks meanwhile.

        Returns:
            What its job returned, or one of ``{"timeout": seconds}``, ``{"host_memory": bytes}`` (the
            limit that was exceeded) and ``{"died": text}``.
        """
        while not fork.has_ended(within=PERIOD_S):
            self._check()
        self._running.remove(fork)
        return fork.reply()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Enforce the limits while this process does something else; no fork may be started inside."""
        done = Event()

        def watch() -> None:
            while not done.wait(PERIOD_S):
                self._check()

        thread = Thread(target=watch, name="watch of forks")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _check(self) -> None:
        for fork in self._running:
            if fork.is_late():
                fork.kill({"timeout": fork.timeout})
        if self._host_memory is None:
            return
        taken = {fork: resident_memory(fork.pid) for fork in self._running}
        if sum(taken.values()) > self._host_memory:
            max(taken, key=lambda fork: taken[fork]).kill({"host_memory": self._host_memory})


class Fork:
    """One of `Forks`; made by `Forks.start`.

    Attributes:
        pid: Its process id.
        timeout: Seconds until it is killed.
    """

    def __init__(self, job: Callable[[], Mapping[str, Any]], timeout: float | None) -> None:
        self.timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._killed: dict[str, Any] | None = None
        # A file in memory: the fork need not wait until its answer is read.
        self._answer = os.memfd_create("answer")
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _do(job, self._answer, parent)
        self._end = os.pidfd_open(self.pid)

    def has_ended(self, within: float) -> bool:
        """Wait up to `within` seconds for its end; whether it has ended."""
        return bool(select.select([self._end], [], [], within)[0])

    def is_late(self) -> bool:
        """Whether it has exceeded its timeout."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def kill(self, reason: dict[str, Any]) -> None:
        """Kill it; the reason becomes its reply, unless it is already done."""
        self._killed = self._killed or reason
        # Nothing has waited for it yet, so its process id cannot have been reused.
        os.kill(self.pid, signal.SIGKILL)

    def reply(self) -> dict[str, Any]:
        """The reply of the job, once the fork has ended."""
        os.close(self._end)
        _, status = os.waitpid(self.pid, 0)
        with os.fdopen(self._answer, "rb") as file:
            answer = file.read() if file.seek(0) == 0 else b""
        if status == 0 and answer:  # a killed fork may have written only part of it
            reply: dict[str, Any] = json.loads(answer)
            return reply
        return self._killed or {"died": _how_it_died(status)}

    def abandon(self) -> None:
        """Kill it and discard its reply."""
        self.kill({})
        self.reply()


def _how_it_died(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with code {code} before it had a result"


def _do(job: Callable[[], Mapping[str, Any]], answer: int, parent: int) -> None:
    """Do the job, write the answer, and end without the parent's clean-up. Never returns."""
    try:
        killed_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills the fork
        text = json.dumps(job()).encode()
        with os.fdopen(answer, "wb") as file:
            file.write(text)
    finally:
        sys.stderr.flush()
        os._exit(0)
