"""The errors that llmmem raises."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["InputError", "LlmmemError", "UnsupportedError", "unknown"]


class LlmmemError(Exception):
    """Base class of all errors that llmmem raises on purpose; the message is one line."""


class InputError(LlmmemError, ValueError):
    """Invalid input: the message names the value and the accepted forms."""


class UnsupportedError(LlmmemError):
    """Valid input that cannot be handled here: the message says why and what to do."""


def unknown(what: str, value: object, accepted: Iterable[str]) -> InputError:
    """The error for a name that is not accepted; it suggests the closest accepted one.

    Args:
        what: What the name refers to, such as ``"method"``.
        value: The name.
        accepted: All accepted names, in the order in which the message lists them.
    """
    names = list(accepted)
    near = get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {what} {value!r}{hint} (accepted: {', '.join(names)})")
