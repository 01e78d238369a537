from __future__ import annotations

from llmmem.report import Record, frame
from llmmem.results import Components, Peaks, PhaseResult
from llmmem.setups import Setup
from pytest_llmmem.records import TestRecords, store

RECORD = Record(
    device="sim:h100",
    source="simulated",
    outcome="ok",
    test="test_it.py::test_step",
    setup=Setup(model="gpt2", method="qlora"),
    gpu="NVIDIA H100",
    metric="allocated",
    peaks=Peaks(allocated=100, reserved=200, process=None),
    components=Components(weights=60, temporaries=40),
    phases=(PhaseResult("forward", Peaks(90, 200, None), Components(weights=90)),),
    held_before_bytes=0,
    limit_bytes=150,
    versions={"torch": "2.14.1", "driver": None},
)


def test_records_come_back_from_a_report_as_they_were() -> None:
    properties: list[tuple[str, object]] = [("someone_elses", 1)]
    left = TestRecords((RECORD, RECORD), "simulated", compared_values=True)
    store(properties, left)
    assert TestRecords.read(properties) == left


def test_a_record_that_travelled_makes_the_same_rows() -> None:
    properties: list[tuple[str, object]] = []
    store(properties, TestRecords((RECORD,), None))
    travelled = TestRecords.read(properties).records
    assert frame(travelled).equals(frame([RECORD]))


def test_reports_carry_text_only_and_it_is_named_after_the_plugin() -> None:
    properties: list[tuple[str, object]] = []
    store(properties, TestRecords((RECORD,), "simulated"))
    assert all(type(name) is str and type(value) is str for name, value in properties)
    assert all(name.startswith("llmmem_") for name, _ in properties)


def test_a_second_attempt_at_a_test_replaces_the_first() -> None:
    properties: list[tuple[str, object]] = [("someone_elses", 1)]
    store(properties, TestRecords((RECORD,), "simulated"))
    store(properties, TestRecords((), "not measured"))
    assert TestRecords.read(properties) == TestRecords((), "not measured")
    assert ("someone_elses", 1) in properties


def test_a_test_that_left_nothing_was_asked_nothing() -> None:
    assert TestRecords.read([("someone_elses", 1)]) == TestRecords((), None)
