"""Triton kernels and torch.compile on the simulated GPU: every program is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmmem.simgpu import compilation
from llmmem.simgpu.builder import BuiltLibraries

if TYPE_CHECKING:
    from collections.abc import Callable

SCENARIOS = Path(__file__).parents[1] / "programs" / "simgpu_triton_scenarios.py"
MIB = 2**20


def run_scenarios(cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SCENARIOS), str(cache)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, once: Callable[[str, Callable[[], str]], str]
) -> dict[str, dict[str, Any]]:
    cache = tmp_path_factory.mktemp("cache")
    return json.loads(once("triton", lambda: run_scenarios(cache)))


@pytest.fixture
def value(outcomes: dict[str, dict[str, Any]]) -> Any:
    def of(name: str) -> Any:
        outcome = outcomes[name]
        assert "error" not in outcome, outcome["error"]
        return outcome["value"]

    return of


# ---- kernels ------------------------------------------------------------------------------------


def test_a_kernel_of_the_users_takes_no_memory_but_its_output(value: Any) -> None:
    seen = value("a kernel")
    assert seen["output"] <= seen["added"] < seen["output"] + 4096
    assert seen["process"] == seen["reserved"]


def test_a_kernel_reports_what_its_machine_code_needs(value: Any) -> None:
    seen = value("a kernel")
    assert 16 < seen["registers"] < 128
    assert seen["registers"] != 32  # what is said of kernels whose code is not read
    assert seen["threads"] == 4 * 32


def test_what_a_kernel_has_written_to_is_no_longer_known(value: Any) -> None:
    seen = value("a kernel")
    assert seen["known"] == [False, True]
    assert seen["after a launch"] == [True, True]


def test_an_autotuner_takes_the_first_configuration_that_fits_and_tries_none(value: Any) -> None:
    assert value("an autotuned kernel") == {
        "block": 64,
        "peak": 3 * 512 * 512 * 2,
        "notes": ["Triton's autotuner took the first configuration that fits the card"],
    }


def test_memory_taken_from_the_driver_is_in_the_one_account(value: Any) -> None:
    assert value("memory from the driver") == {"held": 64 * MIB, "free": 0, "after": 0}


def test_ligers_kernels_train_a_llama_without_its_logits(value: Any) -> None:
    peaks = value("a llama with liger's kernels")
    if peaks is None:
        pytest.skip("liger-kernel is not installed")
    logits = 2 * 512 * 32000 * 4
    plain, fused = peaks
    assert plain - fused > logits


# ---- compiled programs --------------------------------------------------------------------------


def test_a_compiled_llama_trains_in_less_memory(value: Any) -> None:
    first, second, third = value("a compiled llama")["peaks"]
    assert first < second == third < value("an eager llama")["peaks"][-1]


def test_only_what_compiles_has_a_note_of_it(value: Any) -> None:
    note = "compiled code pads no matrix product"
    assert note in value("a compiled llama")["notes"]
    assert note not in value("an eager llama")["notes"]  # which has Inductor imported


def test_the_peak_is_the_same_with_a_cold_and_with_a_warm_cache(value: Any) -> None:
    cold, warm = value("a compiled llama"), value("the same again")
    assert (cold["from the cache"], warm["from the cache"]) == (0, 2)
    assert cold["peaks"] == warm["peaks"]


def test_no_benchmark_is_in_the_peak_of_a_tuned_product(value: Any) -> None:
    seen = value("products of odd sizes")
    workspace = 32 * MIB
    assert workspace + seen["product"] <= seen["added"] < workspace + seen["product"] + 512


def test_a_cuda_graph_holds_its_memory_from_one_replay_to_the_next(value: Any) -> None:
    held = value("a graph of kernels")
    assert held == [held[0]] * 5
    allocated, reserved = held[0]
    assert allocated == 4 * MIB < reserved


# ---- caches -------------------------------------------------------------------------------------


def test_code_for_a_simulated_card_is_kept_apart_from_all_other(value: Any) -> None:
    kept = value("caches")
    assert set(kept) == {"inductor", "triton"}
    for directories in kept.values():
        assert len(directories) == 2  # one for each card
        assert all(name.startswith("simulated-") for name in directories)


def test_nothing_that_was_chosen_here_leaves_the_machine(value: Any) -> None:
    assert value("another card") == {"threads": 1, "remote": False}


def test_settings_of_the_users_are_kept_and_ours_move_with_the_card(tmp_path: Path) -> None:
    libraries = BuiltLibraries((tmp_path / "build" / "core.so",))
    own = {
        "TORCHINDUCTOR_COMPILE_THREADS": "8",
        "TRITON_LIBCUDA_PATH": "/theirs",
        "TRITON_CACHE_DIR": "/theirs/triton",
    }
    of_one = compilation.settings("one card", libraries, tmp_path, own)
    of_another = compilation.settings("another card", libraries, tmp_path, {**own, **of_one})
    assert of_one["TORCHINDUCTOR_COMPILE_THREADS"] == "8"
    assert of_one["TRITON_LIBCUDA_PATH"] == "/theirs"
    assert Path(of_one["TRITON_CACHE_DIR"]).parent == Path("/theirs/triton")
    assert Path(of_one["TORCHINDUCTOR_CACHE_DIR"]).parent == tmp_path / "inductor"
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(of_another[name]).parent == Path(of_one[name]).parent
        assert of_another[name] != of_one[name]


# ---- programs started with the simulated GPU ------------------------------------------------------

STARTS_A_PROGRAM = """
import subprocess, sys
from llmmem import simgpu
environment = simgpu.activate("rtx4090").environment()
program = subprocess.run([sys.executable, "-W", "error", "-c", sys.argv[1]],
    env={**__import__("os").environ, **environment}, capture_output=True, text=True)
print(program.stdout, program.stderr, program.returncode)
"""

COMPILES = """
import torch
from torch._inductor.async_compile import AsyncCompile
AsyncCompile.wait_pool_ready()
x = torch.randn(64, 100, device="cuda", requires_grad=True)
torch.compile(lambda x: torch.softmax(x * 3, -1).sum(0))(x).sum().backward()
print("pool", AsyncCompile.use_process_pool(), tuple(x.grad.shape))
"""


def test_an_unmodified_program_compiles_with_workers_and_ends_clean(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTS_A_PROGRAM, COMPILES],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
            "TORCHINDUCTOR_COMPILE_THREADS": "2",
        },
    )
    assert done.stdout.split() == ["pool", "True", "(64,", "100)", "0"], done.stdout + done.stderr
