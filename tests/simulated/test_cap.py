"""A run with no more memory than a smaller card has."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llmmem import InputError, Runner, Setup
from llmmem.catalogue.gpus import find_gpu

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = Setup(model="openai-community/gpt2", seq_len=64)
TOO_LARGE = Setup(model="meta-llama/Llama-3.2-1B", batch_size=4, steps=1)


def test_a_run_is_capped_to_a_smaller_card_and_to_no_larger_one() -> None:
    card = find_gpu("t4")
    with Runner("sim:l4") as runner:
        free = runner.run(SMALL, estimate=False)
        fits = runner.run(SMALL, estimate=False, cap="t4")
        larger = runner.run(SMALL, estimate=False, cap="h100")
        same = runner.run(TOO_LARGE, estimate=False, cap="l4")
        capped = runner.run(TOO_LARGE, estimate=False, cap="t4")
        with pytest.raises(InputError, match="unknown GPU 't5'"):
            runner.run(SMALL, estimate=False, cap="t5")
    assert free == larger
    (note,) = set(fits.notes) - set(free.notes)
    assert "limited to the memory of the Tesla T4" in note
    assert fits == replace(free, notes=fits.notes)
    # Both run out of memory, each where its card does.
    assert (same.outcome, capped.outcome) == ("oom", "oom")
    assert "GiB allowed" in capped.message
    assert "allowed" not in same.message
    assert capped.peaks.reserved is not None
    assert same.peaks.reserved is not None
    assert capped.peaks.reserved <= card.total_bytes - card.context_bytes < same.peaks.reserved


GATED = """
    import pytest

    @pytest.mark.max_vram(gpu="t4")
    def test_too_large_for_the_card(vram):
        vram.run({"model": "meta-llama/Llama-3.2-1B", "batch_size": 4, "steps": 1})

    @pytest.mark.max_vram("40GiB")
    def test_within_a_limit_that_is_no_card(vram):
        vram.run({"model": "meta-llama/Llama-3.2-1B", "batch_size": 2, "steps": 1})

    @pytest.mark.max_vram(gpu="t4")
    def test_fits_the_card(vram):
        result = vram.run({"model": "openai-community/gpt2", "seq_len": 64})
        assert any("limited to the memory of the Tesla T4" in note for note in result.notes)
"""


def test_the_marker_caps_what_vram_runs(run_pytest: Callable[..., pytest.RunResult]) -> None:
    result = run_pytest(GATED, "-v", "--llmmem-device=sim:h100")
    outcomes = dict(re.findall(r"^test_it\.py::(\S+) (\w+)", result.stdout.str(), re.MULTILINE))
    assert outcomes == {
        "test_too_large_for_the_card": "FAILED",
        "test_within_a_limit_that_is_no_card": "PASSED",
        "test_fits_the_card": "PASSED",
    }
    result.stdout.fnmatch_lines(
        [
            "outcome oom: needs an estimated * GiB; CUDA out of memory. *GiB allowed*",
            "  limit * of t4",
            "llmmem: * gated = 0 measured + * simulated + 0 estimated, 0 not measured",
        ]
    )
