"""What a figure leaves unknown reaches the verdict: here, what the plans of cuDNN may add to attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmmem import load_report

if TYPE_CHECKING:
    import pytest

SUITE = """
    import pytest
    import torch

    def attention():
        query = torch.empty(1, 8, 1024, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        key, value = (
            torch.empty(1, 2, 1024, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for _ in range(2)
        )
        torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        ).sum().backward()
        return torch.cuda.max_memory_allocated()

    @pytest.mark.max_vram("70GB")
    def test_with_room():
        attention()

    @pytest.mark.max_vram({peak} + 1024, metric="allocated")
    def test_at_the_limit():
        assert attention() == {peak}

    @pytest.mark.max_vram({peak} - 512, metric="allocated")
    def test_over_the_limit():
        attention()

    @pytest.mark.max_vram("1GB", metric="allocated")
    def test_without_attention():
        torch.empty(512, device="cuda")
"""
#: Bytes that the step takes: tensors, gradients and what PyTorch asks for on behalf of cuDNN.
PEAK = 7_407_616


def test_a_test_closer_to_its_limit_than_what_is_unknown_says_so(
    pytester: pytest.Pytester, simulated_gpu: None
) -> None:
    pytester.makepyfile(SUITE.format(peak=PEAK))
    done = pytester.runpytest_subprocess("--llmmem-device=sim:h100", "--llmmem-report=report.csv")
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*unknown      up to *more: see the notes in a report",
            "llmmem: 4 gated = 0 measured + 4 simulated*, 0 not measured, "
            "1 closer to the limit than what is unknown",
            "llmmem: *::test_at_the_limit passed with a headroom of * less than the * unknown*",
        ]
    )
    rows = load_report("report.csv").set_index("test")
    unknown = {name.rpartition("::")[2]: size for name, size in rows["unknown_bytes"].items()}
    assert unknown["test_without_attention"] == 0
    assert unknown["test_with_room"] == unknown["test_at_the_limit"] > 1024
    notes = {name.rpartition("::")[2]: text for name, text in rows["notes"].items()}
    assert "attention by cuDNN" in notes["test_with_room"]
    assert "attention by cuDNN" not in notes["test_without_attention"]
