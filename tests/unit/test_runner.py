"""Runners where nothing runs: estimates, and devices that are not there."""

from __future__ import annotations

import pytest

from llmmem import Runner, Setup, UnsupportedError, run, simgpu
from llmmem.nvml import gpu_count

LLAMA = "meta-llama/Llama-3.2-1B"


@pytest.mark.skipif(gpu_count() > 0, reason="there is a real GPU")
def test_a_real_gpu_that_is_not_there_is_unsupported():
    with pytest.raises(UnsupportedError, match="0 real GPUs"):
        run(Setup(model=LLAMA), "cuda")


def test_device_estimate_runs_nothing():
    with pytest.raises(UnsupportedError, match="estimate"):
        run(Setup(model=LLAMA), "estimate")


def test_an_estimate_is_made_out_of_this_process():
    with Runner("estimate") as runner:
        estimate = runner.estimate(Setup(model=LLAMA, method="lora"), "l4")
    assert estimate.gpu == "l4"
    assert estimate.trace.outcome == "ok", estimate.trace.message
    assert estimate.trace.components is not None
    assert estimate.trace.components.total == estimate.trace.peaks.allocated


@pytest.mark.skipif(not simgpu.check(), reason="the simulated GPU works here")
def test_where_the_simulated_gpu_cannot_work_the_error_says_why():
    with (
        pytest.raises(UnsupportedError, match=r"torch|compiler|Linux"),
        Runner("sim:h100") as runner,
    ):
        runner.run(Setup(model=LLAMA))
