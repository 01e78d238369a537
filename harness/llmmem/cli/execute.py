"""``llmmem exec``."""

from __future__ import annotations

import sys

import click

from llmmem.cli.json_output import print_json
from llmmem.cli.options import json_option

__all__ = ["execute"]


@click.command(
    "exec", context_settings={"allow_interspersed_args": False}, short_help="Run a program."
)
@click.option(
    "--device",
    default="sim",
    show_default=True,
    metavar="DEVICE",
    help="The simulated GPU: sim (an h100), sim:GPU or sim:GPUxN.",
)
@click.option("-o", "--output", metavar="FILE", help="Write a report: .csv, .json or .md.")
@json_option
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(device: str, output: str | None, as_json: bool, program: tuple[str, ...]) -> int:
    """Run PROGRAM, unmodified, on a simulated GPU, and show the memory that its processes took.

    PROGRAM is a command with its arguments, such as: python train.py --epochs 1. Its child processes
    use the simulated GPU too. The GPU does not compute values.

    The peaks are printed on standard error. With --json, they are printed on standard output, and the
    program's standard output goes to standard error. The exit code is that of the program, or 128 + N
    if signal N ended it.
    """
    from llmmem.devices import parse_device
    from llmmem.execution.program import run_program

    if output is not None:
        from llmmem.report import check_report_path

        check_report_path(output)
    chosen = parse_device(device)
    result = run_program(program, chosen, stdout=sys.stderr if as_json else None)
    if as_json:
        print_json(result.to_dict())
    else:
        from llmmem.cli.show import show_program

        show_program(result)
    if output is not None:
        from llmmem.report import Record, frame, write

        write(frame([Record.from_program(result)]), output)
    return result.exit_code
