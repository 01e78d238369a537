"""What becomes of runs that meet with a fault, and of the runs after them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmmem import InputError, Runner, RunResult, Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETUP = Setup(model="meta-llama/Llama-3.2-1B", mode="forward", seq_len=128)
VARIABLE = "LLMMEM_SIMULATED_FAULTS"


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv(VARIABLE, raising=False)
        with Runner("sim:rtx4090") as runner:
            yield runner


@pytest.fixture(scope="module")
def unharmed(runner: Runner) -> RunResult:
    return runner.run(SETUP, estimate=False)


@pytest.fixture
def run_with(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunResult]:
    def run(faults: str, timeout: float | None = 300) -> RunResult:
        monkeypatch.setenv(VARIABLE, faults)
        return runner.run(SETUP, estimate=False, timeout=timeout)

    return run


def test_out_of_memory_on_demand_is_outcome_oom_with_what_was_reached(
    run_with: Callable[..., RunResult],
) -> None:
    result = run_with("oom_above=400MB")  # the largest matrix, of the embedding, is larger
    assert result.outcome == "oom"
    assert "Tried to allocate 502.00 MiB" in result.message
    assert result.peaks.allocated == 0
    assert "faults on demand: oom_above=400000000" in result.notes


def test_another_process_makes_a_run_fail_earlier_and_is_no_part_of_its_peak(
    run_with: Callable[..., RunResult], unharmed: RunResult
) -> None:
    assert unharmed.peaks.process is not None
    beside = run_with("outside=18GiB")
    assert beside.outcome == "ok", beside.message
    assert beside.peaks == unharmed.peaks
    result = run_with("outside=22GiB")
    assert result.outcome == "oom"
    assert "Process 4194304 has 22.00 GiB memory in use" in result.message
    assert result.peaks.process is not None
    assert result.peaks.process < unharmed.peaks.process


@pytest.mark.parametrize("fault", ["no_process_memory", "gpu_lost"])
def test_where_nvml_does_not_tell_the_process_is_not_known_and_the_rest_is(
    run_with: Callable[..., RunResult], unharmed: RunResult, fault: str
) -> None:
    result = run_with(f"nvml={fault}")
    assert result.outcome == "ok", result.message
    assert result.peaks.process is None
    assert result.context_bytes is None
    assert result.context_source is None
    assert result.peaks.allocated == unharmed.peaks.allocated
    assert result.peaks.reserved == unharmed.peaks.reserved
    assert result.components == unharmed.components
    assert result.versions["driver"] == unharmed.versions["driver"]
    assert "NVML does not report the memory of this process" in result.notes


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("launch_error_at=100", "CUDA error: an illegal memory access was encountered"),
        ("lost_at=100", "CUDA error: unknown error"),
    ],
)
def test_an_error_of_the_gpu_is_outcome_crashed_and_the_next_run_is_unharmed(
    run_with: Callable[..., RunResult], unharmed: RunResult, fault: str, message: str
) -> None:
    result = run_with(fault)
    assert result.outcome == "crashed"
    assert result.message == message
    assert result.peaks.allocated is not None
    assert unharmed.peaks.allocated is not None
    assert 0 < result.peaks.allocated < unharmed.peaks.allocated
    assert result.components is not None
    assert result.components.total == result.peaks.allocated
    assert result.components.weights == result.peaks.allocated  # it was loading
    assert run_with("") == unharmed


def test_slow_allocations_end_a_run_by_its_timeout(run_with: Callable[..., RunResult]) -> None:
    result = run_with("allocation_seconds=60", timeout=2)
    assert result.outcome == "timeout"
    assert result.peaks.allocated is None


def test_a_crash_inside_a_call_is_outcome_crashed_with_the_signal_and_the_next_run_is_unharmed(
    run_with: Callable[..., RunResult], unharmed: RunResult
) -> None:
    result = run_with("crash_at=2")
    assert result.outcome == "crashed"
    assert result.message.startswith("killed by SIGSEGV")
    assert result.peaks.allocated is None
    assert run_with("") == unharmed


def test_faults_that_are_not_valid_are_refused_by_name(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "outside=much")
    with pytest.raises(InputError, match=f"{VARIABLE}: fault 'outside': invalid size 'much'"):
        runner.run(SETUP, estimate=False)
