"""One test: what is measured while it runs, and what it is held to."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import pytest

from llmmem.errors import InputError
from llmmem.measurement.gpu_errors import describe, is_cuda_error, is_out_of_memory
from llmmem.report import Record
from pytest_llmmem.marker import Limit, marker_of
from pytest_llmmem.records import NOT_MEASURED, TestRecords, forget, store
from pytest_llmmem.verdicts import SIMULATED_VALUES, not_known, over_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmmem.measurement.window import Measurement, Window
    from llmmem.program.children import ChildPeaks
    from llmmem.results import Outcome, PhaseResult
    from pytest_llmmem.session import Session

__all__ = ["GATE", "Gate"]

# A test that was held to several figures is counted with the weakest of their sources.
WEAKEST_FIRST = ("estimated", "simulated", "measured")

VALUES_MATTER = f"{SIMULATED_VALUES}, and this test is not marked max_vram"


class Gate:
    """Measures one test and holds it to its limit. The methods are in the order of a test's life.

    Attributes:
        test: The node id of the test.
        limit: What the test is held to: its marker, else the default of the suite.
        parts: What was measured of parts of the test.
    """

    def __init__(self, item: pytest.Item, session: Session) -> None:
        self.test = item.nodeid
        self.limit: Limit | None = None
        self.parts: list[PhaseResult] = []
        self._item = item
        self._session = session
        self._marked = item.get_closest_marker("max_vram") is not None
        self._uses_fixture = "vram" in getattr(item, "fixturenames", ())
        self._allocations = _allocations()
        self._guesses_before = session.guess_clock()
        self._window: Window | None = None
        self._child_peaks: ChildPeaks | None = None
        self._open = ExitStack()
        self._records: list[Record] = []
        self._sources: set[str] = set()
        self._over: list[str] = []
        self._unmeasured: list[str] = []
        self._unknown: list[str] = []

    def read_marker(self) -> None:
        """Find the limit, before anything of the test runs; an invalid marker fails the test."""
        forget(self._item.user_properties)
        try:
            self.limit = marker_of(self._item)
        except InputError as error:
            invalid = pytest.fail.Exception(f"{self.test}: {error}", pytrace=False)
            raise invalid from None
        default = self._session.options.max_vram_bytes
        if self.limit is None and default is not None:
            self.limit = Limit(default)

    def before_fixtures(self) -> None:
        """See that the test can be measured at all, and begin if its fixtures count."""
        if not (self._marked or self._uses_fixture):
            return
        if self._session.options.require_gpu and not self._session.has_real_gpu():
            pytest.fail(f"{self.test}: no GPU to measure on (--llmmem-require-gpu)", pytrace=False)
        if not self._uses_fixture and not self._session.has_gpu():
            pytest.skip(self._session.advice())
        if self.limit is not None and self.limit.scope == "test":
            self._open_window()

    def after_failed_setup(self, error: BaseException) -> None:
        """Say what an error in a fixture is worth where values are not computed."""
        if not isinstance(error, (Exception, pytest.fail.Exception)):
            return
        if self._is_about_values():
            pytest.skip(VALUES_MATTER)
        self._annotate(error)

    def before_call(self) -> None:
        """Begin to measure, unless that has begun with the fixtures."""
        if self._window is None:
            self._open_window()

    def after_call(self, error: BaseException | None) -> None:
        """End the measurement and judge the test.

        A test that fails or skips by itself keeps its own reason.

        Args:
            error: What the test itself raised.
        """
        measurement = self._close_window()
        if is_cuda_error(error):
            self._session.gpu_error(self.test)
        if isinstance(error, (KeyboardInterrupt, SystemExit, pytest.exit.Exception)):
            return
        if measurement is not None and (
            measurement.touched
            or self._has_allocated()
            or is_out_of_memory(error)
            or self._has_children
        ):
            places = [(place.where, place.bytes) for place in measurement.places]
            record = self._record(measurement, error)
            # What it shows is of this process, and says nothing of the peak of another.
            self.add(record, places if record.peaks == measurement.peaks else ())
        if isinstance(error, pytest.skip.Exception):
            return
        if error is None or self._is_about_values():
            self._judge()
        else:
            self._annotate(error)

    def after_test(self) -> None:
        """Leave what the reports carry, whatever has become of the test."""
        self._close_window()
        store(self._item.user_properties, TestRecords(tuple(self._records), self._outcome()))

    # ---- what a test is held to ----

    def add(self, record: Record, holders: Sequence[tuple[str, int]] = ()) -> None:
        """Keep a record, and hold it to the limit it names.

        Args:
            record: What was measured.
            holders: What held the peak, the largest first, with its bytes.
        """
        self._records.append(record)
        if self.limit is None or record.limit_bytes is None:
            return
        if record.peak_bytes is None:
            self._unknown.append(not_known(record))
            return
        self._sources.add(record.source)
        if record.peak_bytes > record.limit_bytes:
            self._over.append(over_limit(record, self.limit, holders))

    def add_unmeasured(self, reason: str) -> None:
        """Something that the limit is about could not be measured."""
        if self.limit is not None:
            self._unmeasured.append(reason)

    def give_up(self, reason: str) -> NoReturn:
        """End the test, because it cannot be measured here."""
        if self._session.options.require_gpu:
            pytest.fail(f"not measured: {reason}", pytrace=False)
        pytest.skip(f"not measured: {reason}")

    def _judge(self) -> None:
        if self._over:
            pytest.fail("\n".join(self._over), pytrace=False)
        if self._is_about_values():
            pytest.skip(VALUES_MATTER)
        if self._unknown:
            pytest.fail("\n".join(self._unknown), pytrace=False)
        if self._unmeasured:
            self.give_up("; ".join(self._unmeasured))
        if self._marked and not self._sources:
            pytest.fail(
                "not measured: nothing was allocated on a GPU in this process or in one that it "
                "started, and vram.run ran nothing (estimates count with --llmmem-device=estimate only)",
                pytrace=False,
            )

    def _outcome(self) -> str | None:
        unmeasured = self._unmeasured or self._unknown
        if not (self._marked or self._sources or unmeasured):
            return None
        if unmeasured or not self._sources:
            return NOT_MEASURED
        return next(source for source in WEAKEST_FIRST if source in self._sources)

    def _is_about_values(self) -> bool:
        """Whether the test is not about memory, and has used a GPU that computes no values."""
        is_about_memory = self._marked or self._uses_fixture
        return not is_about_memory and self._has_allocated() and self._session.simulated

    def _annotate(self, error: BaseException) -> None:
        """Tell beside the test's own error what is known of its memory."""
        notes = [*self._over, *self._failures_of_children]
        if is_out_of_memory(error) and self.limit is not None:
            notes.append(f"the limit of this test is {self.limit}")
        about_values = self._has_allocated() and self._session.simulated
        if not notes and about_values and not is_cuda_error(error):
            notes.append(SIMULATED_VALUES)
        for note in notes:
            error.add_note(f"llmmem: {note}")
        for note in self._session.guesses(self._guesses_before):
            error.add_note(f"llmmem: this may follow from {note}")

    def _has_allocated(self) -> bool:
        return _allocations() != self._allocations

    @property
    def _has_children(self) -> bool:
        return self._child_peaks is not None and bool(self._child_peaks.processes)

    @property
    def _failures_of_children(self) -> tuple[str, ...]:
        return () if self._child_peaks is None else self._child_peaks.failures

    def _open_window(self) -> None:
        options = self._session.options
        is_about_memory = self._marked or self._uses_fixture
        is_asked_for = is_about_memory or self.limit is not None or options.reports
        if not is_asked_for or options.device.kind == "estimate":
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
        _forget_last_failure()
        self._window = Window(self._session.index, places=is_about_memory)
        self._window.start()
        self._session.children.start()

    def _close_window(self) -> Measurement | None:
        if self._window is None:
            return None
        window, self._window = self._window, None
        self._open.close()
        self._child_peaks = self._session.children.stop()
        return window.stop()

    def _record(self, measurement: Measurement, error: BaseException | None) -> Record:
        outcome: Outcome = "ok"
        message = ""
        if error is not None and (is_out_of_memory(error) or is_cuda_error(error)):
            outcome = "oom" if is_out_of_memory(error) else "crashed"
            message = describe(error)
        elif error is not None and self._failures_of_children:
            outcome, message = "oom", self._failures_of_children[0]
        elif error is not None:
            message = "the test did not reach its end: what it would have taken is not known"
        record = Record(
            device=measurement.device,
            source=measurement.source,
            outcome=outcome,
            message=message,
            notes=measurement.notes,
            test=self.test,
            gpu=measurement.gpu,
            metric=self.limit.metric if self.limit else "process",
            peaks=measurement.peaks,
            phases=tuple(self.parts),
            context_source=measurement.context_source,
            held_before_bytes=measurement.held_before.allocated,
            limit_bytes=self.limit.bytes if self.limit else None,
            versions=self._session.versions(),
        )
        children = self._child_peaks
        return record if children is None else self._session.with_children(record, children)


GATE = pytest.StashKey[Gate]()


def _allocations() -> int:
    """How often PyTorch has allocated on a GPU; nothing is imported to find out."""
    if "torch" not in sys.modules:
        return 0
    from llmmem.measurement.window import allocations

    return allocations()


def _forget_last_failure() -> None:
    """Let go of the last test that failed: its traceback keeps all that its frames hold alive.

    pytest does the same a moment later, when the call begins.
    """
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
