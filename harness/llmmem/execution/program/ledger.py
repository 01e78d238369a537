"""Reads the files where processes of a program record their peaks (``simgpu/csrc/account/ledger.h``)."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.execution.program.result import ProcessPeaks
from llmmem.results import Peaks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DIRECTORY_VARIABLE",
    "Ledger",
    "hand_on",
    "outer_directory",
    "read_ledgers",
    "restart_ledgers",
]

DIRECTORY_VARIABLE = "LLMMEM_SIMULATED_GPU_LEDGERS"

_MAGIC = b"llmmem03"
_MOST_DEVICES = 16
_HEAD = struct.Struct("=8sQQ")
_DEVICE = struct.Struct("=QQQQ")
_LAYOUT = struct.Struct(f"{_HEAD.format}{4 * _MOST_DEVICES}Q1024s2048s4096s")
_NOT_KNOWN = 2**64 - 1


@dataclass(frozen=True)
class Ledger:
    """The peaks that one process has recorded.

    Attributes:
        name: The name of its file, unique within the program.
        processes: Its peaks on each GPU that it used.
        failure: The out-of-memory error; empty if there was none.
        notes: Caveats about its figures; empty for a process that was killed.
        is_running: Whether the process still runs.
    """

    name: str
    processes: tuple[ProcessPeaks, ...]
    failure: str
    notes: tuple[str, ...]
    is_running: bool


def outer_directory() -> Path | None:
    """Where this process keeps its own ledger, if it is itself part of a measured program."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    return Path(directory) if directory else None


def read_ledgers(directory: Path) -> tuple[Ledger, ...]:
    """All ledgers of a directory, in the order of their ranks, then of their process ids."""
    found = [_read(path.name, path.read_bytes()) for path in directory.iterdir()]
    ledgers = [ledger for ledger in found if ledger is not None and ledger.processes]
    return tuple(sorted(ledgers, key=_order))


def restart_ledgers(directory: Path, outer: Path | None) -> frozenset[str]:
    """Reset the peaks of running processes to what they hold now, and remove all other ledgers.

    Args:
        directory: The directory of the ledgers.
        outer: Where to move the ledgers of processes that have ended; ``None`` deletes them.

    Returns:
        The names of the ledgers that remain.
    """
    remaining = set()
    for path in directory.iterdir():
        data = path.read_bytes()
        ledger = _read(path.name, data)
        if ledger is None:
            continue
        if ledger.is_running:
            _set_back(path, data)
            remaining.add(path.name)
        else:
            _move(path, outer)
    return frozenset(remaining)


def hand_on(directory: Path, outer: Path | None) -> None:
    """Move the ledgers to the program that this one is part of, if there is one."""
    for path in directory.iterdir():
        if path.read_bytes().startswith(_MAGIC):
            _move(path, outer)


def _move(path: Path, outer: Path | None) -> None:
    with suppress(OSError):  # the outer program may have ended already
        if outer is None:
            path.unlink()
        else:
            path.rename(outer / path.name)


def _set_back(path: Path, data: bytes) -> None:
    """Reset the peaks in place: the process has mapped the file, so nothing else is written."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for index in range(_MOST_DEVICES):
            at = _HEAD.size + index * _DEVICE.size
            *_, held = _DEVICE.unpack_from(data, at)
            os.pwrite(file, struct.pack("=Q", held), at)
    finally:
        os.close(file)


def _order(ledger: Ledger) -> tuple[int, int]:
    process = ledger.processes[0]
    return -1 if process.rank is None else process.rank, process.pid


def _read(name: str, data: bytes) -> Ledger | None:
    """A ledger; ``None`` for other files and ledgers that were never completed."""
    if not data.startswith(_MAGIC):
        return None
    _, pid, rank, *sizes, failure, notes, command = _LAYOUT.unpack(data)
    arguments = tuple(_text(argument) for argument in command.rstrip(b"\0").split(b"\0"))
    return Ledger(
        name,
        tuple(_processes(pid, _known(rank), arguments, sizes)),
        _text(failure.partition(b"\0")[0]),
        tuple(_text(notes.partition(b"\0")[0]).splitlines()),
        _is_running(pid),
    )


def _is_running(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # The state comes after the name, which stands in parentheses and may hold anything.
    return text.rpartition(")")[2].strip()[:1] not in ("Z", "X", "")


def _known(number: int) -> int | None:
    return None if number == _NOT_KNOWN else number


def _processes(
    pid: int, rank: int | None, command: tuple[str, ...], sizes: list[int]
) -> Iterator[ProcessPeaks]:
    for index in range(_MOST_DEVICES):
        process, allocated, reserved, _ = map(_known, sizes[4 * index : 4 * index + 4])
        if process is not None:
            yield ProcessPeaks(pid, command, index, Peaks(allocated, reserved, process), rank)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
