"""Reports at the end of a session: the table, the files, and how many tests were gated."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pytest_llmmem.records import GATES, NOT_MEASURED, TestRecords
from pytest_llmmem.report_files import ReportFiles
from pytest_llmmem.verdicts import SIMULATED_VALUES, may_be_over

if TYPE_CHECKING:
    from llmmem.report import Record
    from pytest_llmmem.session_options import Options

__all__ = ["Reporter"]

SHOWN_ROWS = 20

NOTHING = TestRecords((), None)


class Reporter:
    """Collects the records of all tests, including those of xdist workers, and reports at the end."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self._config = config
        self._options = options
        self._tests: dict[str, TestRecords] = {}
        self._crashed: list[str] = []
        self._files = ReportFiles(options.reports)
        self._ended_early = ""

    def pytest_report_header(self) -> str | None:
        """One line with the options, if any is set."""
        described = self._options.describe()
        return f"llmmem: {described}" if described else None

    def pytest_sessionstart(self) -> None:
        """Replace the reports of an earlier session."""
        self._files.begin()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the records of a test; a rerun replaces the records of earlier attempts."""
        if report.when == "teardown":
            left = TestRecords.read(report.user_properties)
            if left != NOTHING:
                self._tests[report.nodeid] = left
            if left.records:
                self._files.save(self._records())

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Remember why tests are missing."""
        self._ended_early = f"the session was interrupted ({excinfo.exconly()})"

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Remember why tests are missing."""
        self._ended_early = f"an internal error ended the session ({excinfo.exconly()})"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        """Remember the xdist workers that crashed: what they ran last has left nothing."""
        if error:
            self._crashed.append(str(getattr(getattr(node, "gateway", None), "id", node)))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the files; one that cannot be written fails the session."""
        ended_early = self._ended_early
        if session.shouldfail and not ended_early:
            ended_early = f"the session stopped early ({session.shouldfail})"
        elif exitstatus == pytest.ExitCode.USAGE_ERROR:
            ended_early = "the session did not start: usage error"
        self._files.finish(self._records(), ended_early)
        if self._files.errors and exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table if requested, and always how many tests were gated and by which figures."""
        records = self._records()
        if self._options.table and records:
            self._show_table(terminalreporter, records)
        gates = Counter(left.gate for left in self._tests.values() if left.gate is not None)
        tight = [record for record in records if record.may_be_over]
        if gates:
            close = f", {len(tight)} closer to the limit than what is unknown" if tight else ""
            is_doubtful = bool(tight) or gates[NOT_MEASURED] > 0
            terminalreporter.write_line(f"llmmem: {_count(gates)}{close}", yellow=is_doubtful)
        for record in tight:
            terminalreporter.write_line(f"llmmem: {may_be_over(record)}", yellow=True)
        if skipped := sum(left.compared_values for left in self._tests.values()):
            terminalreporter.write_line(f"llmmem: {skipped} skipped: {SIMULATED_VALUES}")
        for worker in self._crashed:
            terminalreporter.write_line(
                f"llmmem: worker {worker} crashed: the test it was running is not measured",
                red=True,
            )
        for written in self._files.written:
            terminalreporter.write_line(f"llmmem: report written to {written}")
        for error in self._files.errors:
            terminalreporter.write_line(f"llmmem: {error}", red=True)

    def _records(self) -> list[Record]:
        return [record for left in self._tests.values() for record in left.records]

    def _show_table(self, reporter: pytest.TerminalReporter, records: list[Record]) -> None:
        from llmmem.report import console_text

        largest = sorted(records, key=lambda record: record.peak_bytes or 0, reverse=True)
        shown = largest if self._config.get_verbosity() > 1 else largest[:SHOWN_ROWS]
        reporter.section("GPU memory")
        # Line by line: pytest writes what a terminal's encoding lacks as escapes, ends of lines too.
        text = console_text(shown, self._config.get_terminal_writer().fullwidth)
        for line in text.splitlines():
            reporter.write_line(line)
        if len(shown) < len(largest):
            reporter.write_line(f"... and {len(largest) - len(shown)} more (-vv shows all)")


def _count(gates: Counter[str]) -> str:
    """How many tests were gated, by the source of their figures, and how many were not."""
    sources = [source for source in GATES if source != NOT_MEASURED]
    parts = " + ".join(f"{gates[source]} {source}" for source in sources)
    total = sum(gates[source] for source in sources)
    return f"{total} gated = {parts}, {gates[NOT_MEASURED]} not measured"
