from __future__ import annotations

import doctest
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_llmmem.failures import (
    Ending,
    add_note,
    compares_values,
    first_line,
    may_follow_from_values,
    worst,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class OutOfMemoryError(RuntimeError):
    """As PyTorch's, which is told by its name."""


class MuteError(AssertionError):
    def __str__(self) -> str:
        raise RuntimeError("has no text")


def raised(raiser: Callable[[], Any]) -> BaseException:
    try:
        raiser()
    except Exception as error:
        return error
    raise ValueError("nothing was raised")


def of_module(source: str, file: str, name: str) -> BaseException:
    """What code raises that stands in that file and module."""
    return raised(lambda: exec(compile(source, file, "exec"), {"__name__": name}))


def while_handling(error: BaseException, then: BaseException) -> BaseException:
    def raiser() -> None:
        try:
            raise error
        except type(error):
            raise then  # noqa: B904, the context is what is tried

    return raised(raiser)


@pytest.mark.parametrize(
    ("file", "name", "is_comparison"),
    [
        ("/home/me/suite/test_it.py", "test_it", True),
        ("/home/me/suite/helpers.py", "helpers", True),
        ("/venv/site-packages/torch/testing/_comparison.py", "torch.testing._comparison", True),
        ("/venv/site-packages/transformers/testing_utils.py", "transformers.testing_utils", True),
        ("/usr/lib/python3/dist-packages/numpy/x.py", "numpy.testing._private.utils", True),
        ("/venv/site-packages/torch/nn/modules/linear.py", "torch.nn.modules.linear", False),
        ("/venv/site-packages/pytest_timeout.py", "pytest_timeout", False),
    ],
)
def test_an_assertion_compares_values_unless_it_is_a_librarys_own(
    file: str, name: str, is_comparison: bool
) -> None:
    assert compares_values(of_module("assert 1 == 2", file, name)) is is_comparison


def test_what_is_known_of_tensors_is_no_value() -> None:
    shapes = raised(lambda: np.testing.assert_array_equal(np.ones(2), np.ones(3)))
    assert not compares_values(shapes)
    assert may_follow_from_values(shapes)
    assert compares_values(raised(lambda: np.testing.assert_array_equal([1, 2], [1, 3])))


@pytest.mark.parametrize("hidden", [AttributeError("gone"), OutOfMemoryError("CUDA out of memory")])
def test_an_error_behind_an_assertion_is_what_failed(hidden: BaseException) -> None:
    error = while_handling(hidden, AssertionError(f"raised {hidden}"))
    assert not compares_values(error)
    assert not may_follow_from_values(error)
    assert not compares_values(ExceptionGroup("both", [AssertionError(), error]))  # type: ignore[list-item]


def test_a_wrong_value_can_lead_to_some_errors_and_not_to_others() -> None:
    for error in (IndexError(), ValueError(), ZeroDivisionError(), RuntimeError("shapes")):
        assert may_follow_from_values(error)
        assert not compares_values(error)
    for other in (AttributeError(), ImportError(), TypeError(), NotImplementedError()):
        assert not may_follow_from_values(other)
    assert not may_follow_from_values(RuntimeError("CUDA error: an illegal memory access"))


def test_an_ending_is_that_of_the_gpu_wherever_its_error_is() -> None:
    error = OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nadvice")
    try:
        raise ValueError("too small") from error
    except ValueError as wrapped:
        group = ExceptionGroup("several", [KeyError("x"), wrapped])
    assert Ending.of(group) == Ending("oom", "CUDA out of memory. Tried to allocate 1 GiB")
    assert Ending.of(RuntimeError("CUDA error: lost")).outcome == "crashed"
    assert Ending.of(None) == Ending("ok", "")
    # A test that got over it, and then failed for another reason, did not end with it.
    assert Ending.of(while_handling(error, KeyError("x"))).outcome == "ok"


def test_the_worst_ending_counts() -> None:
    oom, crashed, incomplete = Ending("oom", "a"), Ending("crashed", "b"), Ending("ok", "c")
    assert worst([Ending(), incomplete, crashed, oom]) == oom
    assert worst([Ending(), crashed, incomplete]) == crashed
    assert worst([incomplete, Ending()]) == incomplete
    assert worst([]) == Ending()


def test_errors_without_a_text_do_no_harm() -> None:
    assert compares_values(raised(of_mute))
    assert first_line(MuteError()) == "MuteError"


def of_mute() -> None:
    raise MuteError


def test_notes_are_added_where_pytest_shows_them() -> None:
    failed = pytest.fail.Exception("mine", pytrace=False)
    assert add_note(failed, "note")
    assert str(failed) == "mine\nnote"
    expected = pytest.xfail.Exception("")
    assert add_note(expected, "note\n  and more")
    assert str(expected) == "note"
    error = KeyError("x")
    assert add_note(error, "note")
    assert error.__notes__ == ["note"]
    example = doctest.Example("1\n", "2\n")
    test = doctest.DocTest([example], {}, "name", "file", 0, "")
    assert not add_note(doctest.DocTestFailure(test, example, "1"), "note")
