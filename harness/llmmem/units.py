"""Sizes in bytes: parsing what people write, showing what people read.

SI units count in thousands and IEC units in 1024s, as in the Hugging Face ecosystem:
``GB`` is 10**9 bytes and ``GiB`` is 2**30.
"""

from __future__ import annotations

import re
from decimal import Decimal

from llmmem.errors import InputError

__all__ = ["GIB", "MIB", "format_change", "format_size", "format_written", "parse_size"]

MIB = 2**20
GIB = 2**30
LARGEST = 2**63 - 1  # bytes are 64-bit integers in reports

ACCEPTED = 'a size such as "24GB", "22.5GiB", "512MiB", or a whole number of bytes'

_MULTIPLES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "kiB": 2**10,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kKMGT]?i?B)", re.ASCII)


def parse_size(value: str | int) -> int:
    """Bytes of a size such as ``"24GB"`` (10**9), ``"22.5GiB"`` (2**30) or ``25769803776``.

    Fractions of a byte are cut off.

    Raises:
        InputError: Not a positive size below 2**63, or a number in a string without its unit.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"invalid size {value!r}: expected {ACCEPTED}")
    if isinstance(value, int):
        size = value
    else:
        match = _SIZE.fullmatch(value.strip())
        if match is None or match["unit"] not in _MULTIPLES:
            raise InputError(f"invalid size {value!r}: expected {ACCEPTED}")
        size = int(Decimal(match["number"]) * _MULTIPLES[match["unit"]])
    if size <= 0:
        raise InputError(f"invalid size {value!r}: it must be above zero; expected {ACCEPTED}")
    if size > LARGEST:
        raise InputError(f"invalid size {value!r}: it must be below 2**63 B (8589934592 GiB)")
    return size


def format_size(size: int | None) -> str:
    """A size for people to read: ``"1.50 GiB"``, in MiB below 0.1 GiB, ``-`` if missing."""
    if size is None:
        return "-"
    if abs(size) < GIB // 10:
        return f"{size / MIB:.2f} MiB"
    return f"{size / GIB:.2f} GiB"


def format_written(size: int, written: str | None) -> str:
    """A size as written, with its value in GiB: ``"12GB (11.18 GiB)"``.

    If both are the same (``"2GiB"``), or the size was not written as text, only the value in GiB.

    Args:
        size: Bytes.
        written: The text that `parse_size` read the size from, if any.
    """
    shown = format_size(size)
    return shown if written is None or _is_same(written, shown) else f"{written} ({shown})"


def _is_same(left: str, right: str) -> bool:
    """Whether two sizes are the same number of the same unit."""
    numbers = [
        (Decimal(match["number"]), match["unit"])
        for match in (_SIZE.fullmatch(left.strip()), _SIZE.fullmatch(right))
        if match is not None
    ]
    return len(numbers) == 2 and numbers[0] == numbers[1]


def format_change(size: int) -> str:
    """A difference in bytes with its sign: ``"+1.50 GiB"``."""
    return f"{'-' if size < 0 else '+'}{format_size(abs(size))}"
