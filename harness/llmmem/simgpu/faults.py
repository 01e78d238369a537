"""Faults on demand: what is to go wrong on a simulated GPU, and when.

Written as text, as the environment variable ``LLMMEM_SIMULATED_FAULTS`` has it, they are the fields
of `Faults` with semicolons between them: ``"oom_at=100;outside=20GiB"``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llmmem.errors import InputError, unknown
from llmmem.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAULTS_VARIABLE", "NVML_FAULTS", "Faults", "faults_from_environment"]

FAULTS_VARIABLE = "LLMMEM_SIMULATED_FAULTS"

#: What NVML can be made to do: refuse to tell memory and processes, for one of two reasons; list
#: processes without their memory; or say of every device that it is lost.
NVML_FAULTS = ("not_supported", "no_permission", "no_process_memory", "gpu_lost")

_COUNTS = ("oom_at", "oom_count", "launch_error_at", "lost_at", "crash_at")
_SIZES = ("oom_above", "outside", "outside_step")


@dataclass(frozen=True)
class Faults:
    """What is to go wrong. ``None``: that does not.

    Allocations are requests for device memory (``cudaMalloc``, ``cudaMallocAsync``, ``cuMemCreate``
    and the like), which PyTorch's allocator makes for a segment and not for every tensor. They and
    kernel launches are counted from 1, from the start of the process or of the run.

    Attributes:
        oom_at: The number of the first allocation that finds no memory.
        oom_count: How many do from there on; by default all. PyTorch asks twice, the second time
            after it has given back what it caches.
        oom_above: Allocations of more bytes than this find no memory.
        outside: Bytes of every device that another process holds.
        outside_step: Bytes that the other process takes more at each of our allocations.
        nvml: One of `NVML_FAULTS`.
        launch_error_at: The number of the kernel launch that ends with "an illegal memory access
            was encountered", as does every call of CUDA after it.
        lost_at: The number of the kernel launch at which the GPU is lost: every call of CUDA from
            there on ends with "unknown error", and every one of NVML with "GPU is lost".
        allocation_seconds: How long every allocation takes.
        crash_at: The number of the allocation in which the process dies of SIGSEGV.

    Raises:
        InputError: A value is not valid.
    """

    oom_at: int | None = None
    oom_count: int | None = None
    oom_above: int | None = None
    outside: int | None = None
    outside_step: int | None = None
    nvml: str | None = None
    launch_error_at: int | None = None
    lost_at: int | None = None
    allocation_seconds: float | None = None
    crash_at: int | None = None

    def __post_init__(self) -> None:
        for name in (*_COUNTS, *_SIZES):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"invalid {name} {value!r}: expected a whole number from 1")
        seconds = self.allocation_seconds
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 < seconds < float("inf")):
            raise InputError(f"invalid allocation_seconds {seconds!r}: expected seconds, above 0")
        if self.nvml is not None and self.nvml not in NVML_FAULTS:
            raise unknown("nvml", self.nvml, NVML_FAULTS)
        if self.oom_count is not None and self.oom_at is None:
            raise InputError(f"oom_count={self.oom_count} needs oom_at: the first to fail")

    def __str__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ";".join(f"{name}={value}" for name, value in values if value is not None)

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read ``"oom_at=100;outside=20GiB;nvml=no_permission"``; an empty text is no fault.

        Sizes have a unit or are bytes.

        Raises:
            InputError: A field is not known, is there twice, or its value is not valid.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, separator, value = (piece.strip() for piece in part.partition("="))
            if not separator:
                raise InputError(f'invalid fault {part!r}: expected one such as "oom_at=100"')
            if name not in names:
                raise unknown("fault", name, names)
            if name in values:
                raise InputError(f"fault {name!r} is there twice")
            try:
                values[name] = _READERS.get(name, str)(value)
            except InputError as error:
                raise InputError(f"fault {name!r}: {error}") from error
        return cls(**values)


def faults_from_environment() -> Faults:
    """What ``LLMMEM_SIMULATED_FAULTS`` asks for.

    Raises:
        InputError: It is not valid; the message names the variable.
    """
    try:
        return Faults.parse(os.environ.get(FAULTS_VARIABLE, ""))
    except InputError as error:
        raise InputError(f"{FAULTS_VARIABLE}: {error}") from error


def _read_size(value: str) -> int:
    return parse_size(int(value) if value.isdecimal() else value)


def _number(kind: Callable[[str], int | float]) -> Callable[[str], int | float | str]:
    """Reads a number; what is none is left as it is, for `Faults` to refuse by name."""

    def read(value: str) -> int | float | str:
        try:
            return kind(value)
        except ValueError:
            return value

    return read


_READERS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(_COUNTS, _number(int)),
    **dict.fromkeys(_SIZES, _read_size),
    "allocation_seconds": _number(float),
}
