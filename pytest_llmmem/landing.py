"""Makes the debugger stop in the test, not in the plugin, when a test exceeds its limit."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["land_in_test"]


def land_in_test(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Point the traceback of a failure that the plugin raised at the test function.

    The test has ended, or not started, so it has no frame: a frame without its locals stands in for
    it. ``--pdb`` stops there, and ``--tb=line`` names the file of the test. Failures raised inside the
    test, including by `vram.run`, keep their own traceback.
    """
    raised = call.excinfo
    if raised is None or not isinstance(raised.value, pytest.fail.Exception):
        return
    shown = [entry for entry in raised.traceback if not entry.ishidden(raised)]
    if not shown or not _is_ours(shown[-1].frame.f_globals.get("__name__", "")):
        return
    location = _traceback_at(item)
    if location is not None:
        call.excinfo = pytest.ExceptionInfo.from_exception(raised.value.with_traceback(location))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _traceback_at(item: pytest.Item) -> TracebackType | None:
    """A traceback with one frame, at the test's function; ``None`` if the item has no function."""
    function = getattr(item, "function", None)
    if not inspect.isfunction(function):
        return None
    function = inspect.unwrap(function)
    code = function.__code__
    # As template engines do: code that raises, with the name, file and line of the test function.
    source = "\n" * (code.co_firstlineno - 1) + "raise LookupError"
    stand_in = compile(source, code.co_filename, "exec", dont_inherit=True)
    try:
        exec(stand_in.replace(co_name=code.co_name), function.__globals__, {})
    except LookupError as error:
        return error.__traceback__.tb_next if error.__traceback__ is not None else None
    return None
