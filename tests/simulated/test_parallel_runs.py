"""Rank 0 of parallel setups on the simulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llmmem import Runner, Setup

MIB = 2**20
LLAMA = "meta-llama/Llama-3.2-1B"
PARAMETERS = 1_235_814_400


@pytest.fixture(scope="module")
def runner():
    with Runner("sim:h100x2") as runner:
        yield runner


def run(runner, parallel, **keys):
    setup = Setup.from_mapping({"model": LLAMA, "seq_len": 512, "parallel": parallel, **keys})
    result = runner.run(setup, estimate=False)
    assert result.outcome == "ok", result.message
    assert result.source == "simulated"
    return result


def components(result):
    return {phase.phase: phase.components for phase in result.phases}


@pytest.mark.parametrize(
    ("parallel", "keys"),
    [
        ("fsdp2:8", {"gradient_checkpointing": True, "max_grad_norm": 1.0}),
        ("fsdp2:8", {"method": "lora"}),
        ("ddp:8", {}),
        ("ddp:8", {"method": "qlora", "gradient_checkpointing": True}),
    ],
    ids=["fsdp2", "fsdp2 lora", "ddp", "ddp qlora"],
)
def test_components_sum_to_the_peak_of_every_phase(runner, parallel, keys):
    result = run(runner, parallel, **keys)
    assert result.components.total == result.peaks.allocated
    for phase in result.phases:
        assert phase.components.total == phase.peaks.allocated, phase.phase
    assert any("rank 0 of 8" in note and "NCCL" in note for note in result.notes)


def test_shards_shrink_with_the_ranks_and_nothing_is_ever_whole(runner):
    results = {ranks: run(runner, f"fsdp2:{ranks}") for ranks in (1, 2, 64)}
    for ranks, result in results.items():
        share = 2 * PARAMETERS / ranks
        held = components(result)["optimizer"]
        assert held.weights == pytest.approx(share, rel=1e-2)
        assert held.gradients == pytest.approx(share, rel=1e-2)
        assert held.optimizer == pytest.approx(2 * share, rel=1e-2)
        load = result.phases[0]
        assert (load.phase, load.peaks.allocated) == ("load", held.weights)
        rest = result.phases[-1].peaks.allocated - held.weights - held.gradients - held.optimizer
        assert rest < 128 * MIB  # cuBLAS workspaces and what the optimizer takes meanwhile
    peaks = [results[ranks].peaks.allocated for ranks in (1, 2, 64)]
    # With two ranks all four are there at the end of the backward pass, the rest being the same.
    assert peaks[0] - peaks[1] == pytest.approx(4 * PARAMETERS, rel=0.02)
    assert peaks[1] > peaks[2]


def test_what_fsdp2_gathers_is_a_temporary(runner):
    forward = components(run(runner, "fsdp2:64", mode="forward"))["forward"]
    logits, embedding = 2 * 512 * 128_256, 2 * 128_256 * 2048
    assert forward.activations <= logits + 2 * MIB
    assert forward.temporaries >= embedding


def test_a_replica_takes_a_single_gpus_memory_and_a_copy_of_its_gradients(runner):
    alone, replica = (components(run(runner, each)) for each in ("none", "ddp:8"))
    gradients = 2 * PARAMETERS
    for phase in ("forward", "optimizer"):
        assert replica[phase].weights == alone[phase].weights
        assert replica[phase].optimizer == alone[phase].optimizer
        assert replica[phase].activations == pytest.approx(alone[phase].activations, abs=4 * MIB)
        added = replica[phase].gradients - alone[phase].gradients
        assert added == pytest.approx(gradients, rel=1e-3)


def test_the_command_tells_the_peak_of_a_rank_whatever_gpus_this_machine_lets_programs_see():
    arguments = ["--parallel", "fsdp2:64", "--seq-len", "512", "--device", "sim:h100", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "llmmem", "run", LLAMA, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "7"},  # it is no simulated one
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["outcome"] == "ok"
    assert document["peak_allocated_bytes"] is not None
    assert document["setup"]["parallel"] == {"strategy": "fsdp2", "world_size": 64}
    assert document["components"]["weights"] == pytest.approx(2 * PARAMETERS / 64, rel=1e-2)
    assert document["estimate"]["rules"]["formula"].endswith("/ 64 ranks")
    assert document["estimate"]["trace"]["outcome"] == "unsupported"
