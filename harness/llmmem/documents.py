"""Reading the TOML and JSON files that people name: setups and model configs."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_plain", "read_document"]

LARGEST_FILE = 16 * 2**20
DEEPEST = 32


def read_document(path: Path) -> object:
    """What a .toml file, or any other file as JSON, holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a regular file, is larger than 16 MiB, or is not valid; the message
            says which.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise ValueError("not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")
    text = path.read_text(encoding="utf-8")
    try:
        document: object = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return document


def check_plain(value: object, depth: int = 0) -> None:
    """Check that JSON holds the value: text, finite numbers, booleans, lists and tables of them.

    Raises:
        ValueError: It does not; the message says what is wrong with it.
    """
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"its key {key!r} is not text")
            check_plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_plain(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{value!r} is neither text, a number, a boolean, a list nor a table")
