"""Load the libraries of the simulated GPU, and call the one that holds the account."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from llmmem.errors import UnsupportedError
from llmmem.simgpu.problems import ObstacleError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmmem.simgpu.builder import BuiltLibraries

__all__ = ["Account", "load", "open_account"]


_TOO_MANY = ctypes.c_size_t(-1).value
_LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


class Account:
    """The account of the simulated GPUs of this process (``csrc/account/account.h``). Sizes are bytes."""

    def __init__(self, core: ctypes.CDLL) -> None:
        self._core = core
        for name in ("sim_process_bytes", "sim_peak_process_bytes"):
            function = getattr(core, name)
            function.argtypes, function.restype = [ctypes.c_int], ctypes.c_size_t
        core.sim_device_at.argtypes, core.sim_device_at.restype = [ctypes.c_int], ctypes.c_int
        core.sim_cudnn_attention_unknown.argtypes = [ctypes.c_uint64]
        core.sim_cudnn_attention_unknown.restype = ctypes.c_int64
        for name in (
            "sim_allocations",
            "sim_cudnn_attention_calls",
            "sim_early_answers",
            "sim_unknown_reads",
        ):
            function = getattr(core, name)
            function.argtypes, function.restype = [], ctypes.c_uint64
        core.sim_reset_peak.argtypes, core.sim_reset_peak.restype = [ctypes.c_int], None
        core.sim_host_processes.argtypes = [ctypes.c_char_p]
        core.sim_host_processes.restype = ctypes.c_bool
        core.sim_together_bytes.argtypes = [ctypes.c_int]
        core.sim_together_bytes.restype = ctypes.c_size_t
        core.sim_reset_together.argtypes, core.sim_reset_together.restype = [], None
        for name in ("sim_configure", "sim_set_faults"):
            function = getattr(core, name)
            function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int
        core.sim_listen_to_guesses.argtypes = [_LISTENER]
        core.sim_listen_to_guesses.restype = None
        self._listener: Any = None  # as long as the library may call it
        note = core.sim_ledger_note_allocator
        note.argtypes, note.restype = [ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64], None
        core.sim_ledger_note_rank.argtypes = [ctypes.c_uint64]
        core.sim_ledger_note_rank.restype = None
        for name in ("sim_ledger_note_failure", "sim_ledger_note_remarks"):
            function = getattr(core, name)
            function.argtypes, function.restype = [ctypes.c_char_p], None

    def configure(self, card: str) -> None:
        """Set the card, from ``key=value`` fields with semicolons between them.

        Raises:
            UnsupportedError: A device is in use already.
        """
        status = self._core.sim_configure(card.encode())
        if status == -1:
            raise UnsupportedError(
                "this process uses a simulated GPU already: take another process"
            )
        if status:
            raise ValueError(f"field {status} of {card!r} is not understood")

    def listen_to_guesses(self, listener: Callable[[str], object]) -> None:
        """Call the listener with the name of each operator by which a program reads a guess."""

        def call(operator: bytes) -> None:
            listener(operator.decode())

        self._listener = _LISTENER(call)
        self._core.sim_listen_to_guesses(self._listener)

    def set_faults(self, faults: str) -> None:
        """Replace all faults by these (``csrc/account/faults.h``)."""
        status = self._core.sim_set_faults(faults.encode())
        if status:
            raise ValueError(f"field {status} of {faults!r} is not understood")

    def device_at(self, index: int) -> int:
        """The device that a program knows by this index (``CUDA_VISIBLE_DEVICES``), or -1."""
        return int(self._core.sim_device_at(index))

    def process_bytes(self, device: int) -> int:
        """What this process holds on the device."""
        return int(self._core.sim_process_bytes(device))

    def peak_process_bytes(self, device: int) -> int:
        """The most it held since the start or the last reset."""
        return int(self._core.sim_peak_process_bytes(device))

    def allocations(self) -> int:
        """The number of allocations of device memory in this process, on all devices."""
        return int(self._core.sim_allocations())

    def cudnn_attention_calls(self) -> int:
        """How often cuDNN computed an attention."""
        return int(self._core.sim_cudnn_attention_calls())

    def cudnn_attention_unknown(self, since: int) -> int | None:
        """Bytes that a plan of cuDNN attention may take and the account does not have.

        None if cuDNN computed no attention.

        Args:
            since: Earlier calls are left out (`cudnn_attention_calls`).
        """
        found = int(self._core.sim_cudnn_attention_unknown(since))
        return None if found < 0 else found

    def early_answers(self) -> int:
        """How often a query of unfinished work on a side stream returned that it was done."""
        return int(self._core.sim_early_answers())

    def unknown_reads(self) -> int:
        """How often the host has read device memory whose values are unknown or guesses."""
        return int(self._core.sim_unknown_reads())

    def reset_peak(self, device: int) -> None:
        """Set the peak to what the process holds now."""
        self._core.sim_reset_peak(device)

    def host_processes(self, directory: Path) -> None:
        """Count this process together with those that it starts from now on.

        Args:
            directory: The directory of their ledgers, which their environment names.

        Raises:
            OSError: No memory can be shared there.
        """
        if not self._core.sim_host_processes(os.fsencode(directory)):
            raise OSError(f"no memory could be shared in {str(directory)!r}")

    def together_bytes(self, device: int) -> int | None:
        """The most that this process and those it started held of the device at the same time.

        It counts since the last `reset_together`. A process that holds nothing but its CUDA context
        is not counted if it is the one that started the others. None if too many took part.
        """
        found = int(self._core.sim_together_bytes(device))
        return None if found == _TOO_MANY else found

    def reset_together(self) -> None:
        """Start again from what the running processes hold now."""
        self._core.sim_reset_together()

    def note_allocator(self, device: int, allocated: int, reserved: int) -> None:
        """Raise the peaks of PyTorch's allocator in the ledger of this process, if it has one."""
        self._core.sim_ledger_note_allocator(device, allocated, reserved)

    def note_rank(self, rank: int) -> None:
        """Write the rank of this process in its distributed job to its ledger."""
        self._core.sim_ledger_note_rank(rank)

    def note_failure(self, text: str) -> None:
        """Write to the ledger of this process, if it has one, how it ran out of memory."""
        self._core.sim_ledger_note_failure(text.encode())

    def note_remarks(self, lines: str) -> None:
        """Write notes on the figures to the ledger of this process, if it has one."""
        self._core.sim_ledger_note_remarks(lines.encode())


def load(libraries: BuiltLibraries) -> Account:
    """Load all libraries under CUDA's names, so that later ones link to them instead of CUDA's.

    Raises:
        ObstacleError: One of them does not load.
    """
    for path in libraries.paths:
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            what = f"a library of the simulated GPU does not load ({error})"
            remedy = f"remove the directory {str(path.parent)!r}, and it is compiled anew"
            raise ObstacleError(Problem(what, remedy)) from error
    return open_account(libraries.core)


def open_account(core: Path) -> Account:
    """The account of a core that is loaded already."""
    return Account(ctypes.CDLL(str(core)))
