"""The code of llmmem that runs inside a program on simulated GPUs.

The program's own Python imports this module when it first uses a simulated GPU
(``simgpu/csrc/account/guest.c``). Other programs are not changed. PyTorch's peaks are recorded before
anything resets them and when the process exits. If the process is killed, what the C libraries recorded
remains.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import ExitStack
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn

from llmmem import simgpu
from llmmem.execution.program.ledger import DIRECTORY_VARIABLE
from llmmem.simgpu.loader import open_account

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmmem.simgpu import SimulatedGpu
    from llmmem.simgpu.loader import Account

__all__ = ["join"]


def join() -> None:
    """Record the peaks of this process until it ends."""
    gpu = simgpu.active()  # this also makes the interpreter exit cleanly
    if gpu is None or DIRECTORY_VARIABLE not in os.environ:
        return
    note = partial(_note, gpu, open_account(gpu.libraries.core))
    resets = ExitStack()
    if "torch" in sys.modules:
        from llmmem.measurement.gauges import before_resets

        resets.enter_context(before_resets(note))
    sys.excepthook = _annotating_guesses(gpu, sys.excepthook)
    atexit.register(resets.close)
    atexit.register(note)
    # These bypass atexit; multiprocessing ends forked processes with the first.
    for name in ("_exit", "execv", "execve"):
        setattr(os, name, _preceded(note, getattr(os, name)))


def _note(gpu: SimulatedGpu, account: Account) -> None:
    """Record the peaks of PyTorch's allocator in this process, and the notes about them."""
    account.note_remarks("\n".join(gpu.notes))
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        account.note_rank(torch.distributed.get_rank())
    out_of_memory = 0
    for device in range(torch.cuda.device_count()):
        stats = torch.cuda.memory_stats(device)  # empty before PyTorch has used CUDA
        account.note_allocator(
            device,
            stats.get("allocated_bytes.all.peak", 0),
            stats.get("reserved_bytes.all.peak", 0),
        )
        out_of_memory += stats.get("num_ooms", 0)
    if out_of_memory:
        account.note_failure(_last_words() or f"PyTorch ran out of memory {out_of_memory} times")


def _annotating_guesses(gpu: SimulatedGpu, hook: Callable[..., object]) -> Callable[..., object]:
    """Wrap `sys.excepthook`: add the guesses that the exception may follow from."""

    @wraps(hook)
    def told(kind: type[BaseException], error: BaseException, traceback: Any) -> object:
        gpu.guesses.annotate(error)
        return hook(kind, error, traceback)

    return told


def _last_words() -> str | None:
    """The message of the exception that ends the program, if it is about memory."""
    error = getattr(sys, "last_value", None)
    if type(error).__name__ != "OutOfMemoryError":
        return None
    return str(error).splitlines()[0]


def _preceded(action: Callable[[], None], end: Callable[..., NoReturn]) -> Any:
    @wraps(end)
    def both(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            action()
        finally:
            end(*args, **kwargs)

    return both
