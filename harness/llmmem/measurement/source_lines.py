"""Which lines of the program hold the allocated peak.

PyTorch's allocator records every allocation with its Python stack. Nothing is hooked into the program,
so its behaviour and its memory use do not change.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from llmmem.measurement.allocator_statistics import is_native
from llmmem.program_paths import is_standard_library, short_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["SourceLine", "SourceLineRecorder", "source_line_of", "source_lines_at_peak"]

MAX_ENTRIES = 5_000_000
BLOCK_BYTES = 512  # what the allocator rounds to

# The autograd engine allocates in threads of its own, which run no Python.
NO_FRAME = "the backward pass"

TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class SourceLine:
    """A line of the program, and the bytes that it allocated and that were live at the peak."""

    where: str
    bytes: int


class SourceLineRecorder:
    """Records the allocations of all GPUs, from `start` to `stop`."""

    def __init__(self) -> None:
        self._is_recording = False

    def start(self) -> None:
        """Start recording, unless the program records already or its allocator keeps no history."""
        self._is_recording = is_native() and not torch._C._cuda_isHistoryEnabled()
        if self._is_recording:
            torch.cuda.memory._record_memory_history(
                "all", "alloc", "python", max_entries=MAX_ENTRIES
            )

    def stop(self, device: int) -> tuple[int, tuple[SourceLine, ...]]:
        """Stop recording; the peak of what was allocated meanwhile in bytes, and the lines that held it."""
        if not self._is_recording:
            return 0, ()
        with _inductor_not_imported():
            entries = torch.cuda.memory._snapshot(device)["device_traces"][device]
        torch.cuda.memory._record_memory_history(None)
        return source_lines_at_peak(entries)


@contextmanager
def _inductor_not_imported() -> Iterator[None]:
    """Keep a snapshot from importing Inductor, which it does to find the lines of compiled code.

    If nothing else has imported Inductor, there is no compiled code. The import takes longer than most
    tests and slows down every later garbage collection.
    """
    if "torch._inductor" in sys.modules:
        yield
        return
    torch._inductor = SimpleNamespace()  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch._inductor


def source_lines_at_peak(
    entries: Sequence[Mapping[str, Any]],
) -> tuple[int, tuple[SourceLine, ...]]:
    """The allocated peak of a history in bytes, and the lines that held it, the largest first."""
    alive: dict[int, Mapping[str, Any]] = {}
    held = peak = 0
    top = 0
    for position, entry in enumerate(entries):
        if entry["action"] == "alloc":
            alive[entry["addr"]] = entry
            held += _block(entry)
        elif entry["action"] == "free_requested" and entry["addr"] in alive:
            held -= _block(alive.pop(entry["addr"]))
        if held > peak:
            peak, top = held, position
    sizes: Counter[str] = Counter()
    for entry in _alive(entries[: top + 1]):
        sizes[source_line_of(entry["frames"])] += _block(entry)
    return peak, tuple(SourceLine(where, size) for where, size in sizes.most_common())


def _alive(entries: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The allocations that were not freed by the end."""
    alive: dict[int, Mapping[str, Any]] = {}
    for entry in entries:
        if entry["action"] == "alloc":
            alive[entry["addr"]] = entry
        elif entry["action"] == "free_requested":
            alive.pop(entry["addr"], None)
    return alive.values()


def _block(entry: Mapping[str, Any]) -> int:
    return -(-int(entry["size"]) // BLOCK_BYTES) * BLOCK_BYTES


def source_line_of(frames: Sequence[Mapping[str, Any]]) -> str:
    """The innermost line that belongs to neither torch nor Python itself."""
    for frame in frames:
        if not _is_internal(frame["filename"]):
            return f"{short_path(frame['filename'])}:{frame['line']} in {frame['name']}"
    return NO_FRAME


def _is_internal(file: str) -> bool:
    return file.startswith(TORCH) or is_standard_library(file)
