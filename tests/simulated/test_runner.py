"""Runs in processes of their own, on the simulated GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from llmmem import InputError, Runner, RunResult, Setup
from llmmem.results import COMPONENTS

LLAMA = "meta-llama/Llama-3.2-1B"


@pytest.fixture(scope="module")
def runner():
    with Runner("sim:h100") as runner:
        yield runner


@pytest.mark.parametrize(
    "setup",
    [
        Setup(model=LLAMA),
        Setup(model=LLAMA, method="lora"),
        Setup(model=LLAMA, method="qlora", gradient_checkpointing=True),
        Setup(model=LLAMA, method="int8-lora", dtype="float16"),
        Setup(model=LLAMA, mode="forward"),
    ],
    ids=Setup.describe,
)
def test_every_run_gives_the_same_bytes(runner, setup):
    first, second = (runner.run(setup, estimate=False) for _ in range(2))
    assert first.outcome == "ok", first.message
    assert first.source == "simulated"
    assert first == second


def test_components_sum_to_the_allocated_peak_in_total_and_in_every_phase(runner):
    result = runner.run(Setup(model=LLAMA, method="lora"), estimate=False)
    assert result.components is not None
    assert result.components.total == result.peaks.allocated
    assert [phase.phase for phase in result.phases] == ["load", "forward", "backward", "optimizer"]
    for phase in result.phases:
        assert phase.components is not None
        assert phase.components.total == phase.peaks.allocated, phase.phase
    for name in COMPONENTS:
        assert any(getattr(phase.components, name) > 0 for phase in result.phases), name
    assert sum(holder.bytes for holder in result.holders) <= result.components.total


def test_weights_gradients_and_adam_state_of_full_fine_tuning_are_what_the_parameters_say(runner):
    result = runner.run(Setup(model=LLAMA), estimate=False)
    parameters = 1_235_814_400
    by_phase = {phase.phase: phase.components for phase in result.phases}
    components = by_phase["optimizer"]
    assert components is not None
    assert components.weights == pytest.approx(2 * parameters, rel=1e-3)
    assert components.gradients == pytest.approx(2 * parameters, rel=1e-3)
    assert components.optimizer == pytest.approx(4 * parameters, rel=1e-3)


def test_out_of_memory_is_a_result_with_the_words_of_torch_and_the_next_run_is_unharmed(runner):
    result = runner.run(Setup(model="meta-llama/Llama-3.1-70B"), estimate=False)
    assert result.outcome == "oom"
    assert "CUDA out of memory. Tried to allocate" in result.message
    assert result.peaks.allocated is not None
    after = runner.run(Setup(model=LLAMA, mode="forward", seq_len=128), estimate=False)
    assert after.outcome == "ok"


def test_a_run_that_takes_too_long_is_ended(runner):
    result = runner.run(Setup(model=LLAMA), estimate=False, timeout=0.01)
    assert result.outcome == "timeout"
    assert "0.01 s" in result.message
    assert result.peaks.allocated is None


def test_an_estimate_that_fails_beside_a_run_leaves_a_note(runner):
    result = runner.run(Setup(model=LLAMA), timeout=0.01)
    assert result.estimate is None
    assert any(note.startswith("could not estimate: not done") for note in result.notes)


def test_threads_that_share_a_runner_get_the_results_of_their_own_setups(runner):
    def peak(seq_len):
        result = runner.run(Setup(model=LLAMA, mode="forward", seq_len=seq_len), estimate=False)
        return result.setup.seq_len, result.peaks.allocated

    lengths = [128, 256, 128, 256]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(peak, lengths))
    assert [length for length, _ in together] == lengths
    assert together == [peak(128), peak(256)] * 2
    assert len(set(together)) == 2


def test_a_run_that_takes_too_much_host_memory_is_ended_and_its_outcome_says_so(
    runner, monkeypatch
):
    monkeypatch.setenv("LLMMEM_HOST_MEMORY", "2GiB")
    # PEFT creates an adapter on the host: 16 GB for each layer.
    adapter = {"peft_type": "LORA", "r": 2_000_000, "target_modules": ["q_proj"]}
    result = runner.run(Setup(model=LLAMA, adapter=adapter, seq_len=128), estimate=False)
    assert result.outcome == "crashed"
    assert "more than 2.00 GiB of host memory" in result.message
    assert "--host-memory" in result.message


def test_no_activation_is_an_outlier_of_llm_int8_in_the_run_as_in_its_estimate(runner):
    result = runner.run(Setup(model=LLAMA, method="int8-lora", dtype="float16"))
    assert result.estimate is not None
    trace = result.estimate.trace
    assert trace.peaks.allocated == result.peaks.allocated
    assert trace.peaks.reserved == result.peaks.reserved


def test_what_cannot_be_built_is_unsupported_with_the_reason(runner):
    result = runner.run(Setup(model=LLAMA, quantization="fp8", mode="forward"), estimate=False)
    assert result.outcome == "unsupported"
    assert "fp8" in result.message


def test_a_model_that_does_not_exist_is_bad_input(runner):
    with pytest.raises(InputError, match=r"meta-llama/Llama-3\.2-2B"):
        runner.run(Setup(model="meta-llama/Llama-3.2-2B"))


def test_a_result_survives_json(runner):
    result = runner.run(Setup(model=LLAMA, mode="forward", seq_len=128))
    assert result.estimate is not None
    assert RunResult.from_dict(result.to_dict()) == result


def test_the_allocator_settings_of_the_setup_are_in_force(runner):
    setup = Setup(model=LLAMA, mode="forward", allocator="expandable_segments:True")
    expandable = runner.run(setup)
    assert expandable.allocator == "expandable_segments:True"
    # The model of the allocator, which the golden traces hold to the real one, has them as well.
    assert expandable.estimate is not None
    assert expandable.peaks.reserved == expandable.estimate.trace.peaks.reserved
    plain = runner.run(Setup(model=LLAMA, mode="forward"), estimate=False)
    assert expandable.peaks.reserved != plain.peaks.reserved


def test_a_run_that_cannot_be_estimated_says_why(runner):
    parallel = {"strategy": "ddp", "world_size": 2}
    result = runner.run(Setup(model=LLAMA, mode="forward", seq_len=128, parallel=parallel))
    assert result.outcome == "ok", result.message
    assert result.estimate is not None
    assert result.estimate.trace.outcome == "unsupported"
    assert "parallel" in result.estimate.trace.message
