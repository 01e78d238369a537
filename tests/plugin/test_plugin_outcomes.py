"""What becomes of tests that allocate in the pytest process, on a simulated GPU."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("simulated_gpu")


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a JSON report by test."""
    return {row["test"]: row for row in json.loads(path.read_text())}


TRAINING = """
    import pytest
    import torch

    def train(width):
        model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU()).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            model(torch.randn(64, width, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    @pytest.mark.max_vram("1GiB")
    def test_under():
        train(1024)

    @pytest.mark.max_vram("1GiB")
    def test_over():
        train(16384)
"""


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_a_plain_training_test_passes_under_its_limit_and_fails_over_it(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester, workers: str
) -> None:
    result = run_pytest(
        TRAINING, "--llmmem-device=sim:rtx4090", "--llmmem-report=out/report.json", workers
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "llmmem: device sim:rtx4090 (simulated: values are not computed), report report.json",
            "peak process * GiB is over the limit of 1.00 GiB by * GiB",
            "  peak *GiB (* B)",
            "  limit *1.00 GiB (1073741824 B)",
            "  excess *GiB (* B)",
            "  device *sim:rtx4090 (*RTX 4090*), simulated",
            "  peaks *allocated * GiB, reserved * GiB, process * GiB",
            "  largest *3.00 GiB  test_it.py:9 in train",
            " *1.01 GiB  the backward pass",
            " *1.00 GiB  test_it.py:5 in train",
            "  note *values are not computed on a simulated GPU",
            "llmmem: 2 gated = 0 measured + 2 simulated + 0 estimated, 0 not measured",
            "llmmem: report written to *out/report.json (2 records)",
            "FAILED test_it.py::test_over - Failed: peak process * GiB is over the li*",
        ]
    )
    over = read_rows(pytester.path / "out/report.json")["test_it.py::test_over"]
    assert over["source"] == "simulated"
    assert over["limit_bytes"] == 2**30
    assert over["headroom_bytes"] == 2**30 - over["peak_process_bytes"]
    assert over["held_before_bytes"] == 0


OUTCOMES = """
    import pytest
    import torch

    MIB = 2**20

    def hold(size):
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    @pytest.fixture(scope="module")
    def kept():
        return hold(64 * MIB)

    @pytest.mark.parametrize(
        "limit",
        [
            pytest.param(bytes, marks=pytest.mark.max_vram(bytes, metric="allocated"))
            for bytes in (32 * MIB - 1, 32 * MIB, 32 * MIB + 1)
        ],
    )
    def test_boundary(limit):
        hold(32 * MIB)

    @pytest.mark.max_vram("1GiB")
    def test_allocates_nothing():
        torch.empty(10)

    @pytest.mark.max_vram("64MiB", metric="allocated")
    def test_own_failure():
        hold(128 * MIB)
        assert False, "my own reason"

    @pytest.mark.max_vram("1GiB")
    def test_own_skip():
        hold(MIB)
        pytest.skip("my own reason")

    @pytest.mark.xfail(strict=True, reason="known to be too large")
    @pytest.mark.max_vram("64MiB", metric="allocated")
    def test_expected_failure():
        hold(128 * MIB)

    @pytest.mark.max_vram(gpu="t4")
    def test_a_smaller_card_runs_out():
        hold(15 * 1024 * MIB)

    @pytest.mark.max_vram(gpu="t4")
    def test_a_smaller_card_is_enough():
        hold(14 * 1024 * MIB)

    def test_values():
        x = torch.ones(3, device="cuda")
        assert torch.equal(x, 3 * x)

    def test_no_gpu_needed():
        assert torch.ones(3).sum() == 3

    @pytest.mark.max_vram("96MiB", metric="allocated")
    def test_what_a_fixture_holds_counts(kept):
        hold(48 * MIB)

    @pytest.mark.max_vram("96MiB", metric="allocated")
    class TestOfAClass:
        @pytest.mark.max_vram("128MiB", metric="allocated")
        def test_the_closest_marker_counts(self, kept):
            hold(48 * MIB)

        def test_else_that_of_the_class(self, kept):
            hold(16 * MIB)
"""


def test_what_becomes_of_a_test(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run_pytest(
        OUTCOMES,
        "--llmmem-device=sim:rtx4090",
        "--llmmem-report=report.json",
        "--junitxml=junit.xml",
        "-v",
        "-rsx",
    )
    outcomes = dict(re.findall(r"^test_it\.py::(\S+) (\w+)", result.stdout.str(), re.MULTILINE))
    assert outcomes == {
        "test_boundary[33554431]": "FAILED",
        "test_boundary[33554432]": "PASSED",
        "test_boundary[33554433]": "PASSED",
        "test_allocates_nothing": "FAILED",
        "test_own_failure": "FAILED",
        "test_own_skip": "SKIPPED",
        "test_expected_failure": "XFAIL",
        "test_a_smaller_card_runs_out": "FAILED",
        "test_a_smaller_card_is_enough": "PASSED",
        "test_values": "SKIPPED",
        "test_no_gpu_needed": "PASSED",
        "test_what_a_fixture_holds_counts": "FAILED",
        "TestOfAClass::test_the_closest_marker_counts": "PASSED",
        "TestOfAClass::test_else_that_of_the_class": "PASSED",
    }
    result.stdout.fnmatch_lines_random(
        [
            "  excess       0.00 MiB (1 B)",
            "not measured: nothing was allocated on a GPU in this process *",
            "E *AssertionError: my own reason",
            "E *llmmem: peak allocated 0.12 GiB is over the limit of 64.00 MiB by 64.00 MiB",
            "E *note *values are not computed on a simulated GPU",
            "E *torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 15.00 GiB. *",
            "E *llmmem: the limit of this test is * of t4",
            "  held before  64.00 MiB allocated",
            "SKIPPED * values are not computed on a simulated GPU: AssertionError: assert False*",
            "SKIPPED * my own reason",
            "llmmem: 11 gated = 0 measured + 11 simulated + 0 estimated, 1 not measured",
        ]
    )
    rows = read_rows(pytester.path / "report.json")
    assert rows["test_it.py::test_a_smaller_card_runs_out"]["outcome"] == "oom"
    assert rows["test_it.py::test_boundary[33554432]"]["headroom_bytes"] == 0
    # A failed test's locals live on in its traceback; they are no part of the next test.
    after_failure = rows["test_it.py::test_expected_failure"]
    assert after_failure["held_before_bytes"] == 0
    assert after_failure["peak_allocated_bytes"] == 128 * 2**20
    assert 'name="llmmem_record"' in pytester.path.joinpath("junit.xml").read_text()


SUITE = """
    import pytest
    import torch

    def hold(size):
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    @pytest.fixture
    def model():
        yield hold(1 << 30)

    @pytest.mark.max_vram("2GiB")
    def test_marker_beats_the_default():
        hold(1 << 30)

    def test_over_the_default():
        hold(1 << 30)

    def test_over_the_default_and_compares_values():
        hold(1 << 30)
        assert torch.equal(torch.randn(3, device="cuda"), torch.ones(3, device="cuda"))

    def test_within_the_default():
        hold(1 << 20)

    @pytest.mark.max_vram("1GiB", scope="test", metric="allocated")
    def test_fixtures_count(model):
        hold(1 << 20)

    @pytest.mark.max_vram("1GiB", scope="test", metric="allocated")
    def test_fixtures_alone(model):
        pass

    @pytest.fixture
    def broken():
        hold(1 << 20)
        raise ValueError("from the fixture")

    def test_error_in_a_fixture_that_used_the_gpu(broken):
        pass

    def test_no_gpu_needed():
        pass
"""


def test_a_default_for_the_suite_gates_every_test_that_uses_the_gpu(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    result = run_pytest(SUITE, "--llmmem-device=sim:rtx4090", "--llmmem-max-vram=1GiB", "-v")
    outcomes = dict(re.findall(r"^test_it\.py::(\S+) (\w+)", result.stdout.str(), re.MULTILINE))
    assert outcomes == {
        "test_marker_beats_the_default": "PASSED",
        "test_over_the_default": "FAILED",
        "test_over_the_default_and_compares_values": "FAILED",
        "test_within_the_default": "PASSED",
        "test_fixtures_count": "FAILED",
        "test_fixtures_alone": "PASSED",
        "test_error_in_a_fixture_that_used_the_gpu": "ERROR",
        "test_no_gpu_needed": "PASSED",
    }
    result.stdout.fnmatch_lines(
        ["llmmem: 6 gated = 0 measured + 6 simulated + 0 estimated, 0 not measured"]
    )
