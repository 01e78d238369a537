from __future__ import annotations

from fractions import Fraction

import pytest

import llmmem
from llmmem.estimation.rules import (
    BYTES_PER_PARAMETER,
    inference_bytes,
    kv_cache_bytes,
    lora_bytes,
    quantization_constants_bytes,
    rules,
    training_bytes,
)
from llmmem.setups import Setup
from llmmem.units import GIB, MIB

LLAMA_13B = "meta-llama/Llama-2-13b-hf"
PHI = "microsoft/Phi-3.5-mini-instruct"
LLAMA_1B = "meta-llama/Llama-3.2-1B"


def test_13_billion_parameters_of_2_bytes_take_what_is_published() -> None:
    parameters, half = 13 * 10**9, BYTES_PER_PARAMETER["bfloat16"]
    adam = Fraction(2)
    weights = int(parameters * half)
    assert weights == 26 * 10**9
    assert inference_bytes(parameters, half) == 31_200_000_000
    assert training_bytes(parameters, half, adam) - weights == 78 * 10**9
    assert training_bytes(parameters, half, adam) == 104 * 10**9


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    [
        ({"optimizer": "adamw_torch_fused"}, 8),
        ({"optimizer": "sgd"}, 4),
        ({"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}}, 6),
        ({"optimizer": "lion_32bit"}, 8),  # bitsandbytes keeps float32
        ({"optimizer": "adamw_8bit"}, 6),
        ({"optimizer": "adamw_torch_4bit"}, 5),
        ({"optimizer": "schedule_free_sgd"}, 6),
    ],
)
def test_full_training_counts_weights_gradients_and_optimizer_values(
    optimizer: dict[str, object], bytes_per_parameter: int
) -> None:
    found = rules(Setup.from_mapping({"model": LLAMA_1B, **optimizer}))
    assert found.peak_allocated_bytes == 1_235_814_400 * bytes_per_parameter
    assert found.formula.startswith("1,235,814,400 x 2 B x (1 + 1 + ")


def test_an_optimizer_without_a_rule_has_no_figure() -> None:
    found = rules(Setup(model=LLAMA_1B, optimizer="adafactor"))
    assert found.peak_allocated_bytes is None
    assert "adafactor" in found.formula


def test_only_the_adapter_is_trained_with_lora() -> None:
    # r = 16 on all seven linear layers of each of 16 layers: 11,272,192 parameters (PEFT's count).
    found = rules(Setup(model=LLAMA_1B, method="lora"))
    assert found.peak_allocated_bytes == 1_235_814_400 * 2 + 11_272_192 * 4 * 4
    assert found.peak_allocated_bytes == lora_bytes(
        1_235_814_400, Fraction(2), 11_272_192, Fraction(4), Fraction(2)
    )


@pytest.mark.parametrize(("double_quant", "bits"), [(True, 0.127), (False, 0.5)])
def test_constants_of_a_4_bit_base_take_the_bits_that_the_qlora_paper_gives(
    double_quant: bool, bits: float
) -> None:
    parameters = 10**9
    constants = quantization_constants_bytes(parameters, double_quant)
    assert 8 * constants / parameters == pytest.approx(bits, abs=5e-4)
    found = rules(Setup(model=LLAMA_1B, method="qlora", double_quant=double_quant))
    expected = 1_235_814_400 // 2 + 11_272_192 * 16
    expected += quantization_constants_bytes(1_235_814_400, double_quant)
    assert found.peak_allocated_bytes == expected


def test_forward_is_weights_and_a_fifth() -> None:
    found = rules(Setup(model=LLAMA_1B, mode="forward"))
    assert found.peak_allocated_bytes == int(1_235_814_400 * 2 * 1.2)


def test_generating_adds_the_kv_cache() -> None:
    # Llama-3.2-1B: 16 layers, 8 KV heads of 64.
    cache = kv_cache_bytes(16, 8, 64, tokens=2048 + 32, batch=4, bytes_per_value=Fraction(2))
    assert cache == 2 * 16 * 8 * 64 * 2080 * 4 * 2
    found = rules(Setup(model=LLAMA_1B, mode="generate", batch_size=4))
    assert found.peak_allocated_bytes == int(1_235_814_400 * 2 * 1.2) + cache


@pytest.mark.parametrize(
    ("model", "head", "published"),
    [
        (
            PHI,
            "with head",
            {
                "float32": ("432.02 MiB", "14.23 GiB", "56.94 GiB"),
                "float16": ("216.01 MiB", "7.12 GiB", "28.47 GiB"),
                "int8": ("108.01 MiB", "3.56 GiB", None),
                "int4": ("54.00 MiB", "1.78 GiB", None),
            },
        ),
        (
            LLAMA_13B,
            "without head",
            {
                "float32": ("1.18 GiB", "47.88 GiB", "191.51 GiB"),
                "float16": ("605.02 MiB", "23.94 GiB", "95.76 GiB"),
                "int8": ("302.51 MiB", "11.97 GiB", None),
                "int4": ("151.25 MiB", "5.98 GiB", None),
            },
        ),
    ],
)
def test_the_table_is_the_one_that_accelerate_publishes(
    model: str, head: str, published: dict[str, tuple[str, str, str | None]]
) -> None:
    table = rules(Setup(model=model)).table
    for dtype, (largest, total, training) in published.items():
        row = table[f"accelerate, {head}, {dtype}"]
        assert _binary(row["largest_layer"]) == largest
        assert _binary(row["total"]) == total
        assert (_binary(row["training_adam"]) if "training_adam" in row else None) == training


def _binary(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.2f} MiB"


def test_an_adapter_that_starts_from_the_weights_is_traced_where_no_rule_can_count_it() -> None:
    adapter = {"peft_type": "LORA", "init_lora_weights": "pissa"}
    setup = Setup(model="EleutherAI/pythia-70m", seq_len=64, adapter=adapter)
    found = llmmem.estimate(setup, "l40s")
    assert found.rules.peak_allocated_bytes is None
    assert "starts from values of the weights" in found.rules.formula
    assert found.trace.outcome == "ok"
