"""Whether the estimates of this environment are those that stand in a table of `llmmem validate`.

    python benchmarks/portable_estimates.py reports/accuracy-sim-h100.csv

To be run where PyTorch is another build than the one that made the table, such as one for the CPU
alone. Prints what differs, and a line that sums it up; fails if anything does. Of an older PyTorch
memory-efficient attention takes no grouped heads; with ``--grouped-heads`` estimates choose as if it did.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from llmmem.catalogue.gpus import find_gpu
from llmmem.estimation.fake_cuda import attention
from llmmem.estimation.trace import trace
from llmmem.setups import Setup
from llmmem.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Iterator


def differences(table: pd.DataFrame, gpu: str) -> Iterator[str]:
    """A line for each setup whose trace is another one here."""
    for row in table[table.trace_outcome == "ok"].itertuples():
        here = trace(Setup.from_mapping(json.loads(str(row.setup))), find_gpu(gpu))
        allocated = (here.peaks.allocated or 0) - int(row.trace_allocated)
        reserved = (here.peaks.reserved or 0) - int(row.trace_reserved)
        if here.outcome != "ok" or allocated or reserved:
            said = f"{allocated:+,} B allocated, {reserved:+,} B reserved"
            yield f"{here.message or said}: {row.setup}"


def main() -> None:
    """Compare, and say how many differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path, help="what llmmem validate wrote")
    parser.add_argument("--gpu", default="h100", help="the card that it was made for")
    parser.add_argument(
        "--grouped-heads",
        action="store_true",
        help="memory-efficient attention takes fewer heads of keys than of queries, as since 2.14",
    )
    arguments = parser.parse_args()
    if arguments.grouped_heads:
        attention.EFFICIENT_TAKES_GROUPS = (0, 0)
    table = pd.read_csv(arguments.table)
    count = 0
    for line in differences(table, arguments.gpu):
        print(line, flush=True)
        count += 1
    traced = int((table.trace_outcome == "ok").sum())
    versions = library_versions()
    print(
        f"{traced - count} of {traced} estimates are the same with torch {versions['torch']} "
        f"(CUDA {versions['cuda'] or 'none'}), transformers {versions['transformers']}"
    )
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
