"""Estimates of a transformers `Trainer`, on any build of PyTorch."""

from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import llmmem
from llmmem.catalogue.gpus import find_gpu
from llmmem.estimation.functions import trace_function
from llmmem.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Trainer

FILE = Path(__file__).parents[1] / "programs" / "trainer_programs.py"
MADE = runpy.run_path(str(FILE))
TRAINERS = MADE["TRAINERS"]
# Each in a process of its own, which finds a fresh GPU.
RUN = """
import gc
import os
import runpy
import sys

from llmmem import simgpu

simgpu.activate("l40s")

import torch

from llmmem import Setup
from llmmem.execution.preload import preload

# What most of them import. PEFT and bitsandbytes must not find CUDA by themselves, before the fork.
preload(Setup(model="HuggingFaceTB/SmolLM2-135M", method="qlora"))

from transformers import Trainer

gc.freeze()
for name, make in runpy.run_path(sys.argv[1])["TRAINERS"].items():
    child = os.fork()
    if not child:
        make().train()
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        print("peaks", name, *peaks, flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, name
"""
pytestmark = [
    pytest.mark.filterwarnings("ignore:`:FutureWarning"),  # of transformers, about its own names
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),  # without a GPU
]


def estimated(what: Any) -> tuple[int | None, int | None]:
    trace = llmmem.estimate(what, "l40s")
    assert trace.outcome == "ok", trace.message
    return trace.peaks.allocated, trace.peaks.reserved


def run_all() -> str:
    program = [sys.executable, "-c", RUN, str(FILE)]
    return subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="module")
def peaks_of_runs(
    simulated_gpu: None, once: Callable[[str, Callable[[], str]], str]
) -> dict[str, tuple[int, int]]:
    lines = once("trainers", run_all).splitlines()
    words = [line.split() for line in lines if line.startswith("peaks ")]
    return {name: (int(allocated), int(reserved)) for _, name, allocated, reserved in words}


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "unequal"])
def test_training_is_estimated_as_it_runs_on_the_simulated_gpu(
    name: str, peaks_of_runs: dict[str, tuple[int, int]]
) -> None:
    assert estimated(TRAINERS[name]) == peaks_of_runs[name]
    assert estimated(lambda: TRAINERS[name]().train()) == peaks_of_runs[name]


def test_with_rows_of_different_lengths_an_estimate_is_a_bound_that_is_stated(
    peaks_of_runs: dict[str, tuple[int, int]],
) -> None:
    trace = llmmem.estimate(TRAINERS["unequal"], "l40s")
    assert any("batch of the longest of all rows" in assumed for assumed in trace.assumptions)
    allocated, reserved = peaks_of_runs["unequal"]
    assert trace.peaks.allocated is not None
    assert trace.peaks.reserved is not None
    assert allocated <= trace.peaks.allocated < 1.05 * allocated
    assert reserved <= trace.peaks.reserved < 1.05 * reserved


@pytest.mark.parametrize("name", ["full", "lora", "mixed"])
def test_a_trainer_made_on_the_host_is_estimated_as_one_made_on_a_gpu(name: str) -> None:
    assert estimated(TRAINERS[name](use_cpu=True)) == estimated(TRAINERS[name])


def test_all_of_a_training_is_told() -> None:
    trace = llmmem.estimate(MADE["lora"], "l40s")
    assert trace.components is not None
    assert trace.components.weights > trace.components.optimizer > 0
    assert any("until one raises no peak" in assumption for assumption in trace.assumptions)
    assert any("callbacks" in assumption for assumption in trace.assumptions)


def test_an_estimate_leaves_the_trainer_and_the_libraries_as_they_were(tmp_path: Path) -> None:
    import accelerate
    import transformers

    calls: list[str] = []

    class Watching(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            calls.append("step")

        def on_log(self, *_: Any, **__: Any) -> None:
            calls.append("log")

        def on_save(self, *_: Any, **__: Any) -> None:
            calls.append("save")

    def watched() -> list[Any]:
        classes = [transformers.Trainer, transformers.TrainingArguments, accelerate.Accelerator]
        modules = [torch, torch.cuda, torch.accelerator, torch.optim.Optimizer, nn.Module]
        states = [accelerate.state.PartialState, accelerate.state.AcceleratorState]
        states.append(accelerate.state.GradientState)
        named = [dict(vars(one)) for one in (*classes, *modules)]
        for attributes in named:
            attributes.pop("__slotnames__", None)  # which Python adds to a class that it copies
        named += [dict(state._shared_state) for state in states]
        named += [dict(os.environ), random.getstate(), torch.random.get_rng_state().tolist()]
        named += [torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()]
        return [*named, *_state_of(trainer)]

    sockets: list[str] = []
    sys.addaudithook(lambda event, _: sockets.append(event) if event == "socket.connect" else None)
    trainer = MADE["mixed"](
        use_cpu=True,
        output_dir=str(tmp_path),
        callbacks=[Watching()],
        save_strategy="steps",
        save_steps=1,
    )
    before = watched()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    first = estimated(trainer)
    assert watched() == before
    assert all(torch.equal(weights[name], at) for name, at in trainer.model.state_dict().items())
    assert calls == sockets == list(tmp_path.iterdir()) == []
    assert estimated(trainer) == first


def _state_of(trainer: Trainer) -> list[Any]:
    model: Any = trainer.model
    tensors = [(id(p), p.device, p.requires_grad, p.grad) for p in model.parameters()]
    handler = trainer.callback_handler
    return [
        {name: id(value) for name, value in vars(trainer).items()},
        [vars(trainer.args), vars(trainer.state), vars(trainer.control)],
        [id(callback) for callback in handler.callbacks],
        [tensors, model.training, sorted(vars(model)), model.config.to_dict()],
    ]


def test_a_trainer_trains_after_an_estimate_as_without_one() -> None:
    def losses(trainer: Trainer) -> list[float]:
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    def made() -> Trainer:
        torch.manual_seed(0)
        trainer: Trainer = MADE["lora"](use_cpu=True, max_steps=2, per_device_train_batch_size=1)
        return trainer

    alone = losses(made())
    trainer = made()
    peaks = estimated(trainer)
    assert losses(trainer) == alone
    assert len(set(alone)) == 2
    assert estimated(trainer) == peaks


def _with_liger_kernels() -> Trainer:
    trainer: Trainer = MADE["full"]()
    trainer.args.use_liger_kernel = True
    return trainer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MADE["full"](full_determinism=True), "deterministic algorithms"),
        (_with_liger_kernels, "use_liger_kernel"),
    ],
)
def test_what_cannot_be_traced_is_unsupported_with_what_to_do(make: Any, reason: str) -> None:
    trace = llmmem.estimate(make, "l40s")
    assert trace.outcome == "unsupported"
    assert reason in trace.message
    assert "llmmem exec" in trace.message
    assert trace.peaks.allocated is None
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_trainer_with_a_second_model_is_to_be_made_in_a_function() -> None:
    trainer = MADE["full"](use_cpu=True)
    trainer.ref_model = nn.Linear(2, 2)
    trace = llmmem.estimate(trainer, "l40s")
    assert (trace.outcome, trace.peaks.allocated) == ("unsupported", None)
    assert "another module (ref_model): estimate a function that builds" in trace.message


def test_a_batch_that_stays_on_the_host_is_not_estimated() -> None:
    def function() -> None:
        nn.Embedding(64, 64).cuda()(torch.zeros(3, dtype=torch.long))

    trace = llmmem.estimate(function, "l40s")
    assert trace.outcome == "unsupported"
    assert "same device" in trace.message


def test_a_card_that_is_too_small_for_a_trainer_is_an_outcome() -> None:
    def function() -> Trainer:
        trainer: Trainer = MADE["trainer_of"](MADE["_model"](), per_device_train_batch_size=16)
        trainer.data_collator = lambda rows: {
            name: torch.zeros(2**18, 16, dtype=torch.long) for name in ("input_ids", "labels")
        }
        return trainer

    trace = llmmem.estimate(function, "t4")
    assert trace.outcome == "oom"
    large = trace_function(function, replace(find_gpu("t4"), total_bytes=1024 * GIB))
    assert (large.outcome, trace.needed) == ("ok", large.peaks)
