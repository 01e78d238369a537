"""Reports as pandas frames, and the files they are written to and read from."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmmem.errors import InputError
from llmmem.report.records import ADDED_COLUMNS, COLUMNS, SCHEMA, incomplete_row
from llmmem.report.tables import markdown, plain_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pandas as pd

    from llmmem.report.records import Record

__all__ = ["check_report_path", "frame", "load_report", "write"]


def frame(records: Iterable[Record], *, incomplete: str = "") -> pd.DataFrame:
    """One row per record and phase, ``total`` first, with the columns and dtypes of `COLUMNS`.

    Bytes are nullable integers. Unknown values are missing, never 0.

    Args:
        records: What to report.
        incomplete: Why records are missing, if any are. The first row then says so: its phase is
            ``session``, its outcome ``incomplete``, and this is its message.
    """
    rows = [incomplete_row(incomplete)] if incomplete else []
    return _frame([*rows, *(row for record in records for row in record.rows())])


def check_report_path(path: str | Path) -> Path:
    """Check that the suffix of the path is a report format, and return the path.

    Raises:
        InputError: The suffix is not .csv, .json or .md.
    """
    return _check_suffix(Path(path), _WRITERS)


def write(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a frame of `frame` in the format of the suffix: .csv, .json or .md.

    Parent folders are created, and the file is replaced atomically: a reader sees either the old report or
    the new one.

    Raises:
        InputError: The suffix is another one, or the file cannot be written.
    """
    path = check_report_path(path)
    text = _WRITERS[path.suffix](frame)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8", newline="")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write report {str(path)!r}: {error.strerror}") from error


def load_report(path: str | Path) -> pd.DataFrame:
    """Read a .csv or .json report; the frame equals the one that was written, including dtypes.

    The report of a session that did not reach its end starts with a row whose outcome is
    ``incomplete``.

    Unknown columns are dropped. Columns that an earlier version did not write have missing values.

    Raises:
        InputError: The suffix is another one, or the file cannot be read or is not a report.
    """
    path = _check_suffix(Path(path), _READERS)
    try:
        loaded = _READERS[path.suffix](path)
    except OSError as error:
        raise InputError(f"cannot read report {str(path)!r}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot read report {str(path)!r}: {error}") from error
    others = loaded.loc[loaded["schema"] != SCHEMA, "schema"]
    if len(others):
        raise InputError(
            f"cannot read report {str(path)!r}: schema {others.iloc[0]} (accepted: {SCHEMA})"
        )
    return loaded


def _check_suffix(path: Path, accepted: Mapping[str, object]) -> Path:
    if path.suffix not in accepted:
        raise InputError(f"unknown report format {str(path)!r} (accepted: {', '.join(accepted)})")
    return path


def _check_columns(columns: Iterable[str]) -> None:
    for name in COLUMNS.keys() - ADDED_COLUMNS - set(columns):
        raise ValueError(f"it lacks the column {name!r}")


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    # Column by column: from rows, pandas would convert integer columns with gaps to floats.
    dtypes: Mapping[str, Any] = COLUMNS
    columns = {
        name: pd.array([row.get(name) for row in rows], dtype=dtype)
        for name, dtype in dtypes.items()
    }
    return pd.DataFrame(columns)


def _to_csv(frame: pd.DataFrame) -> str:
    text = frame.to_csv(index=False)
    # Readers treat a carriage return as the end of a line, and the csv module may not quote it.
    return frame.to_csv(index=False, quoting=csv.QUOTE_ALL) if "\r" in text else text


def _from_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    # Floats are read as text first: before pandas 3.1, read_csv does not parse them exactly.
    dtypes = {name: "string" if dtype == "Float64" else dtype for name, dtype in COLUMNS.items()}
    loaded = pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=[""])
    _check_columns(loaded.columns)
    return loaded.reindex(columns=list(COLUMNS)).astype(dict(COLUMNS))


def _to_json(frame: pd.DataFrame) -> str:
    return json.dumps(plain_rows(frame), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _from_json(path: Path) -> pd.DataFrame:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of rows")
    for row in rows:
        _check_columns(row)
    return _frame(rows)


_WRITERS: Mapping[str, Callable[[pd.DataFrame], str]] = {
    ".csv": _to_csv,
    ".json": _to_json,
    ".md": markdown,
}
_READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {".csv": _from_csv, ".json": _from_json}
