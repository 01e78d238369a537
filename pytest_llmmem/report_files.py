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

# What writing may take before the session ends: a second of this thread's processor time, and a
# twentieth of the session's time.
FREE_SECONDS = 1.0
SHARE = 0.05


class ReportFiles:
    """Replaces the reports of earlier sessions at once, and keeps them up to date.

    However the session ends, each file has its records and no older ones. Until `finish` has
    written the whole report, the files say that they are incomplete.

    Attributes:
        written: What `finish` has written, for the user.
        errors: What it could not write.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.written: list[str] = []
        self.errors: list[str] = []
        self._paths = paths
        self._began = time.monotonic()
        self._spent = 0.0

    def begin(self) -> None:
        """Put an empty report in the place of an older one."""
        self._write([], NOT_ENDED)

    def save(self, records: Sequence[Record]) -> None:
        """Write the records so far, unless writing has taken too much of the session already."""
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
        """Write all files; what went wrong with which."""
        if not self._paths:
            return {}
        from llmmem.report import frame, write

        errors = {}
        for path in self._paths:
            try:
                write(frame(records, incomplete=incomplete), path)
            except LlmmemError as error:
                errors[path] = str(error)
            except Exception as error:  # it must not take the results of the tests with it
                errors[path] = f"cannot write report {path}: {type(error).__name__}: {error}"
        return errors
