"""What programs read back from the simulated GPU must hold, whatever was computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "simgpu_values.py"


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_numbers_are_finite_in_every_type_and_by_every_way_to_the_host(
    seen: dict[str, Any],
) -> None:
    assert seen["numbers"] == []


def test_integers_and_masks_of_any_size_are_what_they_were_made_of(seen: dict[str, Any]) -> None:
    assert seen["integers"] == []


def test_tokens_that_the_device_chose_are_in_range_and_end_nothing(seen: dict[str, Any]) -> None:
    assert seen["tokens"] == []


def test_a_trainer_finds_a_finite_loss_and_the_tokens_that_it_sent(seen: dict[str, Any]) -> None:
    assert seen["training"] == []


def test_a_mask_that_the_host_drew_keeps_its_number_of_ones(seen: dict[str, Any]) -> None:
    assert seen["sparse"] == [5000] * 3


def test_a_result_is_right_or_not_told_and_inputs_stay_as_they_are(seen: dict[str, Any]) -> None:
    results = seen["results"]
    assert results["false"] == []
    assert results["spoilt"] == []
    assert results["told"] > 0.8


def test_what_a_graph_computed_is_not_told_again_after_its_launch(seen: dict[str, Any]) -> None:
    assert seen["graph"] == [True, False]


def test_a_tensor_has_none_of_the_values_of_the_one_before_in_its_place(
    seen: dict[str, Any],
) -> None:
    assert seen["reuse"] == [1, False]


def test_generation_ends_at_its_length_however_tokens_are_chosen(seen: dict[str, Any]) -> None:
    assert {name: length for name, length in seen["lengths"].items() if length != 26} == {}


# Of each token a key and a value in each of two layers: 2 heads of 32 numbers of 2 bytes.
TENSORS, TOKEN_BYTES = 4, 128


def cache_bytes(tokens: int) -> int:
    """Of a whole cache, in blocks of 512 bytes as the caching allocator hands them out."""
    return TENSORS * (tokens * TOKEN_BYTES + 511) // 512 * 512


@pytest.mark.parametrize(("name", "copied"), [("greedy", 1), ("sampling", 1), ("static cache", 0)])
def test_generation_takes_the_cache_of_its_tokens(
    seen: dict[str, Any], name: str, copied: int
) -> None:
    few, many = seen["peaks"][name]
    # The cache holds the prompt's 16 tokens and all that were generated but the last. One that
    # grows is copied, one tensor at a time. Ids, positions and masks grow too, by some bytes a
    # token, and with few tokens the prompt's activations are in the peak.
    grown = cache_bytes(16 + 512) - cache_bytes(16 + 1)
    slack = 512 * 32
    assert grown - slack <= many - few <= grown + copied * grown // TENSORS + slack
