"""Several simulated GPUs, in the programs of simgpu_devices.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmmem.catalogue.gpus import find_gpu

PROGRAMS = Path(__file__).parents[1] / "programs" / "simgpu_devices.py"
MIB = 2**20
GIB = 2**30


@pytest.fixture(scope="session")
def outcomes() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def value(outcomes: dict[str, dict[str, Any]]) -> Any:
    def of(name: str) -> Any:
        outcome = outcomes[name]
        assert "error" not in outcome, outcome["error"]
        return outcome["value"]

    return of


def test_eight_devices_are_told_apart_and_charged_only_when_touched(value: Any) -> None:
    seen = value("eight devices")
    card = find_gpu("h100")
    assert seen["uuids"] == seen["buses"] == 8
    assert seen["memory"] == [card.total_bytes] * 8
    only_the_sixth = [0, 0, 0, 0, 0, card.context_bytes + 2 * MIB, 0, 0]
    assert seen["held"] == seen["by NVML"] == only_the_sixth


@pytest.mark.parametrize(
    ("chosen", "devices"),
    [
        ("1,3", [1, 3]),
        ("3,1", [3, 1]),
        (" 4, 5", [4, 5]),
        ("1gpu,3", [1, 3]),
        ("0,9,1", [0]),  # the list ends where no device is named
        ("U3,U1", [3, 1]),
        ("U3,GPU-none,U1", [3]),
        ("GPU-73696d05", [5]),  # the beginning of one UUID only
    ],
)
def test_cuda_visible_devices_chooses_and_orders_for_cuda_but_not_for_nvml(
    value: Any, chosen: str, devices: list[int]
) -> None:
    seen = value(f"visible {chosen}")
    assert seen["devices"] == devices
    assert seen["buses"] == [device + 1 for device in devices]
    held = find_gpu("h100").context_bytes + 2 * MIB
    assert seen["held"] == held
    assert seen["by NVML"] == [held if device == devices[-1] else 0 for device in range(8)]


@pytest.mark.parametrize("chosen", ["", "-1", "2,2", "GPU-7369"])
def test_cuda_visible_devices_can_hide_all(value: Any, chosen: str) -> None:
    assert value(f"visible {chosen}") == [False, "No CUDA GPUs are available"]


def test_a_model_spreads_over_two_devices_and_each_has_a_peak_of_its_own(value: Any) -> None:
    seen = value("a model on two devices")
    assert seen["gradients"] == seen["states"] == [0, 0, 1, 1]
    first, second = 4 * 1025 * 1024, 4 * 1025 * 4096
    # Weights, gradients and the two values of AdamW for each; cuBLAS takes 32 MiB on two threads.
    held = [4 * first, 4 * second]
    assert [seen["allocated"][i] - held[i] for i in range(2)] == [
        pytest.approx(64 * MIB, abs=MIB)
    ] * 2
    assert all(peak >= now for peak, now in zip(seen["peaks"], seen["allocated"], strict=True))
    assert seen["peaks"][1] > seen["peaks"][0]


def test_a_device_map_of_accelerate_trains_across_devices(value: Any) -> None:
    found = dict(value("a device map"))
    assert found == {
        "model.embed_tokens.weight": 0,
        "0": 0,
        "1": 1,
        "model.norm.weight": 1,
        "lm_head.weight": 1,
    }


def test_a_full_device_leaves_the_others_usable(value: Any) -> None:
    message, first, second, kept = value("one full device")
    assert message == "Tried to allocate 30.00 GiB"
    assert (first, second) == (0, kept)


@pytest.mark.parametrize("name", ["copies h100", "copies rtx4090", "expandable copies"])
def test_copies_between_devices_keep_values_and_take_memory_on_both(value: Any, name: str) -> None:
    seen = value(name)
    assert seen["values"] == [1, 2, 3]
    assert seen["held"] == seen["reserved"]
    assert all(100 * MIB <= held <= 104 * MIB for held in seen["held"])
    assert seen["afterwards"] == [0, 0]


NOT_ENABLED, ALREADY_ENABLED, UNSUPPORTED, NO_DEVICE = 705, 704, 217, 101


def test_peer_access_is_answered_as_the_card_would(value: Any) -> None:
    context = find_gpu("h100").context_bytes
    assert value("peers h100") == {
        "can": True,
        "answers": [NOT_ENABLED, 0, ALREADY_ENABLED, 0, True, NO_DEVICE],
        "opened": [0, context],
    }
    geforce = value("peers rtx4090")
    assert geforce["can"] is False
    assert geforce["answers"] == [NOT_ENABLED, *[UNSUPPORTED] * 2, NOT_ENABLED, True, NO_DEVICE]
