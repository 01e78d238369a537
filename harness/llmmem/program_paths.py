"""Paths of source files, as messages show them."""

from __future__ import annotations

import sysconfig
from pathlib import Path

__all__ = ["is_standard_library", "short_path"]

_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def is_standard_library(file: str) -> bool:
    """Whether a file is of Python's standard library."""
    return file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file


def short_path(file: str) -> str:
    """The path relative to the current directory, or else the file name with its folder."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(Path(*path.parts[-2:]))
