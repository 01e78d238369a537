"""Runs in mode generate, on the simulated GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llmmem import Runner, Setup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmmem import RunResult

LAYERS, KEY_HEADS, HEAD_DIM, TWO_BYTES = 2, 4, 64, 2
MANY = 256  # tokens


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner("sim:l40s") as runner:
        yield runner


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "config.json"
    config = {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": KEY_HEADS,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
    }
    path.write_text(json.dumps(config))
    return path


def generate(runner: Runner, path: Path, tokens: int, **keys: Any) -> RunResult:
    given = {"seq_len": 64, "mode": "generate", "new_tokens": tokens}
    result = runner.run(Setup(model=str(path), **{**given, **keys}), estimate=False)
    assert result.outcome == "ok", result.message
    return result


def cache_bytes(tokens: int) -> int:
    """Keys and values of all layers, each in a block of whole 512 bytes."""
    tensor = KEY_HEADS * HEAD_DIM * TWO_BYTES * tokens
    return 2 * LAYERS * (tensor + 511) // 512 * 512


def test_the_phases_are_load_prefill_and_decode(runner: Runner, llama: Path) -> None:
    result = generate(runner, llama, 3)
    assert [phase.phase for phase in result.phases] == ["load", "prefill", "decode"]
    for phase in result.phases:
        assert phase.components is not None
        assert phase.components.total == phase.peaks.allocated


def test_what_a_static_cache_adds_is_its_bytes_exactly(runner: Runner, llama: Path) -> None:
    # It is there from the first token on, with room for the last: the peak of the prefill has all
    # of it, and nothing else in that peak depends on the tokens that are to come. (Up to 1 MiB a
    # block has the size that was asked for; cut from larger ones, it may be longer.)
    one, many = (generate(runner, llama, tokens, kv_cache="static") for tokens in (1, MANY))
    assert one.peaks.allocated is not None
    assert many.peaks.allocated is not None
    added = cache_bytes(64 + MANY) - cache_bytes(64 + 1)
    assert added == (MANY - 1) * 2 * LAYERS * KEY_HEADS * HEAD_DIM * TWO_BYTES
    assert many.peaks.allocated - one.peaks.allocated == added


def test_what_a_dynamic_cache_adds_is_its_bytes_and_one_copy(runner: Runner, llama: Path) -> None:
    # It grows by concatenation: the last tensor of a layer is there twice for a moment. Ids and
    # positions, 8 bytes a token each, are twice there too.
    one, many = (generate(runner, llama, tokens) for tokens in (1, MANY))
    decodes = [result.phases[-1].peaks.allocated for result in (one, many)]
    assert None not in decodes
    added = cache_bytes(64 + MANY) - cache_bytes(64 + 1)
    copy = added // (2 * LAYERS)
    grown = decodes[1] - decodes[0]  # type: ignore[operator]
    assert added <= grown <= added + copy + 4 * 8 * MANY


def test_the_cache_counts_as_activations(runner: Runner, llama: Path) -> None:
    decode = generate(runner, llama, MANY, kv_cache="static").phases[-1].components
    assert decode is not None
    assert decode.activations >= cache_bytes(64 + MANY)
    assert decode.gradients == decode.optimizer == 0


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "HuggingFaceTB/SmolLM2-135M"},
        {"model": "HuggingFaceTB/SmolLM2-135M", "kv_cache": "static", "batch_size": 3},
        {"model": "HuggingFaceTB/SmolLM2-135M", "method": "qlora"},
        {"model": "google/gemma-3-1b-pt", "kv_cache": "static", "seq_len": 600},
        {"model": "google-t5/t5-small", "task": "seq2seq-lm", "kv_cache": "static"},
    ],
    ids=lambda keys: "-".join(str(value) for value in keys.values()),
)
def test_the_trace_has_the_peaks_of_the_run_in_every_phase(
    runner: Runner, keys: dict[str, Any]
) -> None:
    compare(runner, keys)


@pytest.mark.usefixtures("peft_finds_the_cache")
def test_the_trace_has_the_peaks_of_a_run_with_a_learned_prefix(runner: Runner) -> None:
    adapter = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 21}
    compare(runner, {"model": "HuggingFaceTB/SmolLM2-135M", "adapter": adapter})


def compare(runner: Runner, keys: dict[str, Any]) -> None:
    setup = Setup(**{"seq_len": 500, "mode": "generate", "new_tokens": 3, **keys})
    result = runner.run(setup)
    assert result.outcome == "ok", result.message
    assert result.estimate is not None
    trace = result.estimate.trace
    assert trace.outcome == "ok", trace.message
    peaks = {phase.phase: (phase.peaks.allocated, phase.peaks.reserved) for phase in result.phases}
    assert peaks == {
        phase.phase: (phase.peaks.allocated, phase.peaks.reserved) for phase in trace.phases
    }
