"""Traces, on any build of PyTorch; where the simulated GPU works they equal it by the byte."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llmmem.catalogue.gpus import Gpu, find_gpu, gpus
from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.errors import InputError, UnsupportedError
from llmmem.estimation import estimate
from llmmem.estimation.trace import trace
from llmmem.results import Peaks, Trace
from llmmem.setups import Setup
from llmmem.units import GIB, MIB
from llmmem.workload.build import build
from llmmem.workload.optimizers import create_optimizer, state_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmmem.execution.runner import Runner

PYTHIA = "EleutherAI/pythia-70m"
QDORA = {"peft_type": "LORA", "target_modules": "all-linear", "use_dora": True}
PARAMETERS = 70_426_624
# r = 16 on query_key_value, dense and the two of the MLP, of 6 layers of width 512.
ADAPTER = 6 * 16 * ((512 + 1536) + (512 + 512) + 2 * (512 + 2048))
H100 = find_gpu("h100")


def traced(gpu: Gpu = H100, **keys: Any) -> Trace:
    result = trace(Setup.from_mapping({"model": PYTHIA, "seq_len": 512, **keys}), gpu)
    assert result.outcome == "ok", result.message
    return result


def phase_components(result: Trace, name: str) -> Any:
    return next(phase.components for phase in result.phases if phase.phase == name)


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "int8-lora"])
def test_the_peaks_are_in_order_and_the_components_sum_to_the_allocated_one(method: str) -> None:
    result = traced(method=method)
    assert [phase.phase for phase in result.phases] == ["load", "forward", "backward", "optimizer"]
    for found in (result, *result.phases):
        peaks, components = found.peaks, found.components
        assert peaks.allocated is not None
        assert peaks.reserved is not None
        assert 0 < peaks.allocated <= peaks.reserved
        assert peaks.process == peaks.reserved + H100.context_bytes
        assert components is not None
        assert components.total == peaks.allocated
    assert result.context_bytes == H100.context_bytes
    assert result.peaks.allocated == max(phase.peaks.allocated or 0 for phase in result.phases)


def test_full_training_holds_weights_gradients_and_two_optimizer_values() -> None:
    held = phase_components(traced(), "optimizer")
    # Blocks are multiples of 512 B, and large ones up to 1 MiB larger than asked for.
    assert held.weights == pytest.approx(2 * PARAMETERS, rel=0.04)
    assert held.gradients == pytest.approx(2 * PARAMETERS, rel=0.04)
    assert held.optimizer == pytest.approx(2 * 2 * PARAMETERS, rel=0.04)


def test_lora_trains_the_adapter_only_and_in_float32() -> None:
    held = phase_components(traced(method="lora"), "optimizer")
    assert held.weights == pytest.approx(2 * PARAMETERS + 4 * ADAPTER, rel=0.04)
    assert held.gradients == pytest.approx(4 * ADAPTER, rel=0.04)
    assert held.optimizer == pytest.approx(2 * 4 * ADAPTER, rel=0.04)


def test_qlora_packs_the_layers_and_keeps_the_tables_in_float32() -> None:
    held = phase_components(traced(method="qlora"), "optimizer")
    tables = 2 * 50_304 * 512
    layers = PARAMETERS - tables
    expected = 4 * tables + layers * (4 + 0.127) / 8 + 4 * ADAPTER
    assert held.weights == pytest.approx(expected, rel=0.04)
    assert held.optimizer == pytest.approx(2 * 4 * ADAPTER, rel=0.04)


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing() -> None:
    def activations(**keys: Any) -> int:
        held: int = phase_components(traced(**keys), "forward").activations
        return held

    one, four = activations(batch_size=1), activations(batch_size=4)
    assert four == pytest.approx(4 * one, rel=0.1)
    assert activations(batch_size=4, gradient_checkpointing=True) < 0.8 * four


def test_accumulating_gradients_takes_no_second_copy_of_them() -> None:
    once = traced(optimizer="sgd", batch_size=2)
    twice = traced(optimizer="sgd", batch_size=2, gradient_accumulation_steps=2)
    gradients = phase_components(once, "optimizer").gradients
    assert phase_components(twice, "optimizer").gradients == gradients


def test_forward_holds_neither_gradients_nor_optimizer_values() -> None:
    result = traced(mode="forward")
    assert [phase.phase for phase in result.phases] == ["load", "forward"]
    assert result.components is not None
    assert (result.components.gradients, result.components.optimizer) == (0, 0)


def test_a_training_step_has_two_cublas_workspaces_and_a_forward_pass_one() -> None:
    hopper, ampere = 32 * MIB, 8_519_680
    a100 = find_gpu("a100-80gb")
    for keys, workspaces in (({}, 2), ({"mode": "forward"}, 1)):
        # Nothing else in these steps depends on which of the two cards it is.
        small = {"seq_len": 16, **keys}
        difference = _allocated_peak(traced(**small)) - _allocated_peak(traced(a100, **small))
        assert difference == pytest.approx(workspaces * (hopper - ampere), abs=2 * MIB)


def _allocated_peak(result: Trace) -> int:
    assert result.peaks.allocated is not None
    return result.peaks.allocated


def test_an_old_card_without_flash_attention_takes_more() -> None:
    keys = {"dtype": "float16", "batch_size": 4, "seq_len": 1024}
    t4, l4 = traced(find_gpu("t4"), **keys), traced(find_gpu("l4"), **keys)
    assert t4.peaks.allocated != l4.peaks.allocated


def test_a_published_measurement_on_a_real_card_is_met() -> None:
    # Mistral-7B on an A100-80GB: 72,434,837,504 B (foundation-model-stack/fms-acceleration). The HF
    # Trainer, with which it was taken, holds its last batch of 393,216 B and some scalars.
    setup = Setup(
        model="mistralai/Mistral-7B-v0.1",
        optimizer="adamw_torch",
        gradient_checkpointing=True,
        batch_size=4,
        seq_len=4096,
    )
    result = trace(setup, find_gpu("a100-80gb"))
    assert 393_216 <= 72_434_837_504 - _allocated_peak(result) < MIB


def test_a_card_that_is_too_small_is_an_outcome_with_the_peak_up_to_there() -> None:
    small = replace(H100, total_bytes=2 * GIB)
    result = trace(Setup(model=PYTHIA, batch_size=8), small)
    assert result.outcome == "oom"
    assert result.message.startswith("needs ")
    assert "GiB, has 2.00 GiB: out of memory" in result.message
    assert result.peaks.reserved is not None
    assert GIB < result.peaks.reserved <= small.total_bytes - small.context_bytes
    assert [phase.phase for phase in result.phases] == ["load", "forward"]
    assert result.components is not None
    assert result.components.total == result.peaks.allocated


def test_what_fits_needs_its_peaks() -> None:
    result = traced()
    assert result.needed == result.peaks
    assert result.fits_by_memory is not None
    assert set(result.fits_by_memory) == {gpu.name for gpu in gpus()}


@pytest.mark.parametrize(
    "allocator",
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:64",
        "garbage_collection_threshold:0.6,per_process_memory_fraction:0.9",
    ],
)
def test_what_a_step_needs_does_not_depend_on_the_memory_of_the_card(allocator: str) -> None:
    setup = Setup(model=PYTHIA, batch_size=4, seq_len=256, allocator=allocator)
    large = trace(setup, replace(H100, total_bytes=1024 * GIB))
    assert large.peaks.reserved is not None
    outcomes = set()
    for part in (0.1, 0.7, 0.98):  # one that holds the weights only, one that is nearly enough
        total = H100.context_bytes + int(part * large.peaks.reserved)
        result = trace(setup, replace(H100, total_bytes=total))
        outcomes.add(result.outcome)
        assert result.needed == large.peaks
        assert result.peaks.reserved is not None
        assert result.peaks.reserved < large.peaks.reserved
    assert "oom" in outcomes


def test_a_card_has_the_needed_memory_if_its_context_leaves_that_much() -> None:
    l4 = find_gpu("l4")
    room = l4.total_bytes - l4.context_bytes
    fits = [
        Trace("ok", "", Peaks(), needed=Peaks(1, size, 1)).fits_by_memory or ()
        for size in (room, room + 1)
    ]
    assert ["l4" in names for names in fits] == [True, False]
    assert Trace("unsupported", "", Peaks()).fits_by_memory is None


def test_allocator_settings_are_those_of_the_setup() -> None:
    plain = traced(batch_size=4)
    expandable = traced(batch_size=4, allocator="expandable_segments:True")
    assert expandable.peaks.reserved != plain.peaks.reserved
    with pytest.raises(InputError, match="expandable_segments"):
        traced(allocator="expandable_segment:True")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"parallel": {"strategy": "fsdp2", "world_size": 8}}, "parallel"),
        ({"allocator": "backend:cudaMallocAsync"}, "backend"),
    ],
)
def test_what_cannot_be_traced_is_said_and_never_guessed(keys: Any, reason: str) -> None:
    result = trace(Setup.from_mapping({"model": PYTHIA, **keys}), H100)
    assert result.outcome == "unsupported"
    assert reason in result.message
    assert result.peaks.allocated is None
    assert result.components is None
    assert result.needed.reserved is None


def test_an_unknown_model_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no such file"):
        trace(Setup(model="/nowhere/config.json"), H100)


def test_a_trace_leaves_nothing_behind_and_gives_the_same_again() -> None:
    from bitsandbytes import functional
    from torch.utils import _foreach_utils

    def watched() -> list[Any]:
        return [
            torch.autograd._engine_run_backward,
            torch.cuda.is_available,
            torch.cuda.empty_cache,
            _foreach_utils._get_foreach_kernels_supported_devices,
            functional.name2qmap,
            functional.get_paged,
            torch.ops.bitsandbytes.gemm_4bit.default,
        ]

    before = watched()
    first = traced(method="qlora", optimizer="paged_adamw_8bit")
    assert watched() == before
    assert traced(method="qlora", optimizer="paged_adamw_8bit") == first


def test_an_8b_model_is_traced_in_little_memory() -> None:
    # The libraries' own pages are mapped by a first trace: what counts is what a large model adds.
    program = (
        "from pathlib import Path\n"
        "from llmmem.catalogue.gpus import find_gpu\n"
        "from llmmem.estimation.trace import trace\n"
        "from llmmem.setups import Setup\n"
        "def traced(model):\n"
        "    result = trace(Setup(model=model, method='qlora'), find_gpu('h100'))\n"
        "    assert result.outcome == 'ok', result.message\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.split('VmHWM:')[1].split()[0])\n"
        "small = traced('EleutherAI/pythia-70m')\n"
        "print(traced('meta-llama/Llama-3.1-8B') - small)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < GIB // 2


def test_an_estimate_has_rules_and_a_trace_and_says_what_it_assumed() -> None:
    found = estimate(Setup(model=PYTHIA, seq_len=512), "rtx4090")
    assert (found.gpu, found.source) == ("rtx4090", "estimated")
    assert found.rules.peak_allocated_bytes == PARAMETERS * 8
    assert found.trace.outcome == "ok"
    assert any("RTX 4090" in assumption for assumption in found.trace.assumptions)
    chosen = f"attention: flash, as PyTorch {torch.__version__} chooses on this card"
    assert chosen in found.trace.assumptions
    assert found.versions["torch"] == torch.__version__
    assert found.versions["cuda"] == torch.version.cuda
    document = found.to_dict()
    assert type(found).from_dict(document) == found
    assert document["trace"]["needed_process_bytes"] == document["trace"]["peak_process_bytes"]
    # Written by a version that did not know what is needed.
    for key in ("needed_allocated_bytes", "needed_reserved_bytes", "needed_process_bytes"):
        del document["trace"][key]
    del document["trace"]["fits_by_memory"]
    assert type(found).from_dict(document).trace == replace(found.trace, needed=Peaks())
    with pytest.raises(InputError, match="rtx4090"):
        estimate(Setup(model=PYTHIA), "rtx4091")


@pytest.fixture(scope="module")
def simulated(simulated_gpu: None) -> Iterator[Callable[[Setup], Any]]:
    """Runs a setup on the simulated h100."""
    from llmmem.execution.runner import Runner

    with Runner("sim:h100") as runner:
        yield lambda setup: _run(runner, setup)


def _run(runner: Runner, setup: Setup) -> Any:
    return runner.run(setup, estimate=False)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": PYTHIA, "batch_size": 2},
        {"model": "meta-llama/Llama-3.2-1B", "method": "lora", "max_grad_norm": 1.0},
        {"model": "Qwen/Qwen2.5-0.5B", "method": "qlora", "gradient_checkpointing": True},
        {"model": PYTHIA, "quantization": "nf4", "adapter": QDORA},
        {"model": "Qwen/Qwen2.5-0.5B", "optimizer": "adamw_torch", "attention": "eager"},
        {"model": "google-bert/bert-base-uncased", "task": "masked-lm", "seq_len": 512},
        {"model": "google-t5/t5-small", "task": "seq2seq-lm", "gradient_accumulation_steps": 2},
    ],
    ids=lambda keys: f"{keys['model'].split('/')[1]}-{'-'.join([*keys][1:])}",
)
def test_a_trace_equals_the_run_on_the_simulated_gpu(
    keys: dict[str, Any], simulated: Callable[[Setup], Any]
) -> None:
    setup = Setup.from_mapping({"seq_len": 1024, **keys})
    run, found = simulated(setup), trace(setup, H100)
    assert (run.outcome, found.outcome) == ("ok", "ok"), run.message + found.message
    assert found.peaks.allocated == run.peaks.allocated
    assert found.peaks.reserved == run.peaks.reserved
    assert found.components == run.components
    assert [(p.phase, p.peaks.allocated, p.peaks.reserved) for p in found.phases] == [
        (p.phase, p.peaks.allocated, p.peaks.reserved) for p in run.phases
    ]


def test_the_labels_of_a_classification_are_found() -> None:
    # DeBERTa looks for labels that are not negative, and has no loss without one.
    model = {"model": "microsoft/deberta-v3-base", "task": "sequence-classification"}
    result = trace(Setup.from_mapping({**model, "seq_len": 64}), H100)
    assert result.outcome == "ok", result.message
    assert [phase.phase for phase in result.phases][-2:] == ["backward", "optimizer"]


def test_an_estimate_assumes_the_card_that_is_in_the_machine(
    simulated_gpu: None, run_python: Callable[[str], str]
) -> None:
    assert (
        run_python(
            "from llmmem import simgpu\n"
            "simgpu.activate('l4')\n"
            "from llmmem import Setup, estimate\n"
            f"print(estimate(Setup(model={PYTHIA!r}, seq_len=128)).gpu)"
        )
        == "l4\n"
    )


def test_a_table_of_quantization_takes_what_its_name_takes() -> None:
    table = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    keys = {"model": "EleutherAI/pythia-70m", "seq_len": 64, "method": "qlora"}
    named = estimate(Setup(**keys), "l40s")
    by_table = estimate(Setup(**keys, quantization=table), "l40s")
    assert named.trace.outcome == "ok"
    assert by_table.trace.peaks == named.trace.peaks
    assert by_table.rules.peak_allocated_bytes == named.rules.peak_allocated_bytes


@pytest.mark.parametrize(
    ("quantization", "error", "message"),
    [
        ({"quant_method": "hqq"}, UnsupportedError, "not built yet"),
        ({"quant_method": "nf9"}, InputError, "unknown quant_method 'nf9'"),
        ({"quant_method": "bitsandbytes", "load_in_5bit": True}, InputError, "load_in_5bit"),
        ({"quant_method": "bitsandbytes"}, InputError, "needs load_in_4bit = true or load_in_8bit"),
    ],
)
def test_a_quantization_that_is_not_built_is_named(
    quantization: dict[str, object], error: type[Exception], message: str
) -> None:
    setup = Setup(model="EleutherAI/pythia-70m", method="qlora", quantization=quantization)
    with pytest.raises(error, match=message):
        build(setup, torch.device("meta"))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, entry in OPTIMIZERS.items()
        if entry.state is not None and entry.package in ("torch", "bitsandbytes")
    ],
)
def test_an_optimizer_keeps_the_state_that_its_entry_says(name: str) -> None:
    weight = 1024 * 1024
    state = OPTIMIZERS[name].state
    assert state is not None

    def step() -> None:
        parameter = torch.nn.Parameter(torch.zeros(1024, 1024, dtype=torch.float16, device="cuda"))
        optimizer = create_optimizer(Setup(model="m", optimizer=name), [parameter])
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        kept = sum(
            t.numel() * t.element_size() for t in state_tensors(optimizer) if t.numel() > 256
        )
        expected = state.bytes_per_parameter(Fraction(2), {}) * weight
        # Quantized states have a float32 scale for every 256 values.
        assert expected <= kept <= expected * (1 + Fraction(4, 256))

    assert estimate(step, "h100").outcome == "ok"


@pytest.mark.parametrize("quantization", ["fp8", {"quant_method": "hqq"}])
def test_an_estimate_of_a_quantization_that_is_not_built_is_unsupported(
    quantization: str | dict[str, object],
) -> None:
    found = estimate(Setup(model=PYTHIA, method="qlora", quantization=quantization), "h100")
    assert found.trace.outcome == "unsupported"
    assert "not built yet (built: bitsandbytes)" in found.trace.message
    assert found.rules.peak_allocated_bytes is None
