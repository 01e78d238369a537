"""Processes that tests start: they have the device of the session, and count for the test."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from llmmem.catalogue.gpus import find_gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("simulated_gpu")

MIB = 2**20
CONTEXT = find_gpu("h100").context_bytes

WITH_TORCH = """
    import sys
    import torch

    def take(mib, device=0):
        return torch.empty(int(mib) << 20, dtype=torch.uint8, device=f"cuda:{device}")

    if __name__ == "__main__":
        take(sys.argv[1])
"""

# The CUDA runtime alone, which starts at once.
WITHOUT_TORCH = """
    import ctypes
    import os
    import signal
    import sys

    def take(mib):
        size = ctypes.c_size_t(int(mib) << 20)
        assert ctypes.CDLL(None).cudaMalloc(ctypes.byref(ctypes.c_void_p()), size) == 0

    def take_and_end(mib):
        take(mib)
        os._exit(0)

    if __name__ == "__main__":
        take(sys.argv[1])
        print("done", flush=True)
        if sys.argv[2:] == ["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[2:] == ["waits"]:
            sys.stdin.read()
"""

JOB = """
    import os
    import torch
    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl")
    values = [None, None]
    dist.all_gather_object(values, rank)
    assert values == [0, 1]
    torch.empty((100 + 100 * rank) << 20, dtype=torch.uint8, device="cuda")
    dist.destroy_process_group()
"""

STARTING = """
    import subprocess
    import sys

    def run(program, *arguments, **options):
        command = [sys.executable, f"{program}.py", *map(str, arguments)]
        return subprocess.run(command, **options)

    def start(mib):
        process = subprocess.Popen(
            [sys.executable, "without_torch.py", str(mib), "waits"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        return process

    def end(*processes):
        for process in processes:
            process.communicate()
"""

CONFTEST = """
    import os
    import pytest

    NAMES = ("LD_PRELOAD", "LLMMEM_SIMULATED_GPU", "LLMMEM_SIMULATED_GPU_LEDGERS")

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(config):
        if not hasattr(config, "workerinput"):
            print("left in the environment:", *(name for name in NAMES if name in os.environ))
"""


@pytest.fixture
def run_suite(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> Callable[..., pytest.RunResult]:
    """Runs a test file that can start the programs above."""

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(
            with_torch=WITH_TORCH, without_torch=WITHOUT_TORCH, job=JOB, starting=STARTING
        )
        return run_pytest(source, "--llmmem-report=report.json", *arguments)

    return run


def read_rows(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of a JSON report by test and phase."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in json.loads(path.read_text()):
        rows.setdefault(row["test"].partition("::")[2], {})[row["phase"]] = row
    return rows


def named(path: Path) -> dict[str, dict[str, int]]:
    """The process peaks by test and process, in MiB beside a CUDA context.

    A process that was forked has the command of the one that runs the tests.
    """
    known = ("total", "without_torch.py", "multiprocessing.", "together")

    def short(phase: str) -> str:
        name = phase.replace(f"{sys.executable} ", "")
        return name if name.startswith(known) else "forked"

    return {
        test: {
            short(phase): (row["peak_process_bytes"] - CONTEXT) // MIB
            for phase, row in phases.items()
        }
        for test, phases in read_rows(path).items()
    }


WITH_PYTORCH = """
    import multiprocessing
    import subprocess
    import sys

    import pytest
    import torch
    from starting import run
    from with_torch import take

    @pytest.mark.max_vram("600MiB")
    def test_over():
        run("with_torch", 1024, check=True)

    @pytest.mark.max_vram("600MiB")
    def test_under():
        run("with_torch", 64, check=True)

    @pytest.mark.max_vram("100MiB", metric="allocated")
    def test_spawned():
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=take, args=(200,))
        process.start()
        process.join()
        assert process.exitcode == 0

    @pytest.mark.max_vram("160MiB", metric="allocated")
    def test_launched():
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        subprocess.run([*launcher, "job.py"], check=True)

    @pytest.mark.max_vram("80GB")
    def test_out_of_memory():
        run("with_torch", 200 << 10, check=True, stderr=subprocess.DEVNULL)

    @pytest.mark.max_vram("1GiB")
    def test_beside_its_child():
        kept = take(300)
        run("without_torch", 300, check=True)
"""


def test_a_limit_holds_for_every_process_that_a_test_starts(
    run_suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run_suite(WITH_PYTORCH, "--llmmem-device=sim:h100x2")
    result.assert_outcomes(passed=1, failed=5)
    result.stdout.fnmatch_lines(
        [
            "peak process 1.46 GiB is over the limit of 600MiB (0.59 GiB) by *",
            "  decided by   *with_torch.py 1024",
            "  processes      1.46 GiB  *with_torch.py 1024",
            "peak allocated 0.20 GiB is over the limit of 100.00 MiB by *",
            "  decided by   multiprocessing.spawn",
            "peak allocated 0.20 GiB is over the limit of 160MiB (0.16 GiB) by *",
            "  decided by   *job.py [[]rank 1[]] [[]GPU 1[]]",
            "*CalledProcessError: *with_torch.py*",
            "*llmmem: *with_torch.py 204800 ran out of memory: CUDA out of memory. *200.00 GiB*",
            "peak process 1.51 GiB is over the limit of 1.00 GiB by *",
            "  decided by   together on GPU 0",
        ]
    )
    assert "left in the environment:" in result.outlines
    rows = read_rows(pytester.path / "report.json")
    job = {name.partition("job.py ")[2]: row for name, row in rows["test_launched"].items()}
    assert job["[rank 0] [GPU 0]"]["peak_allocated_bytes"] // MIB == 100
    assert job["[rank 1] [GPU 1]"]["peak_allocated_bytes"] // MIB == 200
    assert rows["test_launched"]["total"]["peak_allocated_bytes"] // MIB == 200
    (spawned,) = (row for name, row in rows["test_spawned"].items() if name != "total")
    assert spawned["phase"] == "multiprocessing.spawn"
    assert spawned["peak_allocated_bytes"] == 200 * MIB
    assert rows["test_out_of_memory"]["total"]["outcome"] == "oom"
    total = rows["test_beside_its_child"]["total"]
    assert total["peak_process_bytes"] == 2 * (CONTEXT + 300 * MIB)
    assert total["peak_allocated_bytes"] is None


WITHOUT_PYTORCH = """
    import multiprocessing
    import os
    import pytest
    from starting import end, run, start
    from without_torch import take, take_and_end

    def test_unmarked():
        run("without_torch", 100, check=True)

    def test_one_after_the_other():
        run("without_torch", 300, check=True)
        run("without_torch", 200, check=True)

    def test_at_the_same_time():
        end(start(300), start(200))

    def test_killed_and_followed():
        run("without_torch", 300, "killed")
        end(start(200))

    @pytest.mark.parametrize("way", ["fork", "forkserver"])
    def test_multiprocessing(way):
        process = multiprocessing.get_context(way).Process(target=take_and_end, args=(150,))
        process.start()
        process.join()
        assert process.exitcode == 0

    @pytest.fixture
    def server():
        process = start(400)
        yield
        end(process)

    def test_of_a_server(server):
        pass

    def test_own_environment(monkeypatch):
        monkeypatch.setenv("ADDED", "1")
        run("without_torch", 50, check=True)
        run("without_torch", 60, check=True, env=os.environ | {"ADDED": "2"})
        assert run("without_torch", 70, env={}).returncode == 1
"""


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_processes_are_counted_one_by_one_and_together(
    run_suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester, workers: str
) -> None:
    result = run_suite(
        WITHOUT_PYTORCH, "--llmmem-device=sim:h100", "--llmmem-max-vram=1GiB", workers
    )
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(
        [
            "peak process 1.41 GiB is over the limit of 1.00 GiB by *",
            "  decided by   together on GPU 0",
            "  processes      1.41 GiB  together on GPU 0",
            "                 0.75 GiB  * without_torch.py 300 waits",
            "                 0.66 GiB  * without_torch.py 200 waits",
        ]
    )
    assert "left in the environment:" in result.outlines
    context = CONTEXT // MIB
    assert named(pytester.path / "report.json") == {
        "test_unmarked": {"total": 100, "without_torch.py 100": 100},
        "test_one_after_the_other": {
            "total": 300,
            "without_torch.py 300": 300,
            "without_torch.py 200": 200,
        },
        "test_at_the_same_time": {
            "total": 500 + context,
            "without_torch.py 300 waits": 300,
            "without_torch.py 200 waits": 200,
            "together on GPU 0": 500 + context,
        },
        "test_killed_and_followed": {
            "total": 300,
            "without_torch.py 300 killed": 300,
            "without_torch.py 200 waits": 200,
        },
        "test_multiprocessing[fork]": {"total": 150, "forked": 150},
        "test_multiprocessing[forkserver]": {"total": 150, "multiprocessing.forkserver": 150},
        "test_of_a_server": {"total": 400, "without_torch.py 400 waits": 400},
        "test_own_environment": {
            "total": 60,
            "without_torch.py 50": 50,
            "without_torch.py 60": 60,
        },
    }
    notes = {
        test: rows["total"]["notes"]
        for test, rows in read_rows(pytester.path / "report.json").items()
    }
    assert "waits had been started before" in notes["test_of_a_server"]
    assert "waits had not ended" in notes["test_of_a_server"]
    assert "had been started before" not in notes["test_unmarked"]


def test_what_is_not_known_of_a_child_is_no_pass(
    run_suite: Callable[..., pytest.RunResult],
) -> None:
    result = run_suite(
        """
        import pytest
        from starting import run

        @pytest.mark.max_vram("1GiB", metric="allocated")
        def test_killed(vram):
            run("without_torch", 300, "killed")

        @pytest.fixture
        def kills():
            yield
            run("without_torch", 300, "killed")

        @pytest.mark.max_vram("1GiB", metric="allocated", scope="test")
        def test_killed_in_the_teardown(kills):
            import torch

            torch.ones(8, device="cuda")
        """,
        "--llmmem-device=sim:h100",
    )
    result.assert_outcomes(failed=1, passed=1, errors=1)
    not_measured = (
        "*not measured: the peak of allocated of *without_torch.py 300 killed is not known*"
    )
    result.stdout.fnmatch_lines(2 * [not_measured])


def test_llmmem_exec_sees_the_processes_of_the_tests_too(
    run_suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    run_suite("", "--co")  # writes the programs
    pytester.makepyfile(
        test_it="""
        from starting import run

        def test_child():
            run("without_torch", 100, check=True)
        """
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llmmem", "exec", "--json", "--device", "sim:h100", "--"),
            *(sys.executable, "-m", "pytest", "--llmmem-report=report.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (process,) = json.loads(done.stdout)["processes"]
    assert process["peak_process_bytes"] == CONTEXT + 100 * MIB
    assert read_rows(pytester.path / "report.json")["test_child"]["total"][
        "peak_process_bytes"
    ] == (CONTEXT + 100 * MIB)
