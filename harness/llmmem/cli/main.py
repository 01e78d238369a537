"""The entry of the `llmmem` command."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING

import click

from llmmem.cli.compare import compare
from llmmem.cli.doctor import doctor
from llmmem.cli.estimate import estimate
from llmmem.cli.execute import execute
from llmmem.cli.exit_codes import BAD_INPUT, DONE, INTERRUPTED, NOT_OK
from llmmem.cli.gpus import gpus
from llmmem.cli.models import models
from llmmem.cli.run import run
from llmmem.cli.signals import SignalledError, ended_by_signals
from llmmem.cli.validate import validate
from llmmem.errors import InputError, LlmmemError, unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command", "main"]

LONGEST_LINE = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; errors are one line on standard error.

    Args:
        arguments: The command line without the program; by default that of the process.

    Returns:
        0 for success, 1 for an outcome other than ok or something that this machine cannot do, 2 for
        invalid input, 128 + N if signal N ended the command.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file name may not be valid in the encoding of the stream.
        if isinstance(stream, TextIOWrapper):
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
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _refuse(message: str, code: int) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:  # the message repeats a very long value
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

    Sizes are shown in GiB; --json prints bytes. Exit codes: 0 success, 1 an outcome other than ok,
    2 invalid input.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (estimate, run, execute, compare, validate, models, gpus, doctor):
    command.add_command(_command)
