"""PyTorch's operations that go through CUDA's libraries run on the simulated GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATIONS = Path(__file__).parents[1] / "programs" / "library_operations.py"
GROUPS = (
    "linear_algebra",
    "fourier",
    "convolutions",
    "selection",
    "products",
    "sparse",
    "streams",
)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(OPERATIONS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("group", GROUPS)
def test_operations_run(seen: dict[str, Any], group: str) -> None:
    assert seen["failures"][group] == {}


def test_a_fourier_transform_takes_a_work_area_of_its_size(seen: dict[str, Any]) -> None:
    assert seen["figures"]["work area"] == 8 * 1024 * 8


def test_a_length_with_a_large_prime_takes_eight_times_as_much(seen: dict[str, Any]) -> None:
    size = 8 * 262 * 8
    assert seen["figures"]["work area of a large prime"] == pytest.approx(8 * size, abs=512)


def test_a_factorisation_takes_a_workspace(seen: dict[str, Any]) -> None:
    matrix = 512 * 512 * 4
    assert seen["figures"]["eigenvectors"] == pytest.approx(2 * matrix, rel=0.01)


def test_factorisations_say_that_they_succeeded(seen: dict[str, Any]) -> None:
    assert seen["figures"]["info"] == [0] * 8


def test_sparse_results_have_the_entries_of_evenly_spread_ones(seen: dict[str, Any]) -> None:
    assert seen["figures"]["entries"] == [500 * 500 // 80, 1000]


def test_waiting_for_a_stream_that_is_captured_fails_as_on_a_gpu(seen: dict[str, Any]) -> None:
    message = seen["refusals"]["waiting for a captured stream"]
    assert "operation not permitted when stream is capturing" in message
    assert "operation failed due to a previous error during capture" in message


def test_what_is_not_simulated_says_so_and_what_to_do(seen: dict[str, Any]) -> None:
    assert "use dense tensors, or the CPU" in seen["refusals"]["semi-structured"]
    assert "torch.backends.cudnn.enabled = False" in seen["refusals"]["recurrent"]


def test_a_function_that_is_not_simulated_fails_with_its_name(
    run_python: Callable[[str], str],
) -> None:
    program = """
import ctypes, os, sys, tempfile
from llmmem import simgpu
gpu = simgpu.activate("l40s")
runtime = ctypes.CDLL(str(next(p for p in gpu.libraries.paths if "cudart" in p.name)))
with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    print(runtime.cudaGraphAddNode(), runtime.cudaGraphAddNode(), runtime.cudaFuncSetAttribute())
    file.seek(0)
    print(file.read().decode())
"""
    statuses, message = run_python(program).strip().split("\n", 1)
    assert statuses == "801 801 0"  # cudaErrorNotSupported
    assert message.count("cudaGraphAddNode") == 1
    assert "do this step on the CPU" in message
