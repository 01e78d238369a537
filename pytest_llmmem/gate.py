"""One test: what is measured while it runs, and what it is held to."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import pytest

from llmmem.errors import InputError
from llmmem.measurement.gpu_errors import describe, is_cuda_error, is_out_of_memory
from llmmem.report import Record
from pytest_llmmem.leftovers import LEFTOVERS
from pytest_llmmem.marker import Limit, marker_of
from pytest_llmmem.records import NOT_MEASURED, TestRecords, forget, store
from pytest_llmmem.verdicts import SIMULATED_VALUES, over_limit, peak_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmmem.measurement.window import Measurement, Usage, Window
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
        is_about_memory = self._marked or self._uses_fixture
        self._is_measured = is_about_memory or session.options.measures_every_test
        self._usage_before = self._usage()
        self._guesses_before = session.guess_clock()
        self._window: Window | None = None
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
        if self._is_measured:
            self._item.config.stash[LEFTOVERS].begin_test()
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
            measurement.touched or self._has_allocated() or is_out_of_memory(error)
        ):
            places = [(place.where, place.bytes) for place in measurement.places]
            self.add(self._record(measurement, error), places)
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
        if record.peak_is_unknown:
            self._unknown.append(peak_unknown(record))
        if record.peak_bytes is None:
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
                "not measured: nothing was allocated on a GPU in this process and vram.run ran "
                "nothing (estimates count with --llmmem-device=estimate only)",
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
        notes = list(self._over)
        if is_out_of_memory(error) and self.limit is not None:
            notes.append(f"the limit of this test is {self.limit}")
        about_values = self._has_allocated() and self._session.simulated
        if not notes and about_values and not is_cuda_error(error):
            notes.append(SIMULATED_VALUES)
        for note in notes:
            error.add_note(f"llmmem: {note}")
        for note in self._session.guesses(self._guesses_before):
            error.add_note(f"llmmem: this may follow from {note}")

    @property
    def _metric(self) -> str:
        return self.limit.metric if self.limit else "process"

    def _has_allocated(self) -> bool:
        return self._usage().shows_allocations(since=self._usage_before)

    def _usage(self) -> Usage:
        """How often GPU memory was allocated; the allocator is asked for measured tests only."""
        from llmmem.measurement.window import NO_USAGE, usage

        return usage() if self._is_measured else NO_USAGE

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
        self._window = Window(places=is_about_memory, metric=self._metric)
        self._window.start()

    def _close_window(self) -> Measurement | None:
        if self._window is None:
            return None
        window, self._window = self._window, None
        self._open.close()
        return window.stop()

    def _record(self, measurement: Measurement, error: BaseException | None) -> Record:
        outcome: Outcome = "ok"
        message = ""
        if error is not None and (is_out_of_memory(error) or is_cuda_error(error)):
            outcome = "oom" if is_out_of_memory(error) else "crashed"
            message = describe(error)
        elif error is not None:
            message = "the test did not reach its end: what it would have taken is not known"
        return Record(
            device=measurement.device,
            source=measurement.source,
            outcome=outcome,
            message=message,
            notes=measurement.notes,
            test=self.test,
            gpu=measurement.gpu,
            metric=self._metric,
            peaks=measurement.peaks,
            gpu_index=measurement.index,
            devices=measurement.devices,
            phases=tuple(self.parts),
            context_source=measurement.context_source,
            held_before_bytes=measurement.held_before.allocated,
            limit_bytes=self.limit.bytes if self.limit else None,
            versions=self._session.versions(),
        )


GATE = pytest.StashKey[Gate]()
