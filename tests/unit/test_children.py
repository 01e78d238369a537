"""Children that are not counted, as on a real GPU."""

from __future__ import annotations

import subprocess
import sys

from llmmem.execution.program.children import ChildPeaks, UncountedChildren
from llmmem.execution.program.result import ProcessPeaks, named_peaks
from llmmem.results import Peaks


def test_where_children_are_not_counted_it_is_said_that_there_were_some() -> None:
    children = UncountedChildren("for a reason")
    children.start()
    assert children.stop() == ChildPeaks()
    said = ChildPeaks(notes=("processes that were started are not counted: for a reason",))
    children.start()
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert children.stop() == said
    children.start()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert children.stop() == said
        children.start()
        assert children.stop() == ChildPeaks()
        process.communicate(b"\n")


def test_processes_have_the_same_names_on_every_run() -> None:
    spawned = (
        "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)"
    )
    commands = (
        ("python", "-c", spawned, "--multiprocessing-fork"),
        ("python", "-c", "import torch\nprint(1)"),
        ("python", "train.py"),
        ("python", "train.py"),
    )
    processes = [ProcessPeaks(pid, command, 0, Peaks()) for pid, command in enumerate(commands)]
    assert list(named_peaks(processes)) == [
        "multiprocessing.spawn",
        "python -c 'import torch print(1)'",
        "python train.py",
        "python train.py #2",
    ]
