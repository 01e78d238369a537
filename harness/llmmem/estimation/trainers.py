"""The first steps of a transformers `Trainer`, of a copy of one that was made without a GPU."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, TrainerMemoryTracker
from transformers.utils.quantization_config import QuantizationMethod

from llmmem.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

__all__ = ["ASSUMPTIONS", "copy_on_gpu", "take_first_steps"]

# The first allocates the optimizer's state; in the second it is there throughout.
STEPS = 2
ASSUMPTIONS = (
    f"at most {STEPS} optimizer steps of the Trainer, on the first batches that it takes",
    "the Trainer's callbacks, evaluation, logs and checkpoints left out",
)
_BUILD_IT = "estimate a function that builds and returns the Trainer, as it would on a GPU"


class _StopEarly(TrainerCallback):
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= STEPS:
            control.should_training_stop = True


def take_first_steps(trainer: Trainer) -> None:
    """Train for a few steps, and write, log and send nothing. Its arguments are left alone.

    Raises:
        UnsupportedError: Steps of such a trainer cannot be traced.
    """
    _check_supported(trainer)
    trainer.args = _quiet(trainer.args)
    trainer.callback_handler = CallbackHandler(  # type: ignore[no-untyped-call]
        [DefaultFlowCallback(), _StopEarly()],
        trainer.model,
        trainer.processing_class,
        trainer.optimizer,
        trainer.lr_scheduler,
    )
    trainer._memory_tracker = TrainerMemoryTracker(skip_memory_metrics=True)  # type: ignore[no-untyped-call]
    # What is to be logged is still read from the device.
    trainer.log = _log_nothing  # type: ignore[method-assign]
    trainer.train()


def _log_nothing(*_: object, **__: object) -> None:
    pass


def _check_supported(trainer: Trainer) -> None:
    arguments = trainer.args
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or arguments.world_size > 1:
        raise UnsupportedError(
            "a Trainer with DeepSpeed, FSDP or several processes cannot be traced: run it with "
            "llmmem exec, or describe it as a Setup with parallel"
        )
    if arguments.use_liger_kernel:
        raise UnsupportedError(
            "use_liger_kernel changes transformers for the whole process: run it with llmmem exec"
        )
    if _is_of_trl(trainer) and find_spec("triton") is None:
        raise UnsupportedError(
            "TRL computes its losses with kernels of Triton on a GPU: install triton for an estimate"
        )


def _is_of_trl(trainer: Trainer) -> bool:
    return any(cls.__module__.startswith("trl.") for cls in type(trainer).__mro__)


def _quiet(arguments: TrainingArguments) -> TrainingArguments:
    """The same arguments, for steps and nothing else."""
    quiet = copy.copy(arguments)
    changes: dict[str, Any] = {
        "save_strategy": SaveStrategy.NO,
        "eval_strategy": IntervalStrategy.NO,
        "eval_on_start": False,
        "load_best_model_at_end": False,
        "push_to_hub": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
    }
    for name, value in changes.items():
        setattr(quiet, name, value)
    return quiet


def copy_on_gpu(trainer: Trainer) -> Trainer:
    """A copy of a trainer that was made on the host, as if made now, where CUDA is redirected.

    Its model has the same layout and no values. The trainer and its model stay as they are.

    Raises:
        UnsupportedError: The trainer holds what only a GPU tells how to place.
    """
    with torch._C.DisableTorchFunction():
        copied = _copy_of(trainer)
    # Reading it looks for the device.
    copied.args._setup_devices  # noqa: B018
    copied.create_accelerator_and_postprocess()
    _place(copied)
    return copied


def _place(trainer: Trainer) -> None:
    """Move the model as the Trainer's constructor does."""
    model: Any = trainer.model
    arguments = trainer.args
    is_bitsandbytes = (
        getattr(model, "quantization_method", None) == QuantizationMethod.BITS_AND_BYTES
    )
    # `train` does so itself before it evaluates in lower precision.
    is_moved = trainer.place_model_on_device or arguments.bf16_full_eval or arguments.fp16_full_eval
    if is_moved and not is_bitsandbytes:
        trainer._move_model_to_device(model, arguments.device)
    if not all(parameter.is_cuda for parameter in model.parameters()):
        raise UnsupportedError(
            f"the Trainer does not move its model to the GPU, where it would have been: {_BUILD_IT}"
        )


def _copy_of(trainer: Trainer) -> Trainer:
    """The same trainer with a model on the host whose weights have no values."""
    model: Any = trainer.model
    others = [
        name
        for name, value in vars(trainer).items()
        if isinstance(value, nn.Module) and name not in ("model", "model_wrapped")
    ]
    if others:
        raise UnsupportedError(f"the Trainer holds another module ({others[0]}): {_BUILD_IT}")
    copied = copy.copy(trainer)
    for name, value in vars(trainer).items():
        if name not in ("train_dataset", "eval_dataset"):
            setattr(copied, name, _containers_copied(value))
    # What accelerate has wrapped is left of a training before this one, and is made anew.
    of_user = not isinstance(trainer.optimizer, AcceleratedOptimizer)
    optimization = (trainer.optimizer, trainer.lr_scheduler) if of_user else (None, None)
    try:
        copied.model, copied.optimizer, copied.lr_scheduler = copy.deepcopy(
            (model, *optimization), _without_values(model)
        )
    except TypeError as error:
        raise UnsupportedError(
            f"the Trainer's model cannot be copied ({error}): {_BUILD_IT}"
        ) from error
    if "_original_forward" in vars(copied.model):
        del copied.model._original_forward, copied.model.forward
    copied.model_wrapped = copied.model
    copied.args = _of_other_device(trainer.args)
    copied.state, copied.control = TrainerState(), TrainerControl()
    return copied


def _containers_copied(value: Any) -> Any:
    """Dicts and lists are copied with all that are in them; what else they hold is shared."""
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = _containers_copied(item)
        return copied
    if type(value) is list:
        return [_containers_copied(item) for item in value]
    return value


def _without_values(model: nn.Module) -> dict[int, Any]:
    """For `copy.deepcopy`: what stands for the model's tensors, by their ids.

    Memory that is never written to is not taken.
    """
    stand_ins: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:  # others know how they are stored and quantized
            empty = nn.Parameter(
                torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad
            )
            vars(empty).update(vars(parameter))
            stand_ins[id(parameter)] = empty
    for buffer in model.buffers():
        stand_ins[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return stand_ins


def _of_other_device(arguments: TrainingArguments) -> TrainingArguments:
    """The same arguments, which have yet to look for the device."""
    copied = copy.copy(arguments)
    vars(copied).pop("_setup_devices", None)
    copied.accelerator_config = copy.copy(arguments.accelerator_config)
    copied.use_cpu = False
    return copied
