"""Options that several commands have."""

from __future__ import annotations

import click

from llmmem.errors import InputError
from llmmem.execution.forks import DEFAULT_TIMEOUT
from llmmem.units import parse_size

__all__ = ["host_memory_option", "json_option", "timeout_option"]

MOST_HOST_MEMORY = 2**60


def _read_timeout(_: click.Context, __: click.Parameter, value: float) -> float:
    if not 0 < value < float("inf"):
        raise InputError(f"invalid timeout {value!r}: expected seconds above zero")
    return value


def _read_host_memory(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    size = parse_size(value)
    if size > MOST_HOST_MEMORY:
        raise InputError(f"invalid host memory {value!r}: expected at most {MOST_HOST_MEMORY} B")
    return size


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
timeout_option = click.option(
    "--timeout",
    type=float,
    default=DEFAULT_TIMEOUT,
    show_default=True,
    metavar="S",
    callback=_read_timeout,
    help="Give up after S seconds.",
)
host_memory_option = click.option(
    "--host-memory",
    metavar="SIZE",
    callback=_read_host_memory,
    help="Limit on host memory, such as 8GiB.  [default: 80% of what is free]",
)
