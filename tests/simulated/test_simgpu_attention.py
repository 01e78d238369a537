"""Attention on the simulated GPU: PyTorch's own choice of a kernel, and cuDNN's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "simgpu_attention.py"
CARDS = ("t4", "a100-80gb", "rtx4090", "h100", "b200", "rtx5090")


def run(*cards: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *cards],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, Any] = json.loads(done.stdout)
    assert not [o["error"] for o in outcomes.values() if "error" in o], outcomes
    return outcomes


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    return run(*CARDS)


@pytest.mark.parametrize("card", CARDS)
def test_the_estimate_chooses_the_kernel_that_pytorch_chooses_on_the_card(
    outcomes: dict[str, Any], card: str
) -> None:
    assert outcomes[card]["choices"] == []


@pytest.mark.parametrize("card", ["h100", "b200"])
@pytest.mark.parametrize(
    ("name", "heads", "key_heads", "dim"),
    [
        ("plain", 8, 8, 64),
        ("masked", 8, 8, 64),
        ("dropout", 8, 8, 64),
        ("large", 8, 8, 256),
        ("grouped", 8, 2, 128),
    ],
)
def test_cudnn_attention_takes_what_pytorch_asks_for(
    outcomes: dict[str, Any], card: str, name: str, heads: int, key_heads: int, dim: int
) -> None:
    seen = outcomes[card]["passes"][name]
    rows = 2 * heads * 1000
    output, log_sum, seed_and_offset = 2 * rows * dim, 4 * rows, 2 * 8
    gradients = (2 * rows + 2 * 2 * 2 * key_heads * 1000) * dim
    # A sum for each row, and an accumulator, which Blackwell does without for large heads.
    workspace = 4 * rows * (1 if (card, dim) == ("b200", 256) else dim + 1)
    assert seen["kernel"] == "ScaledDotProductCudnnAttentionBackward0"
    assert seen["saved"] == output + log_sum + seed_and_offset
    assert seen["backward"] == gradients + workspace


@pytest.mark.parametrize("card", ["h100", "b200"])
def test_what_cudnn_leaves_unknown_is_said_with_its_bytes(
    outcomes: dict[str, Any], card: str
) -> None:
    before, between, after = outcomes[card]["passes"]["notes"]
    assert not [note for note in before if "attention" in note]
    assert [note for note in between if note.endswith("is not known and not counted")]
    # Gradients of keys and values for each of 8 query heads: 2 x 2 x 8 x 1000 x 128 of 2 bytes.
    assert [note for note in after if "up to 7.81 MiB in the backward pass" in note]


def test_pytorchs_own_switch_puts_cudnn_attention_last() -> None:
    seen = run("h100", TORCH_CUDNN_SDPA_DEPRIORITIZED="1")["h100"]
    assert seen["choices"] == []
    assert seen["passes"]["plain"]["kernel"] == "ScaledDotProductFlashAttentionBackward0"
