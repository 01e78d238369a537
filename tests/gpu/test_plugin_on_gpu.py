"""Tests that allocate in the pytest process, on a real GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmmem.nvml import gpu_count

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(gpu_count() == 0, reason="no GPU")

TRAINING = """
    import pytest
    import torch

    def train(width):
        model = torch.nn.Linear(width, width).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(64, width, device="cuda")).sum().backward()
        optimizer.step()

    @pytest.mark.max_vram("4GiB")
    def test_under():
        train(1024)

    @pytest.mark.max_vram("4GiB")
    def test_over():
        train(16384)
"""


def test_a_plain_training_test_is_measured_without_being_asked(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run_pytest(TRAINING, "--llmmem-require-gpu", "--llmmem-report=report.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["llmmem: 2 gated = 2 measured + 0 simulated + 0 estimated, 0 not measured"]
    )
    for row in json.loads(pytester.path.joinpath("report.json").read_text()):
        assert row["source"] == "measured"
        assert row["peak_process_bytes"] > row["peak_reserved_bytes"] >= row["peak_allocated_bytes"]
        assert row["driver"]
