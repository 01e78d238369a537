"""On a machine without a GPU, and nothing asked for: with the CUDA build of torch and without."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_gpu")

MARKED = """
    import pytest

    @pytest.mark.max_vram("1GiB")
    def test_marked():
        raise AssertionError("not reached")

    @pytest.mark.skip(reason="my own reason")
    @pytest.mark.max_vram("1GiB")
    def test_skipped_by_itself():
        pass

    @pytest.mark.max_vram("1 GiBs")
    def test_bad_limit():
        raise AssertionError("not reached")

    @pytest.mark.max_vram("1GiB", limt=3)
    def test_bad_keyword():
        raise AssertionError("not reached")

    def test_measured_part(vram):
        with vram.measure("part"):
            raise AssertionError("not reached")

    def test_plain():
        pass
"""


def test_what_cannot_be_measured_is_skipped_with_advice_and_a_bad_marker_is_an_error(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    result = run_pytest(MARKED, "-rs")
    result.assert_outcomes(passed=1, skipped=3, errors=2)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED * no GPU: pass --llmmem-device=sim:rtx4090 *",
            "SKIPPED * my own reason",
            "SKIPPED * not measured: no GPU: pass --llmmem-device=sim:rtx4090 *",
            "test_it.py::test_bad_limit: max_vram: invalid size '1 GiBs': expected a size *",
            "test_it.py::test_bad_keyword: *'limt' (accepted: limit, gpu, metric, *)",
            "llmmem: 0 gated = 0 measured + 0 simulated + 0 estimated, 4 not measured",
        ]
    )
    result.stdout.no_fnmatch_line("*During handling of the above exception*")


def test_where_a_gpu_is_required_what_cannot_be_measured_is_an_error(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    result = run_pytest(MARKED, "--llmmem-require-gpu", "-k", "marked or part or plain")
    result.assert_outcomes(passed=1, errors=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*no GPU to measure on (--llmmem-require-gpu)*"])


def test_where_a_gpu_was_asked_for_a_test_that_finds_none_fails(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    source = f"""{MARKED}
    def test_run(vram):
        vram.run({{"model": "openai-community/gpt2"}})
    """
    result = run_pytest(source, "--llmmem-device=cuda", "-k", "marked or part or plain or run")
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*ERROR at setup of test_marked*",
            "*test_measured_part*",
            "not measured: no GPU: pass --llmmem-device=sim:rtx4090 *",
            "*test_run*",
            "not measured: no device 'cuda:0': this machine has 0 real GPUs *",
        ]
    )


def test_an_estimate_measures_nothing_that_a_test_allocates_itself(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    result = run_pytest(MARKED, "--llmmem-device=estimate", "-rs", "-k", "test_marked")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * only setups can be estimated *"])


def test_a_report_that_cannot_be_written_fails_the_session(
    pytester: pytest.Pytester, run_pytest: Callable[..., pytest.RunResult]
) -> None:
    pytester.path.joinpath("taken").touch()
    result = run_pytest(MARKED, "--llmmem-report=taken/out.csv", "-k", "plain")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["llmmem: cannot write report *taken/out.csv*"])


def test_a_simulated_gpu_that_pytest_was_started_with_is_no_real_one(
    run_pytest: Callable[..., pytest.RunResult],
    run_python: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    simulated_gpu: None,
) -> None:
    program = (
        "import json; from llmmem import simgpu; "
        "print(json.dumps(simgpu.activate('t4').environment()))"
    )
    for name, value in json.loads(run_python(program)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # it would hide simulated GPUs too
    source = """
        import pytest
        import torch

        @pytest.mark.max_vram("1GiB")
        def test_marked():
            torch.empty(1, device="cuda")
    """
    result = run_pytest(source)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["llmmem: 1 gated = 0 measured + 1 simulated *"])
    run_pytest(source, "--llmmem-require-gpu").assert_outcomes(errors=1)
