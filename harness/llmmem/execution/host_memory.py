"""Host memory: how much a process uses, and the limit for workers (Linux)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HOST_MEMORY_VARIABLE", "default_limit", "free_memory", "resident_memory"]

#: The limit on the host memory of a run and its estimate together, as a size such as 8GiB.
HOST_MEMORY_VARIABLE = "LLMMEM_HOST_MEMORY"

SHARE_OF_FREE = 0.8
_CGROUPS = Path("/sys/fs/cgroup")


def default_limit() -> int | None:
    """The limit of ``LLMMEM_HOST_MEMORY`` in bytes; by default 80% of what is free now.

    ``None`` if this machine does not report its free memory.

    Raises:
        InputError: The variable is not a size.
    """
    if text := os.environ.get(HOST_MEMORY_VARIABLE):
        return parse_size(text)
    free = free_memory()
    return None if free is None else int(SHARE_OF_FREE * free)


def free_memory() -> int | None:
    """Bytes available to new processes, within the limits of the cgroups."""
    return min((*_available(), *_left_in_cgroups()), default=None)


def resident_memory(process: int) -> int:
    """Anonymous and shared resident memory of a process in bytes, without mapped files.

    Includes what a fork still shares with its parent. 0 once the process has ended.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    sizes = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * sum(map(int, sizes))


def _available() -> Iterator[int]:
    with suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        yield from (1024 * int(size) for size in re.findall(r"MemAvailable:\s+(\d+) kB", text))


def _left_in_cgroups() -> Iterator[int]:
    """What each cgroup of this process and its parents leaves free (versions 1 and 2)."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _left(_CGROUPS, path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                root = _CGROUPS / "memory"
                yield from _left(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _left(root: Path, path: str, limit: str, usage: str) -> Iterator[int]:
    group = root / path.lstrip("/")
    for directory in (group, *group.parents):
        with suppress(OSError, ValueError):  # no such file, or "max": there is no limit
            allowed = int((directory / limit).read_text(encoding="utf-8"))
            used = int((directory / usage).read_text(encoding="utf-8"))
            yield max(0, allowed - used + _reclaimable(directory))
        if directory == root:
            return


def _reclaimable(group: Path) -> int:
    """Page cache that the kernel reclaims when memory is short."""
    with suppress(OSError):
        text = (group / "memory.stat").read_text(encoding="utf-8")
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", text, re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
