from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

import pytest

from pytest_llmmem.leftovers import clear_frames

if TYPE_CHECKING:
    from collections.abc import Generator


class Held:
    pass


def raises(kept: list[weakref.ref[Held]]) -> None:
    held = Held()
    kept.append(weakref.ref(held))
    raise ValueError


def raises_a_chain(kept: list[weakref.ref[Held]]) -> None:
    try:
        raises(kept)
    except ValueError as error:
        held = Held()
        kept.append(weakref.ref(held))
        raise ExceptionGroup("several", [KeyError(), error]) from None


async def raises_in_a_coroutine(kept: list[weakref.ref[Held]]) -> None:
    held = Held()
    await asyncio.sleep(0)
    kept.append(weakref.ref(held))
    raise ValueError


def test_locals_of_failed_frames_go() -> None:
    kept: list[weakref.ref[Held]] = []
    with pytest.raises(ExceptionGroup) as in_a_chain:
        raises_a_chain(kept)
    with pytest.raises(ValueError) as in_a_coroutine:  # noqa: PT011
        asyncio.run(raises_in_a_coroutine(kept))
    for caught in (in_a_chain, in_a_coroutine):
        assert caught.traceback[-1].frame.f_locals  # which leaves a copy in older Pythons
        clear_frames(caught.value)
    assert [reference() for reference in kept] == [None, None, None]


def test_a_generator_that_goes_on_is_left_alone() -> None:
    caught: list[BaseException] = []

    def generator() -> Generator[int, None, None]:
        value = 1
        try:
            raise ValueError
        except ValueError as error:
            caught.append(error)
        yield value
        yield value + 1

    running = generator()
    assert next(running) == 1
    clear_frames(caught[0])
    assert next(running) == 2


def test_exceptions_that_are_raised_again_keep_their_frames() -> None:
    kept: list[weakref.ref[Held]] = []
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        raises(kept)
    clear_frames(raised.value, but=[raised.value])
    assert kept[0]() is not None
