"""A trace of a transformers `Trainer`: the first steps of a copy of it that has no values."""

from __future__ import annotations

import copy
import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from llmmem.errors import UnsupportedError
from llmmem.estimation.functions import trace_function

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import Trainer, TrainingArguments

    from llmmem.catalogue.gpus import Gpu
    from llmmem.results import Trace

__all__ = ["trace_trainer"]

# In the second, the optimizer's state is there throughout.
STEPS = 2
ASSUMPTIONS = (
    f"{STEPS} optimizer steps of the Trainer, on the first batches that it takes",
    "the Trainer's callbacks, evaluation, logs and checkpoints left out",
)


def trace_trainer(trainer: Trainer, gpu: Gpu) -> Trace:
    """Estimate what ``trainer.train()`` takes on a card, in bytes, by steps of a copy of it.

    The trainer, its model and the state of accelerate stay as they are. Nothing is written.

    Args:
        trainer: Made for one process; it may have been made on a machine without a GPU.
        gpu: The card.
    """
    with _state_kept():
        copied = _copy_of(trainer)
        return trace_function(lambda: _train(copied), gpu, ASSUMPTIONS)


def _train(trainer: Trainer) -> None:
    """The trainer's steps on the device that it finds now."""
    trainer.args._setup_devices  # noqa: B018 - reading it looks for the device
    trainer.create_accelerator_and_postprocess()
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.args.world_size > 1:
        raise UnsupportedError(
            "a Trainer with DeepSpeed, FSDP or several processes cannot be traced: run it with "
            "llmmem exec, or describe it as a Setup with parallel"
        )
    model: Any = trainer.model
    if trainer.place_model_on_device:
        trainer._move_model_to_device(model, trainer.args.device)
    trainer.train()


def _copy_of(trainer: Trainer) -> Trainer:
    """The same trainer with a model of the same layout, on the host, whose weights take no memory."""
    model: Any = trainer.model
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:  # others know how they are stored and quantized
            memo[id(parameter)] = _without_values(parameter)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    copied = copy.copy(trainer)
    copied.args = _arguments(trainer.args)
    # What accelerate has wrapped is left of a training before this one, and is made anew.
    of_user = not isinstance(trainer.optimizer, AcceleratedOptimizer)
    copied.model, copied.optimizer, copied.lr_scheduler = copy.deepcopy(
        (model, *((trainer.optimizer, trainer.lr_scheduler) if of_user else (None, None))), memo
    )
    if "_original_forward" in vars(copied.model):
        del copied.model._original_forward, copied.model.forward
    copied.model_wrapped = copied.model
    copied.callback_handler = CallbackHandler(  # type: ignore[no-untyped-call]
        [DefaultFlowCallback()],
        copied.model,
        copied.processing_class,
        copied.optimizer,
        copied.lr_scheduler,
    )
    copied.state, copied.control = TrainerState(), TrainerControl()
    return copied


def _without_values(parameter: nn.Parameter) -> nn.Parameter:
    """Another of the same layout on the host: memory that is never written to is not taken."""
    empty = nn.Parameter(
        torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad
    )
    vars(empty).update(vars(parameter))
    return empty


def _arguments(arguments: TrainingArguments) -> TrainingArguments:
    """The same, for a few steps on whatever device is there, which leave nothing behind."""
    copied = copy.copy(arguments)
    vars(copied).pop("_setup_devices", None)
    copied.accelerator_config = copy.copy(arguments.accelerator_config)
    changes: dict[str, Any] = {
        "use_cpu": False,
        "max_steps": min(STEPS, arguments.max_steps) if arguments.max_steps > 0 else STEPS,
        "save_strategy": SaveStrategy.NO,
        "eval_strategy": IntervalStrategy.NO,
        "logging_strategy": IntervalStrategy.NO,
        "load_best_model_at_end": False,
        "push_to_hub": False,
        "report_to": [],
        "disable_tqdm": True,
        "skip_memory_metrics": True,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
    }
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


@contextmanager
def _state_kept() -> Iterator[None]:
    """What a Trainer sets for the process is as before: accelerate's state, seeds, environment."""
    shared = [state._shared_state for state in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    environment = dict(os.environ)
    seeds, numpy_seeds = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(seeds)
        np.random.set_state(numpy_seeds)
