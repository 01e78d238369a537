"""Releases the GPU memory that tests leave behind, so that later tests do not see it."""

from __future__ import annotations

import gc
import inspect
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from types import FrameType

    from llmmem.measurement.window import Usage

__all__ = ["LEFTOVERS", "Leftovers", "clear_frames"]

_GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Leftovers:
    """Releases GPU memory that earlier tests left behind, so that figures do not depend on test order.

    Three things keep such memory: the allocator's cache, which a fixture that outlives its test can
    pin; the frames of failed tests, which live as long as their exceptions; and cyclic garbage.

    In a session that measures nothing, this does nothing.
    """

    def __init__(self, config: pytest.Config, *, measures: bool) -> None:
        self._measures = measures
        # A debugger may want to look at the frames later.
        self._keeps_frames = config.getoption("usepdb", False) or config.getoption("trace", False)
        self._errors: list[BaseException] = []
        self._raised_again: dict[pytest.FixtureDef[Any], BaseException] = {}
        self._outliving: set[pytest.FixtureDef[Any]] = set()
        self._released_at: Usage | None = None
        self._frozen_modules = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Check whether any test is about memory."""
        self._measures = self._measures or any(map(_is_about_memory, session.items))
        if self._measures:
            self._freeze()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Remember what was raised and what is reported instead."""
        raised = [call.excinfo]
        report = yield
        raised.append(call.excinfo)
        if self._measures and not self._keeps_frames:
            self._errors += [each.value for each in raised if each is not None]
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Release the exceptions of the last test; its reports have been made and shown."""
        errors, self._errors = self._errors, []
        if not errors or not _cuda_in_use():
            return
        _forget_last_failure()
        for error in errors:
            clear_frames(error, but=self._raised_again.values())

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        """Keep fixtures that outlive their test from pinning memory that earlier tests left in the cache."""
        if not self._measures or fixturedef.scope == "function":
            return (yield)
        _release()
        if fixturedef.scope != "session":
            self._outliving.add(fixturedef)
        try:
            return (yield)
        except BaseException as error:
            self._raised_again[fixturedef] = error  # for every test that asks for the fixture
            raise
        finally:
            _release()

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Note that what the fixture held may be garbage now."""
        self._outliving.discard(fixturedef)
        self._raised_again.pop(fixturedef, None)
        if fixturedef.scope != "function":
            self._released_at = None

    def pytest_unconfigure(self) -> None:
        """Unfreeze the modules, which would otherwise stay frozen after the session."""
        if self._frozen_modules:
            gc.unfreeze()

    def begin_test(self) -> None:
        """Release cached memory before the fixtures of a measured test."""
        from llmmem.measurement.window import usage

        if len(sys.modules) > self._frozen_modules and not self._outliving:
            self._freeze()
        if self._released_at is None or usage().may_differ(since=self._released_at):
            _release()
        self._released_at = usage()

    def _freeze(self) -> None:
        """Exclude imported modules from later garbage collections, which they make slow.

        Frozen objects are never collected. So this does nothing while memory is held on a GPU, and must
        not be called while a fixture with a scope narrower than the session is alive.
        """
        from llmmem.measurement.window import holds_memory

        if "torch" not in sys.modules or holds_memory():
            return
        gc.collect()
        gc.freeze()
        self._frozen_modules = len(sys.modules)


LEFTOVERS = pytest.StashKey[Leftovers]()


def clear_frames(error: BaseException, but: Iterable[BaseException] = ()) -> None:
    """Clear the frames in the tracebacks of an exception and of the exceptions linked to it.

    Frames that are still running or suspended are left alone.

    Args:
        error: The exception.
        but: Exceptions whose frames are kept.
    """
    kept = set(map(id, but))
    for each in _linked(error, kept):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if not _is_suspended(frame):
                with suppress(RuntimeError):  # it is running
                    frame.clear()
                    # Before Python 3.13, a frame keeps the copy of its locals that `f_locals` made
                    # until it is read again.
                    frame.f_locals  # noqa: B018


def _linked(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """The exception, its causes and contexts, and the members of groups."""
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions


def _is_suspended(frame: FrameType) -> bool:
    """Whether clearing the frame would end a generator or coroutine that is still to be resumed.

    From Python 3.13 on, such a frame refuses to be cleared. Before, a frame refers to its own code only
    once it has finished: until then, the generator does, and the frame does not refer to that.
    """
    if sys.version_info >= (3, 13) or not frame.f_code.co_flags & _GENERATORS:
        return False
    return not any(each is frame.f_code for each in gc.get_referents(frame))


def _is_about_memory(item: pytest.Item) -> bool:
    return item.get_closest_marker("max_vram") is not None or "vram" in getattr(
        item, "fixturenames", ()
    )


def _release() -> None:
    """Release all memory that no live tensor needs, if CUDA is in use."""
    if _cuda_in_use():
        from llmmem.measurement.window import release_cached_memory

        release_cached_memory()


def _cuda_in_use() -> bool:
    if "torch" not in sys.modules:
        return False
    from llmmem.measurement.window import cuda_in_use

    return cuda_in_use()


def _forget_last_failure() -> None:
    """Forget the last failed test, as pytest does when the next call starts."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
