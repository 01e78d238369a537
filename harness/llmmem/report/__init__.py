"""Reports: records of what was run or estimated, as pandas frames, files and tables."""

from __future__ import annotations

from llmmem.report.files import check_report_path, frame, load_report, write
from llmmem.report.records import COLUMNS, Record
from llmmem.report.tables import console_table, console_text

__all__ = [
    "COLUMNS",
    "Record",
    "check_report_path",
    "console_table",
    "console_text",
    "frame",
    "load_report",
    "write",
]
