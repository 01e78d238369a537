from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmmem.report import Record
from llmmem.results import Peaks
from pytest_llmmem.gate import Gate
from pytest_llmmem.records import TestRecords
from pytest_llmmem.session import Session
from pytest_llmmem.session_options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmmem.results import Source

LIMIT = 1000


@pytest.fixture
def item(pytester: pytest.Pytester) -> pytest.Item:
    return pytester.getitem(
        f"""
        import pytest

        @pytest.mark.max_vram({LIMIT})
        def test_func():
            pass
        """
    )


@pytest.fixture
def gate(item: pytest.Item) -> Callable[..., Gate]:
    def make(options: Options = Options()) -> Gate:  # noqa: B008, frozen
        gate = Gate(item, Session(options))
        gate.read_marker()
        return gate

    return make


def record(peak: int | None, source: Source = "measured") -> Record:
    peaks = Peaks(allocated=1, reserved=2, process=peak)
    return Record(device="cuda:0", source=source, outcome="ok", peaks=peaks, limit_bytes=LIMIT)


def outcome(item: pytest.Item) -> str | None:
    return TestRecords.read(item.user_properties).gate


def failure(gate: Gate) -> str:
    verdict = gate.verdict("call", None)
    assert isinstance(verdict, pytest.fail.Exception)
    return str(verdict)


@pytest.mark.parametrize("peak", [LIMIT - 1, LIMIT])
def test_a_peak_up_to_the_limit_passes(
    gate: Callable[..., Gate], item: pytest.Item, peak: int
) -> None:
    judged = gate()
    judged.add(record(peak))
    assert judged.verdict("call", None) is None
    judged.leave()
    assert outcome(item) == "measured"


def test_a_peak_one_byte_over_the_limit_fails_with_peak_limit_and_excess(
    gate: Callable[..., Gate],
) -> None:
    judged = gate()
    judged.add(record(LIMIT + 1), [("test_it.py:3 in step", 900)])
    message = failure(judged)
    assert "(1001 B)" in message
    assert "(1000 B)" in message
    assert "(1 B)" in message
    assert "test_it.py:3 in step" in message
    assert "cuda:0" in message


def test_every_figure_over_the_limit_is_told(gate: Callable[..., Gate]) -> None:
    judged = gate()
    judged.add(record(LIMIT + 1))
    judged.add(record(LIMIT))
    judged.add(record(LIMIT + 2))
    assert failure(judged).count("is over the limit") == 2


def test_a_test_that_fails_by_itself_keeps_its_reason_and_is_told_its_memory(
    gate: Callable[..., Gate],
) -> None:
    judged = gate()
    judged.add(record(LIMIT + 1))
    error = AssertionError("my own reason")
    assert judged.verdict("call", error) is error
    assert "is over the limit" in error.__notes__[0]


def test_a_peak_that_is_not_known_never_passes(
    gate: Callable[..., Gate], item: pytest.Item
) -> None:
    judged = gate()
    judged.add(record(LIMIT))
    judged.add(record(None))
    assert "not measured: NVML does not report" in failure(judged)
    judged.leave()
    assert outcome(item) == "not measured"


def test_a_marked_test_that_took_nothing_never_passes(
    gate: Callable[..., Gate], item: pytest.Item
) -> None:
    judged = gate()
    assert "not measured: nothing was allocated" in failure(judged)
    judged.leave()
    assert outcome(item) == "not measured"


def test_a_test_is_counted_with_the_weakest_of_its_sources(
    gate: Callable[..., Gate], item: pytest.Item
) -> None:
    judged = gate()
    judged.add(record(LIMIT, "measured"))
    judged.add(record(LIMIT, "simulated"))
    assert judged.verdict("call", None) is None
    judged.leave()
    assert outcome(item) == "simulated"
