"""What only a real GPU can show. Skipped without one."""

from __future__ import annotations

import pytest

from llmmem import Setup, run
from llmmem.catalogue.gpus import find_title
from llmmem.nvml import gpu_count

pytestmark = pytest.mark.skipif(gpu_count() == 0, reason="no real GPU")

SETUPS = [
    Setup(model="Qwen/Qwen2.5-0.5B", seq_len=1024),
    Setup(model="Qwen/Qwen2.5-0.5B", seq_len=1024, method="lora"),
    Setup(model="Qwen/Qwen2.5-0.5B", seq_len=1024, method="qlora", gradient_checkpointing=True),
    Setup(model="Qwen/Qwen2.5-0.5B", seq_len=1024, mode="forward"),
]


@pytest.mark.parametrize("setup", SETUPS, ids=Setup.describe)
def test_a_measured_peak_is_the_same_on_every_run_and_adds_up(setup):
    first, second = (run(setup, "cuda", estimate=False) for _ in range(2))
    assert first.outcome == "ok", first.message
    assert first.source == "measured"
    assert first.peaks.allocated == second.peaks.allocated
    assert first.components is not None
    assert first.components.total == first.peaks.allocated
    assert first.step_seconds is not None
    if first.peaks.process is not None:
        assert first.context_source == "measured"
        assert first.peaks.process > first.peaks.reserved


@pytest.mark.parametrize("setup", SETUPS, ids=Setup.describe)
def test_the_simulated_card_asks_for_what_the_real_one_does(setup):
    measured = run(setup, "cuda", estimate=False)
    card = find_title(measured.gpu or "")
    if card is None:
        pytest.skip(f"{measured.gpu} is not in the GPU catalogue")
    simulated = run(setup, f"sim:{card.name}", estimate=False)
    # The simulated card takes flash attention where the real one may take cuDNN's.
    assert simulated.peaks.allocated == pytest.approx(measured.peaks.allocated, rel=0.01)
