"""Writes the files of a report, and keeps them up to date while the session runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from llmmem.errors import LlmmemError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llmmem.report import Record

__all__ = ["ReportFiles"]

NOT_ENDED = "the session did not reach its end; these are the records that it had made by then"

# The processor time that writing may take before the session ends: one second plus 5% of the time since
# the session started.
FREE_SECONDS = 1.0
SHARE = 0.05


class ReportFiles:
    """Replaces the reports of earlier sessions at the start, and keeps the new ones up to date.

    However the session ends, the files contain its records and no older ones. Until `finish` has
    written the whole report, the files say that they are incomplete.

    Attributes:
        written: One line for each file that `finish` wrote, for the user.
        errors: One line for each file that it could not write.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.written: list[str] = []
        self.errors: list[str] = []
        self._paths = paths
        self._began = time.monotonic()
        self._spent = 0.0

    def begin(self) -> None:
        """Replace the reports of an earlier session by empty ones."""
        self._write([], NOT_ENDED)

    def save(self, records: Sequence[Record]) -> None:
        """Write the records so far, unless writing has already taken too much of the session's time."""
        if self._spent > FREE_SECONDS + SHARE * (time.monotonic() - self._began):
            return
        began = time.thread_time()
        self._write(records, NOT_ENDED)  # the end of the session reports an error that persists
        self._spent += time.thread_time() - began

    def finish(self, records: Sequence[Record], incomplete: str) -> None:
        """Write all records.

        Args:
            records: Those of the whole session.
            incomplete: Why the session did not run all of its tests; empty if it did.
        """
        errors = self._write(records, incomplete)
        count = f"{len(records)} {'record' if len(records) == 1 else 'records'}"
        for path in self._paths:
            if path in errors:
                self.errors.append(errors[path])
            else:
                note = ", incomplete" if incomplete else ""
                self.written.append(f"{path} ({count}{note})")

    def _write(self, records: Sequence[Record], incomplete: str) -> dict[Path, str]:
        """Write all files, and return the errors by path."""
        if not self._paths:
            return {}
        from llmmem.report import frame, write

        errors = {}
        for path in self._paths:
            try:
                write(frame(records, incomplete=incomplete), path)
            except LlmmemError as error:
                errors[path] = str(error)
            except Exception as error:  # an error here must not lose the results of the tests
                errors[path] = f"cannot write report {path}: {type(error).__name__}: {error}"
        return errors
