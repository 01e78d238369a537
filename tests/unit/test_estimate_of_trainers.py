"""Estimates of transformers' Trainer, on any build of PyTorch."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

import llmmem

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = Path(__file__).with_name("trainers_here.py")
TRAINERS: dict[str, Callable[..., Any]] = runpy.run_path(str(FILE))["TRAINERS"]
RUN = """
import runpy
import sys

from llmmem import simgpu

simgpu.activate("l40s")
runpy.run_path(sys.argv[1])["TRAINERS"][sys.argv[2]]().train()

import torch

print()
print(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
"""

pytestmark = [
    # Of transformers and PEFT, about each other's names.
    pytest.mark.filterwarnings("ignore:`:FutureWarning"),
    # transformers warns where there is nothing to pin memory for.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
]


def estimated(what: Any) -> llmmem.Trace:
    trace = llmmem.estimate(what, "l40s")
    assert trace.outcome == "ok", trace.message
    return trace


@pytest.mark.usefixtures("simulated_gpu")
@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_is_estimated_as_it_trains_on_the_simulated_gpu(name: str) -> None:
    program = [sys.executable, "-c", RUN, str(FILE), name]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    peaks = estimated(TRAINERS[name](use_cpu=True)).peaks
    assert done.stdout.split()[-2:] == [str(peaks.allocated), str(peaks.reserved)]


def test_a_trainer_that_a_function_makes_is_estimated_alike() -> None:
    inside = estimated(lambda: TRAINERS["lora"](logging_strategy="no").train())
    outside = estimated(TRAINERS["lora"](use_cpu=True))
    assert (inside.peaks, inside.components) == (outside.peaks, outside.components)


def test_a_trainer_stays_as_it_is_and_trains_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = TRAINERS["lora"](use_cpu=True)
    before = state_of(trainer)
    capsys.readouterr()
    first = estimated(trainer)
    assert state_of(trainer) == before
    assert capsys.readouterr().out == ""
    assert not [*Path(trainer.args.output_dir).iterdir()]
    assert trainer.train().global_step == 3
    assert {parameter.device.type for parameter in trainer.model.parameters()} == {"cpu"}
    assert estimated(trainer).peaks == first.peaks


def state_of(trainer: Any) -> dict[str, Any]:
    parameters = {
        name: (id(parameter), parameter.data_ptr(), parameter.sum().item(), parameter.grad)
        for name, parameter in trainer.model.named_parameters()
    }
    return {
        "trainer": {name: id(value) for name, value in vars(trainer).items()},
        "arguments": {name: id(value) for name, value in vars(trainer.args).items()},
        "parameters": parameters,
        "forward": trainer.model.forward,
        "callbacks": [*trainer.callback_handler.callbacks],
        "accelerate": [dict(AcceleratorState._shared_state), dict(PartialState._shared_state)],
        "seed": torch.random.get_rng_state().tolist(),
    }
