"""Run a program on simulated GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.catalogue.gpus import SIMULATED, find_gpu
from llmmem.errors import InputError
from llmmem.execution.parents import killed_with_parent
from llmmem.execution.program.ledger import (
    DIRECTORY_VARIABLE,
    hand_on,
    outer_directory,
    read_ledgers,
)
from llmmem.execution.program.result import ProgramResult
from llmmem.simgpu import program_environment
from llmmem.simgpu.activation import NOTES
from llmmem.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import IO

    from llmmem.devices import Device
    from llmmem.execution.program.ledger import Ledger
    from llmmem.results import Outcome

__all__ = ["run_program"]

UNUSED = (
    "no process of the program used the simulated GPU (it works only with the PyTorch in the same "
    "environment as llmmem)"
)
SHARED = "processes that share a simulated GPU do not compete for memory: each has all of it"


def run_program(
    command: Sequence[str], device: Device, *, stdout: IO[str] | None = None
) -> ProgramResult:
    """Run a program to its end; all its processes use the simulated GPUs of the device.

    Termination signals are forwarded to the program, so this must be called in the main thread.

    Args:
        command: The program and its arguments. In a virtual environment, the program is looked up there
            first, then in ``PATH``.
        device: A simulated one.
        stdout: Where its standard output goes; by default that of this process.

    Raises:
        InputError: The device is not a simulated one, or the program cannot be run.
        UnsupportedError: The GPU cannot be simulated here; the message says what to do.
    """
    if device.kind != "sim" or device.gpu is None:
        raise InputError(
            f"invalid device {str(device)!r} for a program (accepted: sim, sim:GPU, sim:GPUxN)"
        )
    gpu = program_environment(device.gpu, count=device.count)
    with tempfile.TemporaryDirectory(prefix="llmmem-") as directory:
        variables = {**gpu, DIRECTORY_VARIABLE: directory, "PATH": _search_path()}
        status = _run(command, os.environ | variables, stdout)
        ledgers = read_ledgers(Path(directory))
        hand_on(Path(directory), outer_directory())
    outcome, message = _outcome(status, ledgers)
    processes = tuple(process for ledger in ledgers for process in ledger.processes)
    return ProgramResult(
        command=tuple(command),
        device=str(device),
        gpu=find_gpu(device.gpu).title + SIMULATED,
        exit_code=status if status >= 0 else 128 - status,
        outcome=outcome,
        message=message,
        processes=processes,
        versions=library_versions(),
        notes=tuple(_notes(ledgers)),
    )


def _search_path() -> str:
    path = os.environ.get("PATH", os.defpath)
    if sys.prefix == sys.base_prefix:
        return path
    return f"{Path(sys.executable).parent}{os.pathsep}{path}"


def _run(command: Sequence[str], environment: dict[str, str], stdout: IO[str] | None) -> int:
    """Run the command; its exit status, or -N if signal N ended it."""
    with _signals_passed_on() as started:
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=stdout,
                # No other thread runs yet, and this one, the main thread, is the last to end.
                preexec_fn=partial(killed_with_parent, os.getpid()),  # noqa: PLW1509
            )
        except OSError as error:
            raise InputError(f"cannot run {command[0]!r}: {error.strerror}") from error
        with process:
            started(process)
            return process.wait()


@contextmanager
def _signals_passed_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Forward signals; yields the function to call once the program runs, which forwards earlier ones."""
    processes: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if not processes:
            early.append(number)
        # A terminal sends Ctrl-C to the program as well.
        elif number != signal.SIGINT:
            processes[0].send_signal(number)

    def started(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        for number in early:
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # the program ignores it too, as under nohup
            signal.signal(number, pass_on)
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(status: int, ledgers: Sequence[Ledger]) -> tuple[Outcome, str]:
    if status == 0:
        return "ok", ""
    failure = next((ledger.failure for ledger in ledgers if ledger.failure), None)
    if failure is not None:
        return "oom", failure
    if status < 0:
        return "crashed", f"killed by signal {-status} ({signal.strsignal(-status)})"
    return "crashed", f"exited with code {status}"


def _notes(ledgers: Sequence[Ledger]) -> Iterator[str]:
    if not ledgers:
        yield UNUSED
        return
    yield from dict.fromkeys((*NOTES, *(line for each in ledgers for line in each.notes)))
    users = Counter(process.index for each in ledgers for process in each.processes)
    if max(users.values()) > 1:
        yield SHARED
