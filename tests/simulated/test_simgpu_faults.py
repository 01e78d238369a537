"""Faults on demand, as a program that uses PyTorch and NVML meets with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmmem.catalogue.gpus import find_gpu

SCENARIOS = Path(__file__).parents[1] / "programs" / "faults_scenarios.py"
GIB = 2**30


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(SCENARIOS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def value(outcomes: dict[str, dict[str, Any]]) -> Any:
    def of(name: str) -> Any:
        assert "error" not in outcomes[name], outcomes[name]["error"]
        return outcomes[name]["value"]

    return of


def is_out_of_memory(error: list[str] | None) -> bool:
    return error is not None and error[0] == "OutOfMemoryError"


# ---- memory -------------------------------------------------------------------------------------


def test_from_the_chosen_allocation_on_there_is_no_memory_until_the_fault_ends(value: Any) -> None:
    seen = value("oom_at_the_third_allocation")
    assert seen["held"] == 2
    assert is_out_of_memory(seen["refused"])
    assert is_out_of_memory(seen["again"])
    assert seen["after"] is None


def test_one_refusal_is_a_retry_and_two_are_an_error_that_can_be_recovered_from(
    value: Any,
) -> None:
    seen = value("oom_that_passes")
    assert seen["hidden"] is None
    assert seen["retries"] == 1
    assert is_out_of_memory(seen["raised"])
    assert seen["recovered"] is None


def test_only_what_is_past_the_size_is_refused(value: Any) -> None:
    within, past, again = value("oom_above_a_size")
    assert [within, again] == [None, None]
    assert is_out_of_memory(past)


def test_expandable_segments_run_out_as_well(value: Any) -> None:
    assert is_out_of_memory(value("oom_of_an_expandable_segment")[0])


def test_another_process_takes_room_and_is_named_and_is_no_part_of_this_one(value: Any) -> None:
    seen = value("another_process")
    assert "Process 4194304 has 20.00 GiB memory in use" in seen["message"]
    assert seen["free"] == seen["used"] == 20 * GIB
    before, now, peak = seen["own"]
    assert before == now == peak == find_gpu("rtx4090").context_bytes
    assert seen["processes"] == [now, 20 * GIB]


def test_a_process_that_grows_leaves_less_room_at_every_allocation(value: Any) -> None:
    count, free = value("another_process_that_grows")
    assert count == len(free) == 11
    assert free == list(range(20, -2, -2))


def test_a_slow_allocation_takes_its_time_and_what_is_cached_does_not(value: Any) -> None:
    first, second = value("a_slow_allocation")
    assert first >= 1
    assert second < 1


# ---- NVML ---------------------------------------------------------------------------------------


def test_nvml_refuses_with_its_own_errors(value: Any) -> None:
    seen = value("nvml_that_refuses")
    assert seen["not_supported"] == dict.fromkeys(("memory", "processes"), "NVMLError_NotSupported")
    assert seen["no_permission"] == dict.fromkeys(("memory", "processes"), "NVMLError_NoPermission")
    assert seen["no_process_memory"] == {"held": [None]}
    asked = ("handle", "name", "memory", "processes")
    assert seen["gpu_lost"] == dict.fromkeys(asked, "NVMLError_GpuIsLost")


@pytest.mark.parametrize(
    "fault", ["not_supported", "no_permission", "no_process_memory", "gpu_lost"]
)
def test_what_nvml_does_not_tell_is_not_known_and_the_rest_is(value: Any, fault: str) -> None:
    seen = value("what_the_meters_say_of_it")[fault]
    assert seen["peaks"] == [10 * 2**20, None]
    assert seen["notes"][0] == f"faults on demand: nvml={fault}"
    assert seen["notes"][1].startswith("NVML does not report the memory of this process")
    assert seen["names"] == (0 if fault == "gpu_lost" else 1)
    assert seen["driver"] is True


# ---- errors that stay ---------------------------------------------------------------------------


def test_a_launch_that_fails_breaks_all_that_follows_until_the_fault_ends(value: Any) -> None:
    seen = value("a_launch_that_fails")
    broken = ["AcceleratorError", "CUDA error: an illegal memory access was encountered"]
    assert seen["first"] is None
    assert seen["second"] == broken
    assert list(seen["later"].values()) == [broken] * 6, seen["later"]
    assert "RTX 4090" in seen["nvml"]
    assert seen["afterwards"] is None


def test_a_lost_gpu_is_lost_for_cuda_and_for_nvml(value: Any) -> None:
    seen = value("a_gpu_that_is_lost")
    assert seen["before"] is None
    assert seen["launch"] == seen["later"] == ["AcceleratorError", "CUDA error: unknown error"]
    assert seen["nvml"] == ["NVMLError_GpuIsLost", "GPU is lost"]


def test_faults_end_with_their_block_and_those_of_before_return(value: Any) -> None:
    before, inner, unlimited, outer_refuses, note, after = value("faults_within_faults")
    assert [before, inner, after] == ["", "nvml=gpu_lost", ""]
    assert unlimited is None
    assert outer_refuses
    assert note == "faults on demand: oom_above=1073741824"


# ---- programs that get their faults from the environment ----------------------------------------

CHILD = """
import ctypes, sys
runtime = next(p for p in open("/proc/self/maps").read().split() if "simgpu-cudart" in p)
cuda = ctypes.CDLL(runtime)
free, total, pointer = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
statuses = [cuda.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(1 << 20)) for _ in range(3)]
print(total.value - free.value, *statuses)
"""

PARENT = f"""
import json, os, subprocess, sys
from llmmem import simgpu
gpu = simgpu.activate("l4")
def run(faults):
    environment = {{**os.environ, **gpu.environment()}}
    if faults is not None:
        environment["LLMMEM_SIMULATED_FAULTS"] = faults
    done = subprocess.run([sys.executable, "-c", {CHILD!r}], env=environment,
                          capture_output=True, text=True)
    return [done.returncode, done.stdout.split(), done.stderr]
answers = {{faults: run(faults) for faults in json.loads(sys.argv[1])}}
with gpu.inject("oom_at=1"):
    answers["inherited"] = run(None)
print(json.dumps(answers))
"""


def test_a_program_without_llmmem_finds_its_faults_in_the_environment() -> None:
    faults = ["", "oom_at=2;oom_count=1", "outside=1.5GiB;oom_above=1000kB", "crash_at=2",
              "outside=1 GiBs", "oom_at=2;when=now"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PARENT, json.dumps(faults)],
        capture_output=True,
        text=True,
        check=False,
        env={name: text for name, text in os.environ.items() if not name.startswith("LLMMEM_")},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    context = find_gpu("l4").context_bytes
    assert answers[""] == [0, [str(context), "0", "0", "0"], ""]
    assert answers[faults[1]][1] == [str(context), "0", "2", "0"]
    assert answers[faults[2]][1] == [str(context + 3 * 2**29), "2", "2", "2"]
    assert answers["crash_at=2"][0] == -11
    assert answers["outside=1 GiBs"][0] == answers["oom_at=2;when=now"][0] == 2
    assert "outside=1 GiBs: field 1 is not understood" in answers["outside=1 GiBs"][2]
    assert "field 2 is not understood" in answers["oom_at=2;when=now"][2]
    assert answers["inherited"][1] == [str(context), "2", "2", "2"]


def test_a_program_whose_gpu_broke_ends_by_its_own_error() -> None:
    program = """
from llmmem import simgpu
simgpu.activate("l4")
import torch
model = torch.nn.Linear(64, 64, device="cuda")
model(torch.randn(8, 64, device="cuda")).sum().backward()
"""
    environment = os.environ | {"LLMMEM_SIMULATED_FAULTS": "launch_error_at=5"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 1, done.stderr
    assert "AcceleratorError: CUDA error: an illegal memory access" in done.stderr


def test_faults_that_are_not_valid_are_refused_before_anything_is_loaded() -> None:
    environment = os.environ | {"LLMMEM_SIMULATED_FAULTS": "oom=5"}
    done = subprocess.run(
        [sys.executable, "-c", "from llmmem import simgpu; simgpu.activate('l4')"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert "InputError: LLMMEM_SIMULATED_FAULTS: unknown fault 'oom'" in done.stderr
