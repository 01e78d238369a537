"""The fixture vram: setups in processes of their own, estimates, parts of a test."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_gpu")

GATED = """
    import sys
    import pytest
    from llmmem import Setup

    SETUP = {"model": "openai-community/gpt2", "seq_len": 64}

    @pytest.mark.max_vram("4GiB")
    def test_within(vram):
        result = vram.run(Setup(**SETUP))
        assert result.device == str(vram.device)
        assert result.peaks.allocated > 2**30

    @pytest.mark.max_vram("1GiB", metric="allocated")
    def test_over(vram):
        vram.run("gpt2.toml")

    @pytest.mark.max_vram("4GiB")
    def test_estimate_alone(vram):
        assert vram.estimate(SETUP).trace.peaks.allocated > 2**30

    def test_nothing_to_hold_it_to(vram):
        vram.run(SETUP)
        assert "torch" not in sys.modules

    def test_invalid_setup(vram):
        with pytest.raises(ValueError, match="unknown setup key 'modle'"):
            vram.run({"modle": "gpt2"})
        with pytest.raises(ValueError, match="invalid setup 'gpt2'"):
            vram.run("gpt2")
"""


def outcomes(result: pytest.RunResult) -> dict[str, str]:
    return dict(re.findall(r"^test_it\.py::(\S+) (\w+)", result.stdout.str(), re.MULTILINE))


def test_by_itself_it_takes_the_simulated_gpu_in_a_process_of_its_own(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    simulated_gpu: None,
) -> None:
    pytester.makefile(".toml", gpt2='model = "openai-community/gpt2"\nseq_len = 64')
    result = run_pytest(GATED, "-v", "--llmmem-report=report.json")
    assert outcomes(result) == {
        "test_within": "PASSED",
        "test_over": "FAILED",
        "test_estimate_alone": "FAILED",
        "test_nothing_to_hold_it_to": "PASSED",
        "test_invalid_setup": "PASSED",
    }
    result.stdout.fnmatch_lines_random(
        [
            "peak allocated 1.* GiB is over the limit of 1.00 GiB by *",
            "  device *sim:h100 (*H100*), simulated",
            "  setup *openai-community/gpt2 full bfloat16 1x64",
            "  components *weights * GiB, *",
            "not measured: * (estimates count with --llmmem-device=estimate only)",
            "llmmem: 2 gated = 0 measured + 2 simulated + 0 estimated, 1 not measured",
        ]
    )
    rows = json.loads(pytester.path.joinpath("report.json").read_text())
    whole = {row["test"]: row for row in rows if row["phase"] == "total"}
    assert set(whole) == {f"test_it.py::{name}" for name in outcomes(result)} - {
        "test_it.py::test_invalid_setup"
    }
    within = whole["test_it.py::test_within"]
    assert within["limit_bytes"] - within["peak_process_bytes"] == within["headroom_bytes"]
    assert within["trace_bytes"] is not None
    assert whole["test_it.py::test_estimate_alone"]["limit_bytes"] is None


TOO_LARGE = """
    MODEL = {"model": "openai-community/gpt2", "seq_len": 1024, "method": "full"}

    @pytest.mark.max_vram("500GiB")
    def test_run_does_not_fit(vram):
        vram.run({**MODEL, "batch_size": 128})

    @pytest.mark.max_vram("20GiB")
    def test_estimate_does_not_fit(vram):
        assert vram.estimate({**MODEL, "batch_size": 64}, gpu="t4").trace.outcome == "oom"
"""


def test_estimates_are_held_to_limits_where_that_was_asked_for(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makefile(".toml", gpt2='model = "openai-community/gpt2"\nseq_len = 64')
    result = run_pytest(GATED + TOO_LARGE, "-v", "--llmmem-device=estimate", "-k", "not invalid")
    assert outcomes(result) == {
        "test_within": "PASSED",
        "test_over": "FAILED",
        "test_estimate_alone": "PASSED",
        "test_nothing_to_hold_it_to": "PASSED",
        "test_run_does_not_fit": "FAILED",
        "test_estimate_does_not_fit": "FAILED",
    }
    result.stdout.fnmatch_lines_random(
        [
            # One that does not fit its card fails with what is needed.
            "outcome oom: needs * GiB, has 79.18 GiB: out of memory: *",
            "  fits         *b200*, by memory alone",
            # Only 14.56 GiB are on the card: they are no reason to pass.
            "needed process * GiB is over the limit of 20.00 GiB by * GiB",
            "llmmem: 5 gated = 0 measured + 0 simulated + 5 estimated, 0 not measured",
        ]
    )


def test_where_nothing_can_run_an_estimate_takes_its_place_and_gates_nothing(
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # Without a compiler, and without what was compiled before, there is no simulated GPU either.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "no-such-compiler")
    result = run_pytest(GATED, "-v", "-rs", "-k", "within or nothing")
    assert outcomes(result) == {
        "test_within": "SKIPPED",
        "test_nothing_to_hold_it_to": "PASSED",
    }
    result.stdout.fnmatch_lines(
        [
            "llmmem: 0 gated = 0 measured + 0 simulated + 0 estimated, 1 not measured",
            "SKIPPED * not measured: it was only estimated, *",
        ]
    )


ON_THE_SIMULATED_GPU = """
    import pytest
    import torch

    GPT2 = {"model": "openai-community/gpt2", "seq_len": 64}

    def hold(mib):
        return torch.empty(mib << 20, dtype=torch.uint8, device="cuda")

    def test_oom(vram):
        vram.run({"model": "meta-llama/Llama-3.1-8B", "method": "full"})

    def test_unsupported(vram):
        vram.run({**GPT2, "optimizer": "adamw_torch_xla"})

    @pytest.mark.max_vram("1GiB")
    def test_parts(vram):
        with vram.measure("large") as large:
            hold(512)
        with vram.measure("small") as small:
            hold(64)
        assert large.measurement.peaks.allocated == 512 << 20
        assert small.measurement.peaks.allocated == 64 << 20

    def test_bad_name_of_a_part(vram):
        with pytest.raises(ValueError, match="invalid name 'total'"):
            with vram.measure("total"):
                pass

    def test_the_session_goes_on(vram):
        assert str(vram.device) == "sim:rtx4090"
"""


def test_what_becomes_of_runs_that_do_not_end_well_and_of_parts(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    simulated_gpu: None,
) -> None:
    result = run_pytest(
        ON_THE_SIMULATED_GPU,
        "-v",
        "-rs",
        "--llmmem-device=sim:rtx4090",
        "--llmmem-report",
        "--llmmem-report=report.json",
    )
    assert outcomes(result) == {
        "test_oom": "FAILED",
        "test_unsupported": "SKIPPED",
        "test_parts": "PASSED",
        "test_bad_name_of_a_part": "PASSED",
        "test_the_session_goes_on": "PASSED",
    }
    result.stdout.fnmatch_lines(
        [
            "outcome oom: needs an estimated * GiB; CUDA out of memory. Tried to allocate *",
            "  needed *allocated * GiB, reserved * GiB, process * GiB, estimated",
            "  fits         *h100, h200, b200, by memory alone",
            "  setup *meta-llama/Llama-3.1-8B full *",
            "*= GPU memory =*",
            " test_it.py::test_oom *allocated *GiB *weights *GiB",
            " test_it.py::test_parts *allocated *0.50 GiB *",
            "llmmem: 1 gated = 0 measured + 1 simulated + 0 estimated, 0 not measured",
            "llmmem: report written to *reports/llmmem.csv (* records)",
            "llmmem: report written to *report.json (* records)",
            "SKIPPED * not measured: *adamw_torch_xla*",
        ]
    )
    rows = json.loads(pytester.path.joinpath("report.json").read_text())
    parts = {row["phase"]: row["peak_allocated_bytes"] >> 20 for row in rows[-3:]}
    assert parts == {"total": 512, "large": 512, "small": 64}
