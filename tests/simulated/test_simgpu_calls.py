"""What CUDA's functions answer when they are called directly, in the programs of simgpu_calls.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmmem.catalogue.gpus import find_gpu

PROGRAMS = Path(__file__).parents[1] / "programs" / "simgpu_calls.py"
INVALID_CONTEXT, NOT_SUPPORTED = 201, 801  # CUresult


@pytest.fixture(scope="session")
def answers() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def answer(answers: dict[str, dict[str, Any]]) -> Any:
    def of(program: str) -> Any:
        assert "error" not in answers[program], answers[program]["error"]
        return answers[program]["value"]

    return of


def test_without_a_visible_device_the_driver_has_no_context(answer: Any) -> None:
    seen = answer("without_a_device")
    assert seen["memory"] == seen["device"] == INVALID_CONTEXT
    assert seen["context"] == [0, None]


def test_attributes_of_memory_that_is_not_cudas_are_all_zero(answer: Any) -> None:
    assert answer("attributes_of_host_memory") == [0, 0, 0]


def test_callbacks_of_the_driver_are_called(answer: Any) -> None:
    assert answer("callbacks") == [[0, 0], ["plain", "of a stream: 0"]]


def test_a_dot_product_that_the_host_asks_for_reads_as_zero(answer: Any) -> None:
    assert answer("dot_products") == [0, 0, 0xA5A50000]


def test_host_memory_is_not_charged_to_a_device(answer: Any) -> None:
    assert answer("host_memory_of_the_driver") == [NOT_SUPPORTED, 0]


def test_what_a_kernel_in_place_has_changed_is_followed_or_forgotten(answer: Any) -> None:
    assert answer("in_place") == [[0], [6]]


def test_a_card_that_is_not_understood_leaves_the_one_before(answer: Any) -> None:
    assert answer("a_card_that_is_not_understood") == [2, find_gpu("h100").total_bytes]


def test_a_plan_made_twice_has_one_work_area(answer: Any) -> None:
    assert answer("a_plan_made_twice") == [0, 0]
