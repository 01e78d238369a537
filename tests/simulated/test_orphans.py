"""Runs end with whoever started them, however that one ends, and commands end cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmmem.validation.check import ROW_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("clean_environment")

LLAMA = "meta-llama/Llama-3.2-1B"
RUN = ("-m", "llmmem", "run", LLAMA, "--device=sim", "--no-estimate")
VALIDATE = ("-m", "llmmem", "validate", "--first=2", "--output=table.csv")
SLEEP = ("-m", "llmmem", "exec", "--", "sleep", "3600")
SOON_S = 60  # what is left of a run would take an hour


def not_ignoring_signals() -> None:
    """As in a terminal: tests that run in the background, or under nohup, inherit ignored signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Family:
    """The processes that descend from this one's children, told by a mark in their environment."""

    def __init__(self, directory: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._directory = directory

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # Every run hangs in its first allocation, inside a call of CUDA.
        environment = {"LLMMEM_SIMULATED_FAULTS": "allocation_seconds=3600", "MARK": self._mark}
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._directory,
            env=os.environ | environment,
            preexec_fn=not_ignoring_signals,  # noqa: PLW1509 - these tests start no threads
        )

    def members(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it may have ended meanwhile
                if self._mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.members()) >= count, seconds=300)

    def is_gone(self) -> bool:
        with suppress(AssertionError):
            wait_until(lambda: not self.members(), seconds=SOON_S)
        return not self.members()


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    for pid in family.members():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "number", "code", "said"),
    [
        (RUN, signal.SIGTERM, 143, ["llmmem: ended by SIGTERM"]),
        (RUN, signal.SIGKILL, -9, []),
        (VALIDATE, signal.SIGHUP, 129, ["llmmem: ended by SIGHUP"]),
        (SLEEP, signal.SIGKILL, -9, []),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_command_that_is_asked_to_end_leaves_nobody_behind(
    family: Family, command: tuple[str, ...], number: int, code: int, said: list[str]
) -> None:
    process = family.start(*command)
    family.wait_for(2 if command is SLEEP else 3)  # the command, its worker, the run
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=SOON_S)

    assert (process.returncode, stdout) == (code, "")
    assert [line for line in stderr.splitlines() if line] == said
    assert family.is_gone()


def test_an_interrupted_validation_says_so_and_its_rows_stay(
    family: Family, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    known = f"{','.join(ROW_FIELDS)}\n{','.join(['x'] * len(ROW_FIELDS))}\n"
    table.write_text(known, encoding="utf-8")
    process = family.start(*VALIDATE, "--jobs=2")
    family.wait_for(4)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=SOON_S)

    assert (process.returncode, stdout) == (130, "")
    assert [line for line in stderr.splitlines() if line] == ["llmmem: interrupted"]
    assert table.read_text(encoding="utf-8") == known
    assert family.is_gone()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGTERM)", "os._exit(1)"])
def test_a_test_session_that_is_ended_leaves_no_run_behind(
    family: Family, tmp_path: Path, end: str
) -> None:
    # pytest-timeout's method "thread" ends the session with os._exit.
    ending = f"""
    def end():
        while not os.path.exists("now"):
            time.sleep(0.05)
        {end}
    threading.Thread(target=end, daemon=True).start()
    """
    (tmp_path / "test_it.py").write_text(
        "import os, signal, threading, time\n"
        "def test_it(vram):"
        f"{ending}"
        f"vram.run({{'model': {LLAMA!r}, 'mode': 'forward', 'seq_len': 128}})\n",
        encoding="utf-8",
    )
    process = family.start(
        "-m", "pytest", "-p", "no:cacheprovider", "--llmmem-device=sim", "test_it.py"
    )
    family.wait_for(3)
    (tmp_path / "now").touch()
    process.communicate(timeout=SOON_S)

    assert family.is_gone()


def test_a_run_ends_with_its_worker_and_a_worker_outlives_the_thread_that_started_it(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""
import threading
from llmmem import Runner, Setup
setup = Setup(model={LLAMA!r}, mode="forward", seq_len=128)
with Runner("sim") as runner:
    starts = threading.Thread(target=runner.estimate, args=[setup])
    starts.start()
    starts.join()
    print("started", flush=True)
    runner.run(setup, estimate=False)
"""
    process = family.start("-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    family.wait_for(3)
    os.kill(sorted(family.members())[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=SOON_S)

    assert "the worker ended with code -9" in stderr  # it was there for the run, which has ended
    assert family.is_gone()
