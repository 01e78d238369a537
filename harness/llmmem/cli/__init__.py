"""The `llmmem` command."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmmem.cli.setup_options import read_setup, setup_options
from llmmem.cli.signals import SignalledError, ended_by_signals
from llmmem.errors import InputError, LlmmemError, UnsupportedError, unknown
from llmmem.forks import DEFAULT_TIMEOUT
from llmmem.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmmem.validation.check import Row

__all__ = ["command", "main"]

DONE = 0
NOT_OK = 1
BAD_INPUT = 2
INTERRUPTED = 130
MOST_HOST_MEMORY = 2**60
LONGEST_LINE = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what is wrong is one line on standard error.

    Args:
        arguments: The command line without the program; by default the process's own.

    Returns:
        0 done, 1 an outcome other than ok or something that this machine cannot do, 2 bad input,
        128 and the number of the signal that ended it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name of a file need not be text in any encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        with ended_by_signals():
            code = int(command.main(arguments, prog_name="llmmem", standalone_mode=False) or DONE)
            sys.stdout.flush()
            return code
    except click.UsageError as error:
        return _refuse(error.format_message(), BAD_INPUT)
    except InputError as error:
        return _refuse(str(error), BAD_INPUT)
    except LlmmemError as error:
        return _refuse(str(error), NOT_OK)
    except click.Abort:
        return _refuse("interrupted", INTERRUPTED)
    except SignalledError as ended:
        return _refuse(str(ended), 128 + ended.signal)
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _refuse(message: str, code: int) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:  # a value that was given is thousands of letters long
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    click.echo(f"llmmem: {line}", err=True)
    return code


class _Commands(click.Group):
    """A group that suggests the nearest command."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of that name.

        Raises:
            InputError: There is none.
        """
        found = super().get_command(ctx, cmd_name)
        if found is None:
            raise unknown("command", cmd_name, self.list_commands(ctx))
        return found


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from llmmem.versions import library_versions

        click.echo(f"llmmem {library_versions()['llmmem'] or '(not installed)'}")
        ctx.exit()


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """How much GPU memory does an LLM fine-tuning step take? Estimated, simulated or measured.

    Sizes are shown in GiB; --json gives bytes. Exit codes: 0 done, 1 over a limit or an outcome
    other than ok, 2 bad input.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _read_timeout(_: click.Context, __: click.Parameter, value: float) -> float:
    if not 0 < value < float("inf"):
        raise InputError(f"invalid timeout {value!r}: expected seconds above zero")
    return value


def _read_host_memory(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    size = parse_size(value)
    if size > MOST_HOST_MEMORY:
        raise InputError(f"invalid host memory {value!r}: no machine has so much")
    return size


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_timeout = click.option(
    "--timeout",
    type=float,
    default=DEFAULT_TIMEOUT,
    show_default=True,
    metavar="S",
    callback=_read_timeout,
    help="Give up after so many seconds.",
)
_host_memory = click.option(
    "--host-memory",
    metavar="SIZE",
    callback=_read_host_memory,
    help="Host memory that it may take, such as 8GiB.  [default: 80% of what is free]",
)


@command.command()
@setup_options
@click.option("--gpu", metavar="GPU", help="Card of the catalogue to assume; see llmmem gpus.")
@_timeout
@_host_memory
@_json
def estimate(
    source: str,
    gpu: str | None,
    timeout: float,
    host_memory: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Estimate the memory of a step without running it.

    Closed-form rules and a trace on the meta device are shown side by side.

    MODEL is a hub id, an id of llmmem models, a directory or a config.json. A .toml or .json file
    of setup keys takes its place; the options win over its keys.
    """
    setup = read_setup(source, options)
    if gpu is not None:
        from llmmem.catalogue.gpus import find_gpu

        gpu = find_gpu(gpu).name
    from llmmem.runner import estimate_in_fork

    result = estimate_in_fork(setup, gpu, timeout=timeout, host_memory=host_memory)
    if as_json:
        _print_json(result.to_dict())
    else:
        from llmmem.cli.show import show_estimate

        show_estimate(result)
    return DONE if result.trace.outcome == "ok" else NOT_OK


@command.command()
@setup_options
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cuda, cuda:N, sim, sim:GPU or sim:GPUxN.",
)
@_timeout
@_host_memory
@click.option(
    "--estimate/--no-estimate", "beside", default=True, help="Estimate too.  [default: estimate]"
)
@_json
def run(
    source: str,
    device: str,
    timeout: float,
    host_memory: int | None,
    beside: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Run a step and show what memory it took.

    Peaks, components, phases and the largest holders are shown, with the estimate beside them.

    MODEL is a hub id, an id of llmmem models, a directory or a config.json. A .toml or .json file
    of setup keys takes its place; the options win over its keys.
    """
    from llmmem.runner import Runner

    setup = read_setup(source, options)
    with Runner(device, host_memory=host_memory) as runner:
        if device == "auto" and runner.device.kind == "estimate":
            raise UnsupportedError(
                "there is no GPU, and none can be simulated: llmmem doctor says what is missing, "
                "and llmmem estimate needs none"
            )
        result = runner.run(setup, estimate=beside, timeout=timeout)
    if as_json:
        _print_json(result.to_dict())
    else:
        from llmmem.cli.show import show_run

        show_run(result)
    return DONE if result.outcome == "ok" else NOT_OK


@command.command(
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
@_json
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(device: str, output: str | None, as_json: bool, program: tuple[str, ...]) -> int:
    """Run PROGRAM, unmodified, on a simulated GPU, and show what memory its processes took.

    PROGRAM is a command with its arguments, such as: python train.py --epochs 1. Its children have
    the GPU too. Values are not computed on it.

    The program's output is left alone: the peaks are shown on standard error. With --json they are
    the document on standard output, and the program's standard output goes to standard error. The
    exit code is the program's own, 128 and the number of the signal that ended it.
    """
    from llmmem.devices import parse_device
    from llmmem.program import run_program

    if output is not None:
        from llmmem.report import check_report_path

        check_report_path(output)
    chosen = parse_device(device)
    result = run_program(program, chosen, stdout=sys.stderr if as_json else None)
    if as_json:
        _print_json(result.to_dict())
    else:
        from llmmem.cli.show import show_program

        show_program(result)
    if output is not None:
        from llmmem.report import Record, frame, write

        write(frame([Record.from_program(result)]), output)
    return result.exit_code


@command.command()
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
    help="The table; the page lies beside it.  [default: reports/accuracy-<device>.csv]",
)
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N")
@_host_memory
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Only the first N setups.")
def validate(
    device: str, output: Path | None, jobs: int, host_memory: int | None, first: int | None
) -> None:
    """Run and estimate every setup of the accuracy matrix, and write how far off estimates are.

    What the table has already is not run again: an interrupted run can be continued.
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
    """What is set in the environment that decides memory, as one sets it for one command."""
    names = ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return "".join(f"{name}={os.environ[name]} " for name in names if name in os.environ)


def _progress(row: Row) -> str:
    difference = "-"
    if row.run_allocated is not None and row.trace_allocated is not None:
        difference = f"{row.trace_allocated - row.run_allocated:+,} B"
    return f"{row.run_outcome:<11} {row.trace_outcome:<11} {difference:>16}  {row.method:<12} {row.model}"


@command.command()
@_json
def models(as_json: bool) -> None:
    """List the models whose configs come with llmmem."""
    from llmmem.catalogue.models import models as entries

    if as_json:
        _print_json([asdict(entry) | {"path": str(entry.path)} for entry in entries()])
    else:
        from llmmem.cli.show import show_models

        show_models(entries())


@command.command()
@_json
def gpus(as_json: bool) -> None:
    """List the GPUs that can be simulated, or assumed by an estimate."""
    from llmmem.catalogue.gpus import gpus as entries

    if as_json:
        _print_json([asdict(gpu) for gpu in entries()])
    else:
        from llmmem.cli.show import show_gpus

        show_gpus(entries())


@command.command()
@_json
def doctor(as_json: bool) -> int:
    """Say what this machine can do, and what is missing."""
    from llmmem.cli.doctor import examine

    diagnosis = examine()
    if as_json:
        _print_json(diagnosis.to_dict())
    else:
        from llmmem.cli.show import show_diagnosis

        show_diagnosis(diagnosis)
    return DONE if diagnosis.estimated.works else NOT_OK


def _print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))
