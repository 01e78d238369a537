"""Records and verdict of a test as plain text, in the user properties of its report.

Reports cross process borders under xdist and end up in JUnit files, so they carry text only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmmem.report import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["GATES", "TestRecords", "forget", "store"]

RECORD = "llmmem_record"
GATE = "llmmem_gate"
VALUES = "llmmem_values"

NOT_MEASURED = "not measured"
#: Where the figures of a gated test come from, or that there are none.
GATES = ("measured", "simulated", "estimated", NOT_MEASURED)


@dataclass(frozen=True)
class TestRecords:
    """What one test recorded.

    Attributes:
        records: Its records, in the order they were made.
        gate: One of `GATES`; ``None`` for a test that is not gated.
        compared_values: Whether it was skipped because values are not computed.
    """

    __test__ = False  # not a test class, whatever its name

    records: tuple[Record, ...]
    gate: str | None
    compared_values: bool = False

    @classmethod
    def read(cls, properties: Iterable[tuple[str, object]]) -> TestRecords:
        """Read what `store` added to the properties of a report; other properties are ignored."""
        found = [(name, str(value)) for name, value in properties]
        records = tuple(
            Record.from_dict(json.loads(value)) for name, value in found if name == RECORD
        )
        gates = [value for name, value in found if name == GATE]
        compared_values = any(name == VALUES for name, _ in found)
        return cls(records, gates[-1] if gates else None, compared_values)


def store(properties: list[tuple[str, object]], left: TestRecords) -> None:
    """Add the records of a test to the properties of its report."""
    forget(properties)
    properties += [
        (RECORD, json.dumps(record.to_dict(), separators=(",", ":"))) for record in left.records
    ]
    if left.gate is not None:
        properties.append((GATE, left.gate))
    if left.compared_values:
        properties.append((VALUES, "not computed"))


def forget(properties: list[tuple[str, object]]) -> None:
    """Remove what an earlier attempt at the same test stored."""
    properties[:] = [pair for pair in properties if pair[0] not in (RECORD, GATE, VALUES)]
