"""The errors that llmmem raises."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["InputError", "LlmmemError", "UnsupportedError", "unknown"]


class LlmmemError(Exception):
    """Base of all errors that llmmem raises on purpose; the message is one line for a person."""


class InputError(LlmmemError, ValueError):
    """What was asked for is not valid: the message names the value and the accepted forms."""


class UnsupportedError(LlmmemError):
    """What was asked for is valid and cannot be done here: the message says why and what to do."""


def unknown(what: str, value: object, accepted: Iterable[str]) -> InputError:
    """The error for a name that is not among the accepted ones, with the nearest of them.

    Args:
        what: What the name stands for, such as ``"method"``.
        value: The name that was given.
        accepted: All names that would have been taken, in the order to list them.
    """
    names = list(accepted)
    near = get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {what} {value!r}{hint} (accepted: {', '.join(names)})")
