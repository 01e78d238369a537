"""``llmmem validate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmmem.cli.options import host_memory_option

if TYPE_CHECKING:
    from llmmem.validation.check import Row

__all__ = ["validate"]


@click.command()
@click.option(
    "--device",
    default="sim:h100",
    show_default=True,
    metavar="DEVICE",
    help="cuda, cuda:N, sim or sim:GPU.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="REPORT.csv",
    help="The table; the page is written next to it.  [default: reports/accuracy-<device>.csv]",
)
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N")
@host_memory_option
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Only the first N setups.")
def validate(
    device: str, output: Path | None, jobs: int, host_memory: int | None, first: int | None
) -> None:
    """Run and estimate every setup of the accuracy matrix, and report the errors of the estimates.

    Setups that are already in the table are skipped, so an interrupted run can be continued.
    """
    from llmmem.devices import parse_device
    from llmmem.validation.check import validate as check
    from llmmem.validation.matrix import matrix
    from llmmem.validation.summary import summary

    name = str(parse_device(device)).replace(":", "-")
    table = output or Path("reports") / f"accuracy-{name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    cases = matrix()[:first]
    check(
        cases,
        device,
        table,
        jobs=jobs,
        host_memory=host_memory,
        progress=lambda row: click.echo(_progress(row), err=True),
    )
    page = table.with_suffix(".md")
    to = "" if output is None else f" --output {output}"
    command = f"{_settings()}llmmem validate --device {device}{to}"
    page.write_text(summary(table, device, command), encoding="utf-8")
    click.echo(f"{table}, {page}")


def _settings() -> str:
    """Environment variables that affect memory, as they are set before a command in a shell."""
    names = ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return "".join(f"{name}={os.environ[name]} " for name in names if name in os.environ)


def _progress(row: Row) -> str:
    difference = "-"
    if row.run_allocated is not None and row.trace_allocated is not None:
        difference = f"{row.trace_allocated - row.run_allocated:+,} B"
    return f"{row.run_outcome:<11} {row.trace_outcome:<11} {difference:>16}  {row.method:<12} {row.model}"
