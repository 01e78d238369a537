"""Measures one test and enforces its limit."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from llmmem.errors import InputError
from llmmem.measurement.gpu_errors import is_cuda_error, is_out_of_memory
from llmmem.report import Record
from llmmem.results import DevicePeaks
from pytest_llmmem.failures import (
    INCOMPLETE,
    Ending,
    add_note,
    compares_values,
    first_line,
    gpu_error_of,
    may_follow_from_values,
    skipped_at,
    worst,
)
from pytest_llmmem.leftovers import LEFTOVERS
from pytest_llmmem.marker import marker_of
from pytest_llmmem.records import NOT_MEASURED, TestRecords, forget, store
from pytest_llmmem.verdicts import SIMULATED_VALUES, over_limit, peak_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmmem.execution.program.children import ChildPeaks
    from llmmem.measurement.window import Measurement, Usage, Window
    from llmmem.results import PhaseResult
    from pytest_llmmem.marker import Limit
    from pytest_llmmem.session import Session

__all__ = ["GATE", "Gate"]

# A test with several gated figures counts as the weakest of their sources.
WEAKEST_FIRST = ("estimated", "simulated", "measured")


class Gate:
    """Measures one test and enforces its limit. The methods are in the order in which they are called.

    `setup`, `call` and `teardown` measure; `verdict` decides when pytest writes the report of a phase.
    Only then is the error of the test known: unittest catches errors itself, and subtests are reported
    while the test still runs.

    Attributes:
        test: The node id of the test.
        limit: The limit of the test's marker, or else the default of the suite.
        parts: The peaks of the parts measured with `vram.measure`.
    """

    def __init__(self, item: pytest.Item, session: Session) -> None:
        self.test = item.nodeid
        self.limit: Limit | None = None
        self.parts: list[PhaseResult] = []
        self._item = item
        self._session = session
        self._marked = item.get_closest_marker("max_vram") is not None
        self._uses_fixture = "vram" in getattr(item, "fixturenames", ())
        is_about_memory = self._marked or self._uses_fixture
        self._is_measured = is_about_memory or session.options.measures_every_test
        self._usage_before = self._usage()
        self._guesses_before = session.guess_clock()
        self._reads_before = session.value_reads.now()
        self._window: Window | None = None
        self._child_peaks: ChildPeaks | None = None
        self._open = ExitStack()
        self._measurement: Measurement | None = None
        self._is_running = False
        self._has_passed = False
        self._endings: list[Ending] = []
        self._records: list[Record] = []
        self._own_record: Record | None = None
        self._compared_values = False
        self._sources: set[str] = set()
        self._over: list[str] = []
        self._unmeasured: list[str] = []
        self._unknown: list[str] = []

    def read_marker(self) -> None:
        """Find the limit before any code of the test runs; an invalid marker fails the test."""
        forget(self._item.user_properties)
        try:
            self.limit = marker_of(self._item)
        except InputError as error:
            invalid = pytest.fail.Exception(f"{self.test}: {error}", pytrace=False)
            raise invalid from None
        if self.limit is None:
            self.limit = self._session.options.max_vram

    def before_fixtures(self) -> None:
        """Check that the test can be measured, and start measuring if its fixtures count."""
        if self._is_measured:
            self._item.config.stash[LEFTOVERS].begin_test()
        if not (self._marked or self._uses_fixture):
            return
        if self._session.options.require_gpu and not self._session.has_real_gpu():
            pytest.fail(f"{self.test}: no GPU to measure on (--llmmem-require-gpu)", pytrace=False)
        if not self._uses_fixture and not self._session.has_gpu():
            self.give_up_without_gpu(self._session.advice())
        if self.limit is not None and self.limit.scope == "test":
            self._open_window()

    @contextmanager
    def setup(self) -> Iterator[None]:
        """Wrap the setup. If a fixture fails, a window that was opened before the fixtures is closed."""
        try:
            with self._running():
                yield
        except BaseException:
            self._end_window()
            raise

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wrap the call and measure it, unless measuring started before the fixtures."""
        if self._window is None:
            self._open_window()
        try:
            with self._running(), self._observing_expected_failures():
                yield
        finally:
            self._end_window()

    @contextmanager
    def teardown(self) -> Iterator[None]:
        """Wrap the teardown and measure it if the fixtures of the test count."""
        if self._measures_teardown():
            self._open_window()
        try:
            with self._running():
                yield
        finally:
            self._end_window()

    def verdict(self, when: str, error: BaseException | None) -> BaseException | None:
        """The error that pytest reports for a phase or subtest that has ended.

        A test that fails or skips by itself keeps its own reason.

        Exceeding the limit does not satisfy ``unittest.expectedFailure``: a test that passes but is over
        its limit is an unexpected success, with the reason added. It does satisfy ``pytest.mark.xfail``,
        because pytest applies that to whatever is reported.

        Args:
            when: ``setup``, ``call`` or ``teardown``.
            error: What the test raised.

        Returns:
            That error, or the one to report instead; ``None`` for a phase that passed.
        """
        if is_cuda_error(gpu_error_of(error)):
            self._session.gpu_error(self.test)
        self._endings.append(Ending.of(error))
        if not self._is_running:
            self._record_phase(when)
        if isinstance(error, pytest.skip.Exception):
            return error
        if error is None:
            return None if self._is_running else self._judgement(when)
        if not self._is_about_values(error):
            self._annotate(when, error)
            return error
        if self._over:  # by the default of the suite
            return _failed("\n".join(self._over))
        self._compared_values = True
        return skipped_at(error, f"{SIMULATED_VALUES}: {first_line(error)}")

    def leave(self) -> None:
        """Store the records in the user properties of the reports, whatever the outcome."""
        left = TestRecords(tuple(self._records), self._outcome(), self._compared_values)
        store(self._item.user_properties, left)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """While a phase runs, only its subtests are reported."""
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False

    # ---- records and limits ----

    def add(self, record: Record, top_allocations: Sequence[tuple[str, int]] = ()) -> None:
        """Keep a record, and check it against its limit.

        Args:
            record: What was measured.
            top_allocations: Descriptions and sizes in bytes of what held the peak, the largest first.
        """
        self._records.append(record)
        if self.limit is None or record.limit_bytes is None:
            return
        if record.peak_is_unknown:
            self._unknown.append(peak_unknown(record))
        if record.peak_bytes is None:
            return
        self._sources.add(record.source)
        if record.peak_bytes > record.limit_bytes:
            self._over.append(over_limit(record, self.limit, top_allocations))

    def add_unmeasured(self, reason: str) -> None:
        """Note that something that the limit applies to could not be measured."""
        if self.limit is not None:
            self._unmeasured.append(reason)

    def give_up(self, reason: str) -> NoReturn:
        """Skip the test because it cannot be measured here; fail it with ``--llmmem-require-gpu``."""
        __tracebackhide__ = True
        raise self._not_measured(reason)

    def give_up_without_gpu(self, reason: str) -> NoReturn:
        """Skip the test because there is no GPU; fail it if the options promise one."""
        __tracebackhide__ = True
        if self._session.options.promises_gpu:
            pytest.fail(f"not measured: {reason}", pytrace=False)
        pytest.skip(f"not measured: {reason}")

    def _not_measured(self, reason: str) -> BaseException:
        message = f"not measured: {reason}"
        is_failure = self._session.options.require_gpu
        return _failed(message) if is_failure else pytest.skip.Exception(message)

    def _judgement(self, when: str) -> BaseException | None:
        """The verdict on a phase that raised nothing."""
        if when == "call":
            verdict = self._judgement_of_call()
            self._has_passed = verdict is None
            return verdict
        if when == "teardown" and self._has_passed:
            return self._judgement_of_teardown()
        return None

    def _judgement_of_call(self) -> BaseException | None:
        if reasons := self._over or self._unknown:
            return _failed("\n".join(reasons))
        if self._unmeasured:
            return self._not_measured("; ".join(self._unmeasured))
        return None if self._measures_teardown() else self._missing()

    def _judgement_of_teardown(self) -> BaseException | None:
        if reasons := self._over or self._unknown:
            return _failed("\n".join(reasons))
        return self._missing()

    def _missing(self) -> BaseException | None:
        """The failure of a marked test for which nothing was measured; else ``None``."""
        if not self._marked or self._sources:
            return None
        return _failed(
            "not measured: nothing was allocated on a GPU in this process or in one that it "
            "started, and vram.run ran nothing (estimates count with --llmmem-device=estimate only)"
        )

    def _measures_teardown(self) -> bool:
        if self.limit is None or self.limit.scope != "test":
            return False
        return self._session.gpu_error(self.test) is None

    def _outcome(self) -> str | None:
        unmeasured = self._unmeasured or self._unknown
        if not (self._marked or self._sources or unmeasured):
            return None
        if unmeasured or not self._sources:
            return NOT_MEASURED
        return next(source for source in WEAKEST_FIRST if source in self._sources)

    def _is_about_values(self, error: BaseException) -> bool:
        """Whether a test that is not about memory failed because a value is not computed."""
        if self._marked or self._uses_fixture or not self._session.simulated:
            return False
        reads = self._session.value_reads.now() - self._reads_before
        if reads.guesses and may_follow_from_values(error):
            return True
        fixtures = getattr(self._item, "fixturenames", ())
        has_read = reads.unknown > 0 or self._session.value_reads.were_in(fixtures)
        return has_read and compares_values(error)

    def _annotate(self, when: str, error: BaseException) -> None:
        """Add what is known about the test's memory to its own error."""
        notes = [*self._over, *self._failures_of_children]
        gpu_error = gpu_error_of(error)
        if is_out_of_memory(gpu_error) and self.limit is not None:
            notes.append(f"the limit of this test is {self.limit}")
        reads = self._session.value_reads.now() - self._reads_before
        if not notes and reads.unknown and may_follow_from_values(error):
            notes.append(SIMULATED_VALUES)
        if reads.guesses:
            guesses = self._session.guesses(self._guesses_before)
            notes += [f"this may follow from {guess}" for guess in guesses]
        for note in notes:
            if not add_note(error, f"llmmem: {note}"):
                self._item.add_report_section(when, "llmmem", note)

    def _record_phase(self, when: str) -> None:
        """Keep the record of what was measured; a teardown is merged into the record of the call."""
        measurement, self._measurement = self._measurement, None
        ending = worst(self._endings)
        self._endings.clear()
        if measurement is None or not (
            measurement.touched
            or self._has_allocated()
            or self._has_children
            or ending.outcome == "oom"
        ):
            return
        record = self._record(measurement, ending)
        # The lines belong to this process: they do not explain the peak of another one.
        source_lines = measurement.source_lines if record.peaks == measurement.peaks else ()
        if self._own_record is not None:
            self._records.remove(self._own_record)
            record = _merged(self._own_record, record)
        self._own_record = record
        self.add(record, [(line.where, line.bytes) for line in source_lines])

    @contextmanager
    def _observing_expected_failures(self) -> Iterator[None]:
        """Observe the errors that unittest expects; pytest only keeps that there was one."""
        item: Any = self._item
        report = getattr(item, "addExpectedFailure", None)
        if report is None:
            yield
            return

        def hear(test: object, error: object, *others: object) -> None:
            if isinstance(error, tuple):
                self._endings.append(Ending.of(error[1]))
            report(test, error, *others)

        item.addExpectedFailure = hear
        try:
            yield
        finally:
            del item.addExpectedFailure

    @property
    def _metric(self) -> str:
        return self.limit.metric if self.limit else "process"

    def _has_allocated(self) -> bool:
        return self._usage().shows_allocations(since=self._usage_before)

    def _usage(self) -> Usage:
        """How often GPU memory was allocated; read for measured tests only."""
        from llmmem.measurement.window import NO_USAGE, usage

        return usage() if self._is_measured else NO_USAGE

    @property
    def _has_children(self) -> bool:
        return self._child_peaks is not None and bool(self._child_peaks.processes)

    @property
    def _failures_of_children(self) -> tuple[str, ...]:
        return () if self._child_peaks is None else self._child_peaks.failures

    def _open_window(self) -> None:
        is_about_memory = self._marked or self._uses_fixture
        if not self._is_measured or self._session.options.device.kind == "estimate":
            return
        if (error := self._session.gpu_error(self.test)) is not None:
            if self._marked:
                pytest.fail(f"not measured: {error}", pytrace=False)
            return
        from llmmem.measurement.window import Window

        # A test that runs setups elsewhere may never need a CUDA context in this process.
        if is_about_memory and not self._uses_fixture:
            self._session.initialise_cuda()
        if self.limit is not None and self.limit.gpu is not None:
            self._open.enter_context(self._session.capped(self.limit.gpu))
        self._window = Window(source_lines=is_about_memory, metric=self._metric)
        self._window.start()
        self._session.children.start()

    def _end_window(self) -> None:
        if self._window is None:
            return
        window, self._window = self._window, None
        self._open.close()
        self._child_peaks = self._session.children.stop()
        self._measurement = window.stop()

    def _record(self, measurement: Measurement, ending: Ending) -> Record:
        if ending == INCOMPLETE and self._failures_of_children:
            ending = Ending("oom", self._failures_of_children[0])
        record = Record(
            device=measurement.device,
            source=measurement.source,
            outcome=ending.outcome,
            message=ending.message,
            notes=measurement.notes,
            unknown_bytes=measurement.unknown_bytes,
            test=self.test,
            gpu=measurement.gpu,
            metric=self._metric,
            peaks=measurement.peaks,
            gpu_index=measurement.index,
            devices=measurement.devices,
            phases=tuple(self.parts),
            context_source=measurement.context_source,
            held_before_bytes=measurement.held_before.allocated,
            limit=self.limit.written if self.limit else None,
            limit_bytes=self.limit.bytes if self.limit else None,
            versions=self._session.versions(),
        )
        children = self._child_peaks
        return record if children is None else self._session.with_children(record, children)


GATE = pytest.StashKey[Gate]()


def _failed(reason: str) -> BaseException:
    return pytest.fail.Exception(reason, pytrace=False)


def _merged(call: Record, teardown: Record) -> Record:
    """Merge the records of a test's call and teardown.

    The result is based on the one with the higher peak; an unknown peak counts as the highest.
    """
    larger = max(
        call,
        teardown,
        key=lambda record: float("inf") if record.peak_bytes is None else record.peak_bytes,
    )
    ending = worst(Ending(record.outcome, record.message) for record in (call, teardown))
    is_of_one = (call.gpu_index, call.decided_by) == (teardown.gpu_index, teardown.decided_by)
    return replace(
        larger,
        outcome=ending.outcome,
        message=ending.message,
        peaks=call.peaks.highest(teardown.peaks) if is_of_one else larger.peaks,
        unknown_bytes=max(call.unknown_bytes, teardown.unknown_bytes),
        devices=_highest(call.devices, teardown.devices),
        held_before_bytes=call.held_before_bytes,
    )


def _highest(
    devices: Sequence[DevicePeaks], others: Sequence[DevicePeaks]
) -> tuple[DevicePeaks, ...]:
    peaks = {device.index: device.peaks for device in devices}
    for other in others:
        peaks[other.index] = peaks.get(other.index, other.peaks).highest(other.peaks)
    return tuple(DevicePeaks(index, peaks[index]) for index in sorted(peaks))
