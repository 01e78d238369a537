"""Processes that end when their parent ends, for whatever reason (Linux).

The kernel signals a process when the *thread* that started it has ended (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["end_with_parent", "killed_with_parent"]

_PR_SET_PDEATHSIG = 1
_NOTICE = signal.SIGUSR1


def killed_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Args:
        parent: The process id of the parent. If it is no longer the parent, this process is killed at once.
    """
    _tell_of_the_end_of_the_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent(parent: int) -> None:
    """End this process when its parent process ends (not when only a thread of the parent does).

    The process ends as soon as its main thread runs Python code or waits. Call this in the main thread.

    Args:
        parent: The process id of the parent.
    """

    def end_if_orphaned(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(128 + signal.SIGHUP)

    signal.signal(_NOTICE, end_if_orphaned)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {_NOTICE})  # a mask is inherited
    _tell_of_the_end_of_the_parent(_NOTICE)
    end_if_orphaned()


def _tell_of_the_end_of_the_parent(number: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
