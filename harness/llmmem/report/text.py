"""Makes text printable in every file and terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""`text` with lone surrogates and NUL as escapes: ``\udcff``, ``\x00``.

    Lone surrogates come from file names that are not UTF-8; UTF-8 cannot encode them.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
