"""A clean end of the interpreter after a backward pass.

PyTorch's autograd threads drop their last Python objects after the main thread has gone on. A
program that ends right after a backward pass can be faster than they are: the interpreter then ends
a thread that asks for its lock, in the middle of a C++ destructor, and the process aborts
("terminate called without an active exception"). On a simulated GPU there is no work to wait for, so
this happens often.
"""

from __future__ import annotations

import atexit
import time
from pathlib import Path

__all__ = ["let_autograd_finish", "register"]

LONGEST_WAIT_SECONDS = 5.0
STEP_SECONDS = 0.001
CALM_STEPS = 3


def register() -> None:
    """Let autograd's threads finish before the interpreter does."""
    atexit.unregister(let_autograd_finish)
    atexit.register(let_autograd_finish)


def let_autograd_finish() -> None:
    """Wait, without the interpreter's lock, until autograd's threads are asleep for a moment."""
    threads = _autograd_threads()
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    calm = 0
    while threads and calm < CALM_STEPS and time.monotonic() < deadline:
        time.sleep(STEP_SECONDS)
        calm = calm + 1 if all(map(_is_asleep, threads)) else 0


def _autograd_threads() -> list[Path]:
    tasks = Path("/proc/self/task").iterdir()
    return [task for task in tasks if _read(task / "comm").startswith("pt_autograd")]


def _is_asleep(thread: Path) -> bool:
    """Whether the kernel has it waiting; one that has ended counts too."""
    # The state comes after the name, which stands in parentheses and may hold anything.
    return _read(thread / "stat").rpartition(")")[2].strip()[:1] != "R"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
