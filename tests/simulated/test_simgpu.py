"""The simulated GPU runs the real PyTorch: every scenario is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmmem import simgpu
from llmmem.catalogue.gpus import find_gpu
from llmmem.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

SCENARIOS = Path(__file__).parents[1] / "programs" / "simgpu_scenarios.py"
TRACES = Path(__file__).parents[1] / "data" / "allocator"
MIB = 2**20
GIB = 2**30
TRACES_WITH_TIES = ("default-mixed-1", "roundup_power2_divisions")
TORCH = tuple(int(part) for part in metadata.version("torch").split(".")[:2])


def run_scenarios() -> str:
    done = subprocess.run(
        [sys.executable, str(SCENARIOS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def outcomes(once: Callable[[str, Callable[[], str]], str]) -> dict[str, dict[str, Any]]:
    return json.loads(once("simgpu", run_scenarios))


@pytest.fixture
def value(outcomes: dict[str, dict[str, Any]]) -> Any:
    def of(name: str) -> Any:
        outcome = outcomes[name]
        assert "error" not in outcome, outcome["error"]
        return outcome["value"]

    return of


# ---- accounting ---------------------------------------------------------------------------------


def test_the_account_is_exact_to_the_byte(value: Any) -> None:
    seen = value("tensors_and_workspaces")
    assert seen["untouched"] == 0
    assert seen["one tensor"] == 4_000_256
    assert seen["after two matmuls"] == 3 * 4_000_256 + 32 * MIB
    assert seen["beside reserved"] == seen["context"] == find_gpu("h100").context_bytes
    assert seen["free + held"] == seen["total"] == find_gpu("h100").total_bytes
    assert seen["peak above"] == 64 * MIB


def test_the_card_is_reported_as_simulated_and_otherwise_as_itself(value: Any) -> None:
    seen = value("tensors_and_workspaces")
    card = find_gpu("h100")
    assert seen["name"] == f"{card.title} (simulated)"
    assert seen["properties"] == [9, 0, 132, card.total_bytes, card.l2_bytes]


def test_the_cublas_workspace_follows_the_compute_capability(value: Any) -> None:
    assert value("workspace_of_an_older_card") == 8_519_680


def test_a_request_beyond_the_card_raises_pytorchs_own_error_and_leaves_the_rest_usable(
    value: Any,
) -> None:
    seen = value("out_of_memory")
    assert "Tried to allocate 20.00 GiB" in seen["message"]
    assert "total capacity of 23.64 GiB" in seen["message"]
    assert "this process has 8.45 GiB memory in use" in seen["message"]
    assert seen["allocated"] == seen["kept"] == 16 * GIB


@pytest.mark.parametrize("name", sorted(path.stem for path in TRACES.glob("*.json")))
def test_pytorchs_allocator_repeats_its_recorded_traces(value: Any, name: str) -> None:
    if name in TRACES_WITH_TIES and TORCH < (2, 13):
        pytest.skip("recorded with 2.14: which of several blocks of one size is taken has changed")
    assert value(f"replay {name}") is None


def test_nvml_knows_the_process_and_the_device(value: Any) -> None:
    seen = value("what_nvml_reports")
    card = find_gpu("h100")
    reserved = card.nvml_total_bytes - card.total_bytes
    used = seen["process bytes"]
    assert used == card.context_bytes + 100 * MIB
    assert seen["before"] == 0
    assert seen["own"] == [True, True]
    assert seen["used"] == [used, used]
    assert seen["v1"] == [card.nvml_total_bytes, card.total_bytes - used, used + reserved]
    assert seen["v2"] == [card.nvml_total_bytes, reserved, card.total_bytes - used, used]
    assert seen["names"] == [f"{card.title} (simulated)"] * 3
    assert seen["capability"] == [9, 0]
    assert seen["utilization"] == 0
    assert all(part.isdigit() for part in seen["driver"].split("."))
    assert seen["torch"] == used + reserved


def test_what_nvml_cannot_know_is_not_supported_rather_than_zero(value: Any) -> None:
    assert value("what_nvml_reports")["refused"] == ["NVMLError_NotSupported"] * 3


def test_paged_optimizer_state_counts_for_the_process_and_not_for_pytorch(value: Any) -> None:
    seen = value("a_managed_allocation")
    assert seen["process"] == seen["states"] > 0
    assert seen["reserved"] == 0


def test_the_stream_ordered_pool_grows_in_steps_and_shrinks(value: Any) -> None:
    assert value("a_stream_ordered_pool") == {"held": 32 * MIB, "after": 0}


def test_streams_events_and_pinned_memory_work(value: Any) -> None:
    assert value("two_streams_pinned_memory_and_events") == [True, False, True, True]


def test_a_graph_can_be_captured_and_replayed(value: Any) -> None:
    assert value("a_captured_graph") == 1000


def test_the_allocators_history_names_the_python_line(value: Any) -> None:
    assert value("memory_history") == [["alloc", 3 * MIB, SCENARIOS.name], 3 * MIB]


def test_devices_are_counted_apart_and_only_when_touched(value: Any) -> None:
    context = find_gpu("h100").context_bytes
    assert value("a_second_device") == [2, 0, context + 2 * MIB, context + 2 * MIB]


def test_forked_children_leave_the_parent_untouched(value: Any) -> None:
    assert value("the parent") == 0


# ---- programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["foreach", "fused"])
@pytest.mark.parametrize("gpu", ["t4", "a100-80gb", "l4", "rtx4090", "h100"])
def test_a_llama_trains(value: Any, gpu: str, optimizer: str) -> None:
    seen = value(f"train {gpu} {optimizer}")
    assert seen["finite"] == [True, True]
    assert seen["state"]


def test_the_card_decides_the_kernels_and_so_the_peak(value: Any) -> None:
    peaks = {gpu: value(f"train {gpu} fused")["peak"] for gpu in ("t4", "l4", "h100")}
    # A T4 has no flash attention for bfloat16; an H100's cuBLAS workspaces, one on each of the two
    # threads that compute, are larger than an L4's. (Buffers of reductions grow with the SMs.)
    assert peaks["t4"] > 4 * peaks["h100"]
    assert peaks["h100"] - peaks["l4"] == pytest.approx(2 * (32 * MIB - 8_519_680), abs=MIB)


def test_bitsandbytes_quantizes_and_optimizes(value: Any) -> None:
    seen = value("bitsandbytes_layers_and_optimizers")
    assert seen["four bit"] == ["torch.uint8", 1024 * 1024 // 2, True]
    assert seen["eight bit"] == ["torch.int8", 1024 * 1024, [16, 1024]]
    assert all(run["finite"] == [True, True] and run["state"] for run in seen["optimizers"])


def test_attention_takes_the_fused_kernels(value: Any) -> None:
    seen = value("attention_backends")
    output, log_sum = 8 * 1024 * 64 * 2, 8 * 1024 * 4
    seeds = 2 * 512 if TORCH >= (2, 7) else 0  # on the host before
    assert seen["flash"] == seen["grouped"] == output + log_sum + seeds
    # The mask in the type of the query: no matrix for each head.
    assert seen["masked"] < output + log_sum + 2 * 1024 * 1024 + 4096


def test_kernels_that_ask_for_their_architecture_run_on_a_card_between_two(value: Any) -> None:
    assert value("kernels_that_ask_for_their_architecture") == [[4, 5], [400_000, 2], [1000, 64]]


def test_convolutions_run_and_recurrent_networks_are_refused_with_a_reason(value: Any) -> None:
    seen = value("convolutions")
    assert seen["gradient"] == [2, 3, 32, 32]
    assert "torch.backends.cudnn.enabled = False" in seen["recurrent"]


# ---- what a program reads back ------------------------------------------------------------------


def test_what_was_sent_to_the_device_comes_back(value: Any) -> None:
    seen = value("values_from_the_host")
    assert seen["sent"] == seen["clone"] == [3, 5]
    assert seen["created"] == [[7, 7], [2, 5]]


def test_small_integers_and_masks_are_computed(value: Any) -> None:
    seen = value("values_from_the_host")
    assert seen["arithmetic"] == [[4, 6], [0, -2], [6, 10], [1, 2]]
    assert seen["compared"] == [[True, False], [False, True], [False, True]]
    assert seen["reduced"] == [5, [2, 3], False, [True, True, True]]
    assert seen["selected"] == [5, [[1, 2, 2], [1, 2, 3]]]
    assert seen["expanded"] == 8


def test_what_a_kernel_wrote_reads_as_zero_and_not_as_what_was_there(value: Any) -> None:
    assert value("values_from_the_host")["overwritten"] == [0, 0]


def test_a_kernel_that_is_not_understood_spoils_nothing_but_its_output(value: Any) -> None:
    distance, beside, ids = value("values_beside_what_is_written")
    assert distance == 2048
    assert beside == [1, 1]
    assert ids == [[3, 5]]


def test_numbers_are_finite(value: Any) -> None:
    checks = value("checks_on_what_was_computed")["checks"]
    assert list(checks.values()) == [[False, False, True, False]] * 3


def test_a_mask_of_ones_is_all_true_and_no_token_ends_a_sequence(value: Any) -> None:
    seen = value("checks_on_what_was_computed")
    assert seen["mask"] is True
    assert seen["end of sequence"] == [False, False]


def test_indices_stay_in_range(value: Any) -> None:
    assert all(0 <= index < 1000 for index in value("checks_on_what_was_computed")["indices"])


def test_generation_ends_at_the_number_of_tokens_asked_for(value: Any) -> None:
    assert value("generation") == [26] * 5


def test_the_gradient_scaler_steps_and_keeps_its_scale(value: Any) -> None:
    assert value("gradient_scaling")["mean"] == [2, 65536.0, 65536.0]


def test_a_gradient_that_surely_overflows_halves_the_scale(value: Any) -> None:
    # The gradient of a sum is the scale itself: 65536 is infinite in float16, 32768 is not.
    assert value("gradient_scaling")["sum"] == [2, 32768.0, 32768.0]


# ---- the process --------------------------------------------------------------------------------


def run(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "program",
    [
        "torch.randn(8, 8, device='cuda') @ torch.randn(8, 8, device='cuda')",
        "torch.nn.Linear(8, 8).to('cuda')(torch.randn(8, 8, device='cuda')).sum().backward()",
    ],
    ids=["forward", "backward"],
)
def test_a_program_ends_cleanly_and_prints_nothing(program: str) -> None:
    done = run(f"from llmmem import simgpu; simgpu.activate('l4'); import torch; {program}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


CHILD = """
from llmmem import simgpu
import torch
torch.empty(1, device="cuda")
gpu = simgpu.active()
held = gpu.process_bytes(0), gpu.process_bytes(1)
print(gpu.gpu.name, gpu.count, torch.cuda.device_count(), *held)
"""


def test_a_new_program_can_be_given_the_same_gpus() -> None:
    parent = f"""
import os, subprocess, sys
from llmmem import simgpu
gpu = simgpu.activate("l4", count=2)
environment = {{**os.environ, **gpu.environment()}}
subprocess.run([sys.executable, "-c", {CHILD!r}], env=environment, check=True)
"""
    done = run(parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["l4", "2", "2", str(find_gpu("l4").context_bytes + 2 * MIB), "0"]


def test_asking_again_gives_the_same_gpus_and_other_ones_only_before_use() -> None:
    done = run(
        """
from llmmem import simgpu
from llmmem.errors import UnsupportedError
assert simgpu.active() is None
gpu = simgpu.activate("l4")
assert simgpu.activate("L4") is gpu is simgpu.active()
assert simgpu.activate("t4").gpu.name == "t4"
import torch
torch.empty(1, device="cuda")
try:
    simgpu.activate("h100")
except UnsupportedError as error:
    print(error)
"""
    )
    assert done.returncode == 0, done.stderr
    assert "take another process" in done.stdout


def test_activation_after_torch_says_so() -> None:
    done = run(
        """
import torch
from llmmem import simgpu
from llmmem.errors import UnsupportedError
try:
    simgpu.activate("l4")
except UnsupportedError as error:
    print(error)
"""
    )
    assert "before torch is imported" in done.stdout, done.stderr


@pytest.mark.parametrize("gpu", ["rtx4080", "", "H-100"])
def test_an_unknown_gpu_is_named_with_the_known_ones(gpu: str) -> None:
    with pytest.raises(InputError, match=r"unknown GPU .*accepted: t4, .*rtx5090"):
        simgpu.activate(gpu)


@pytest.mark.parametrize("count", [0, -1, 17])
def test_the_number_of_gpus_has_bounds(count: int) -> None:
    with pytest.raises(InputError, match="accepted: 1 to 16"):
        simgpu.activate("h100", count=count)


def test_a_card_that_the_installed_pytorch_has_no_kernels_for_is_refused() -> None:
    from llmmem.simgpu.torch_build import installed_torch

    torch = installed_torch()
    assert torch is not None
    if torch.runs_on((7, 0)):
        pytest.skip("this build of PyTorch covers Volta")
    done = run("from llmmem import simgpu; simgpu.activate('v100-32gb')")
    assert UnsupportedError.__name__ in done.stderr
    assert "no kernels for the Tesla V100" in done.stderr
