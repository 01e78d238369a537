"""Classifies the error of a test: out of memory, or a comparison of values that failed."""

from __future__ import annotations

import re
import sys
import sysconfig
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, TypeGuard

import pytest

from llmmem.measurement.gpu_errors import describe, is_cuda_error, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from doctest import DocTestFailure

    from llmmem.results import Outcome

__all__ = [
    "INCOMPLETE",
    "Ending",
    "add_note",
    "compares_values",
    "first_line",
    "gpu_error_of",
    "may_follow_from_values",
    "skipped_at",
    "worst",
]

STANDARD_LIBRARY = sysconfig.get_path("stdlib")
INSTALLED = ("site-packages", "dist-packages")

#: Modules that compare on behalf of a test: torch.testing, numpy.testing, pandas._testing,
#: transformers.testing_utils, any package's tests, and unittest's own assertions.
COMPARES = re.compile(r"(^|\.)_?test\w*(\.|$)|^unittest\.case$")

#: How torch.testing and numpy.testing report differing shapes and dtypes. A simulated GPU knows both.
ATTRIBUTES_DIFFER = re.compile(
    r"^The values for attribute '\w+' do not match|\((shapes|dtypes) .* mismatch\)", re.MULTILINE
)

#: Functions that read memory statistics. A simulated GPU knows these figures.
READ_MEMORY = frozenset(
    {
        "mem_get_info",
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
        "memory_stats",
    }
)

#: Errors that a wrong number can cause: an empty list, a missing key, a division by zero. Errors in
#: the program itself (AttributeError, TypeError, ImportError) are not among them.
CONSEQUENCES = (
    AssertionError,
    ArithmeticError,
    LookupError,
    ValueError,
    pytest.fail.Exception,
)


@dataclass(frozen=True)
class Ending:
    """How a test ended, as stored in its record.

    Attributes:
        outcome: ``ok`` also for a test that failed for a reason other than memory.
        message: Why the figures may not be those of the whole test.
    """

    outcome: Outcome = "ok"
    message: str = ""

    @classmethod
    def of(cls, error: BaseException | None) -> Ending:
        """The ending of a test that raised this error, or none."""
        if error is None:
            return cls()
        gpu_error = gpu_error_of(error)
        if gpu_error is None:
            return INCOMPLETE
        return cls("oom" if is_out_of_memory(gpu_error) else "crashed", describe(gpu_error))


#: The ending of a test that failed for a reason other than memory.
INCOMPLETE = Ending("ok", "the test did not reach its end, so its full peak is not known")


def worst(endings: Iterable[Ending]) -> Ending:
    """The most severe ending (oom, then crashed, then incomplete); the first among equals."""
    severity = {"oom": 3, "crashed": 2}
    return max(
        endings,
        key=lambda ending: severity.get(ending.outcome, int(bool(ending.message))),
        default=Ending(),
    )


def gpu_error_of(error: BaseException | None) -> BaseException | None:
    """The GPU error behind a test's error, even if it is wrapped or in an exception group."""
    for each in _closure(error, _raised_from):
        if is_out_of_memory(each) or is_cuda_error(each):
            return each
    return None


def compares_values(error: BaseException) -> bool:
    """Whether the error is a failed comparison, which uncomputed values can explain.

    An assertion in a function that reads memory statistics does not count: it may be about memory. All
    errors behind this one must be failed comparisons too: an AttributeError that was turned into an
    AssertionError is still an AttributeError.
    """
    return all(_is_failed_comparison(each) for each in _reasons(error))


def may_follow_from_values(error: BaseException) -> bool:
    """Whether the error can be the consequence of a wrong value."""
    return all(_is_consequence(each) for each in _reasons(error))


def first_line(error: BaseException) -> str:
    """The type of the error and the first line of its message."""
    reason = next(_reasons(error), error)
    # The message of a doctest failure is the whole test.
    text = reason.example.source if _is_output_difference(reason) else _text(reason)
    line, _, _ = text.strip().partition("\n")
    name = type(reason).__name__
    return f"{name}: {line}" if line else name


def add_note(error: BaseException, note: str) -> bool:
    """Add a note to an error, so that pytest shows it.

    Returns:
        Whether pytest will show the note. For a doctest whose output differs, pytest shows only the
        difference.
    """
    if isinstance(error, pytest.xfail.Exception):  # its message is a reason, on one line
        note, _, _ = note.partition("\n")
        error.msg = f"{error.msg}; {note}" if error.msg else note
    elif isinstance(error, pytest.fail.Exception):  # without a traceback, notes are not shown
        error.msg = f"{error.msg}\n{note}"
    elif _is_output_difference(error):
        return False
    else:
        _shown(error).add_note(note)
    return True


def skipped_at(error: BaseException, reason: str) -> BaseException:
    """A skip to report instead of an error, at the line of the test that raised the error."""
    kept = _entries(error.__traceback__)
    while len(kept) > 1 and "__unittest" in kept[-1].tb_frame.f_globals:
        kept.pop()  # as unittest hides its own frames
    rebuilt: TracebackType | None = None
    for entry in reversed(kept):
        rebuilt = TracebackType(rebuilt, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return pytest.skip.Exception(reason).with_traceback(rebuilt)


def _is_failed_comparison(error: BaseException) -> bool:
    if _is_output_difference(error):
        return True
    if not isinstance(error, AssertionError) or ATTRIBUTES_DIFFER.search(_text(error)):
        return False
    return _is_raised_by_a_test(error) and not _is_raised_beside_memory(error)


def _is_consequence(error: BaseException) -> bool:
    if is_out_of_memory(error) or is_cuda_error(error):
        return False
    # PyTorch raises plain RuntimeErrors for shapes that do not fit; its subclasses say more.
    return (
        isinstance(error, CONSEQUENCES)
        or type(error) is RuntimeError
        or _is_output_difference(error)
    )


def _is_raised_by_a_test(error: BaseException) -> bool:
    """Whether the code that raised it is a test's, not an installed library's own check."""
    entries = _entries(error.__traceback__)
    if not entries:
        return True
    frame = entries[-1].tb_frame
    if COMPARES.search(str(frame.f_globals.get("__name__", ""))):
        return True
    file = frame.f_code.co_filename
    return not (file.startswith(STANDARD_LIBRARY) or any(part in file for part in INSTALLED))


def _is_raised_beside_memory(error: BaseException) -> bool:
    """Whether the test code that raised it, or a function nested in it, reads memory statistics.

    Only the innermost frame counts, so functions such as torch.testing.assert_close still compare values.
    """
    frames = [entry.tb_frame for entry in _entries(error.__traceback__)]
    while frames and frames[-1].f_globals.get("__name__") == "unittest.case":
        frames.pop()
    return bool(frames) and _uses(frames[-1].f_code, READ_MEMORY)


def _uses(code: CodeType, names: frozenset[str]) -> bool:
    if not names.isdisjoint(code.co_names):
        return True
    return any(_uses(each, names) for each in code.co_consts if isinstance(each, CodeType))


def _entries(traceback: TracebackType | None) -> list[TracebackType]:
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    return entries


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """All errors behind an error, without those that only carry others."""
    for each in _closure(error, _raised_with):
        if not _carried_by(each):
            yield each


def _closure(
    error: BaseException | None, behind: Callable[[BaseException], list[BaseException | None]]
) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += behind(each)


def _raised_from(error: BaseException) -> list[BaseException | None]:
    """What the error was raised from, or carries."""
    return [error.__cause__, *_carried_by(error)]


def _raised_with(error: BaseException) -> list[BaseException | None]:
    """What the error was raised from, carries, or was raised while handling."""
    context = None if error.__suppress_context__ else error.__context__
    return [context, *_raised_from(error)]


def _carried_by(error: BaseException) -> list[BaseException]:
    """The errors that this one groups or wraps."""
    if isinstance(error, BaseExceptionGroup):
        return list(error.exceptions)
    doctest = sys.modules.get("doctest")
    if doctest is None:
        return []
    if isinstance(error, doctest.UnexpectedException):
        return [error.exc_info[1]]
    # A doctest that goes on after a failure ends with an error of pytest's own that has them all.
    failures = getattr(error, "failures", None)
    of_doctest = (doctest.DocTestFailure, doctest.UnexpectedException)
    if isinstance(failures, list) and all(isinstance(each, of_doctest) for each in failures):
        return failures
    return []


def _shown(error: BaseException) -> BaseException:
    """The error whose notes pytest shows: in a doctest, what an example raised."""
    doctest = sys.modules.get("doctest")
    if doctest is not None and isinstance(error, doctest.UnexpectedException):
        raised: BaseException = error.exc_info[1]
        return raised
    return error


def _is_output_difference(error: BaseException) -> TypeGuard[DocTestFailure]:
    doctest = sys.modules.get("doctest")
    return doctest is not None and isinstance(error, doctest.DocTestFailure)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of the program's can do anything
        return ""
