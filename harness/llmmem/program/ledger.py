"""What the processes of a program leave behind (``simgpu/csrc/ledger.h``), read back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmmem.program.result import ProcessPeaks
from llmmem.results import Peaks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DIRECTORY_VARIABLE", "Ledger", "read_ledgers"]

DIRECTORY_VARIABLE = "LLMMEM_SIMULATED_GPU_LEDGERS"

_MAGIC = b"llmmem02"
_MOST_DEVICES = 16
_LAYOUT = struct.Struct(f"=8sQQ{3 * _MOST_DEVICES}Q1024s2048s4096s")
_NOT_KNOWN = 2**64 - 1


@dataclass(frozen=True)
class Ledger:
    """What one process left.

    Attributes:
        processes: Its peaks on each GPU that it used.
        failure: How it ran out of memory; empty if it did not.
        remarks: What decides how to read its figures; nothing of a process that was killed.
    """

    processes: tuple[ProcessPeaks, ...]
    failure: str
    remarks: tuple[str, ...]


def read_ledgers(directory: Path) -> tuple[Ledger, ...]:
    """All ledgers of a directory, in the order of their ranks, then of their process ids."""
    found = [_read(path.read_bytes()) for path in directory.iterdir()]
    ledgers = [ledger for ledger in found if ledger is not None and ledger.processes]
    return tuple(sorted(ledgers, key=_order))


def _order(ledger: Ledger) -> tuple[int, int]:
    process = ledger.processes[0]
    return -1 if process.rank is None else process.rank, process.pid


def _read(data: bytes) -> Ledger | None:
    """A ledger; None if the process was ended while it began it."""
    if not data.startswith(_MAGIC):
        return None
    _, pid, rank, *sizes, failure, remarks, command = _LAYOUT.unpack(data)
    arguments = tuple(_text(argument) for argument in command.rstrip(b"\0").split(b"\0"))
    return Ledger(
        tuple(_processes(pid, _known(rank), arguments, sizes)),
        _text(failure.partition(b"\0")[0]),
        tuple(_text(remarks.partition(b"\0")[0]).splitlines()),
    )


def _known(number: int) -> int | None:
    return None if number == _NOT_KNOWN else number


def _processes(
    pid: int, rank: int | None, command: tuple[str, ...], sizes: list[int]
) -> Iterator[ProcessPeaks]:
    for index in range(_MOST_DEVICES):
        process, allocated, reserved = map(_known, sizes[3 * index : 3 * index + 3])
        if process is not None:
            yield ProcessPeaks(pid, command, index, Peaks(allocated, reserved, process), rank)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
