"""What becomes of a session of pytest in which tests meet with a fault."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("simulated_gpu")

VARIABLE = "LLMMEM_SIMULATED_FAULTS"
COMMON = """
    import pytest
    import torch
    from llmmem import simgpu

    MIB = 2**20

    def hold(size):
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    @pytest.fixture
    def faults(request):
        with simgpu.active().inject(request.param):
            yield

    def with_faults(text):
        return pytest.mark.parametrize("faults", [text], indirect=True)
"""


def outcomes_of(result: pytest.RunResult) -> dict[str, str]:
    word = "(PASSED|FAILED|SKIPPED|ERROR)"
    test = r"test_it\.py::(\w+)"
    found = re.findall(rf"{test}\S* {word}|{word} {test}", result.stdout.str())
    return {name or other: outcome or first for name, outcome, first, other in found}


def rows_of(pytester: pytest.Pytester) -> dict[str, dict[str, Any]]:
    rows = json.loads(pytester.path.joinpath("report.json").read_text())
    return {re.sub(r".*::|\[.*", "", row["test"]): row for row in rows}


FAULTS = """
    @pytest.mark.max_vram("1GiB")
    def test_before():
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB")
    @with_faults("oom_at=1")
    def test_out_of_memory(faults):
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB")
    @with_faults("nvml=no_process_memory")
    def test_process_not_known(faults):
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB", metric="reserved")
    @with_faults("nvml=no_process_memory")
    def test_reserved_is_known(faults):
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB")
    @with_faults("outside=20GiB")
    def test_another_process(faults):
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB")
    @with_faults("launch_error_at=1")
    def test_launch(faults):
        hold(32 * MIB) + 1

    @pytest.mark.max_vram("1GiB")
    def test_after():
        hold(32 * MIB)
"""


def test_a_fault_is_the_business_of_its_test_alone(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run_pytest(
        COMMON + FAULTS, "--llmmem-device=sim:rtx4090", "--llmmem-report=report.json", "-v"
    )
    assert outcomes_of(result) == {
        "test_before": "PASSED",
        "test_out_of_memory": "FAILED",
        "test_process_not_known": "FAILED",
        "test_reserved_is_known": "PASSED",
        "test_another_process": "PASSED",
        "test_launch": "FAILED",
        "test_after": "PASSED",
    }
    result.stdout.fnmatch_lines_random(
        [
            "E *torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 32.00 MiB. *",
            "not measured: NVML does not report the memory of this process on sim:rtx4090; use "
            'metric="reserved" or "allocated"',
            "E *torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
            "llmmem: 6 gated = 0 measured + 6 simulated + 0 estimated, 1 not measured",
        ]
    )
    rows = rows_of(pytester)
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "test_before": "ok",
        "test_out_of_memory": "oom",
        "test_process_not_known": "ok",
        "test_reserved_is_known": "ok",
        "test_another_process": "ok",
        "test_launch": "crashed",
        "test_after": "ok",
    }
    assert rows["test_process_not_known"]["peak_process_bytes"] is None
    assert rows["test_process_not_known"]["context_bytes"] is None
    assert rows["test_process_not_known"]["peak_allocated_bytes"] == 32 * 2**20
    same = ("test_before", "test_another_process", "test_after")
    assert len({rows[name]["peak_process_bytes"] for name in same}) == 1


BROKEN = """
    @pytest.mark.max_vram("1GiB")
    def test_before():
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB")
    def test_breaks_the_gpu():
        hold(32 * MIB) + 1

    @pytest.mark.max_vram("1GiB")
    def test_after():
        hold(32 * MIB)

    def test_no_gpu_needed():
        assert torch.ones(3).sum() == 3

    def test_run(vram, monkeypatch):
        monkeypatch.delenv("LLMMEM_SIMULATED_FAULTS")
        vram.run({"model": "meta-llama/Llama-3.2-1B", "mode": "forward", "seq_len": 128})
"""


def test_a_gpu_that_breaks_is_named_by_the_tests_after_it_and_runs_are_unharmed(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "launch_error_at=1")
    result = run_pytest(
        COMMON + BROKEN, "--llmmem-device=sim:rtx4090", "--llmmem-report=report.json", "-v"
    )
    assert outcomes_of(result) == {
        "test_before": "PASSED",
        "test_breaks_the_gpu": "FAILED",
        "test_after": "FAILED",
        "test_no_gpu_needed": "PASSED",
        "test_run": "PASSED",
    }
    result.stdout.fnmatch_lines(
        [
            "llmmem: device sim:rtx4090 *, report report.json, faults on demand: launch_error_at=1",
            "E *torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
            "not measured: the GPU does not work in this process any more since "
            "test_it.py::test_breaks_the_gpu (CUDA error: an illegal memory access was *): only a *",
        ]
    )
    rows = rows_of(pytester)
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "test_before": "ok",
        "test_breaks_the_gpu": "crashed",
        "test_run": "ok",
    }
    assert rows["test_breaks_the_gpu"]["peak_allocated_bytes"] == 64 * 2**20


CRASH = """
    @pytest.mark.parametrize("number", range(4))
    @pytest.mark.max_vram("1GiB")
    def test_unharmed(number):
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB")
    @with_faults("crash_at=1")
    def test_crash(faults):
        hold(32 * MIB)
"""


def test_a_crash_costs_a_worker_of_xdist_and_no_other_result(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run_pytest(
        COMMON + CRASH, "--llmmem-device=sim:rtx4090", "--llmmem-report=report.json", "-n2"
    )
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(
        [
            "llmmem: 4 gated = 0 measured + 4 simulated + 0 estimated, 0 not measured",
            "llmmem: worker gw? crashed: the test it was running is not measured",
            "FAILED test_it.py::test_crash*",
        ]
    )
    rows = json.loads(pytester.path.joinpath("report.json").read_text())
    assert [row["outcome"] for row in rows] == ["ok"] * 4


def test_faults_that_are_not_valid_are_a_usage_error(
    run_pytest: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "oom_at=never")
    result = run_pytest("def test_plain(): pass", "--llmmem-device=sim:rtx4090")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {VARIABLE}: invalid oom_at 'never': expected a whole *"])
