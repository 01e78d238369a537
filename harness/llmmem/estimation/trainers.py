"""The first steps of a transformers `Trainer`, of a copy of one that was made without a GPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import islice
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
    from collections.abc import Iterator

    from transformers import Trainer, TrainingArguments

    from llmmem.accounting.allocator import CachingAllocator

__all__ = ["ASSUMPTIONS", "copy_on_gpu", "take_first_steps"]

# The first step allocates the optimizer state. The second has it from the start, and may leave other gaps
# in the cache for the third.
FIRST_STEPS = 3
MAX_STEPS = 8
# The number of rows whose lengths are read.
MAX_ROWS = 2_000
ASSUMPTIONS = (
    f"steps of the Trainer until one raises no peak (at least {FIRST_STEPS}, at most {MAX_STEPS})",
    "the Trainer's callbacks, evaluation, logs and checkpoints left out",
)
_BUILD_IT = "estimate a function that builds and returns the Trainer, as it would on a GPU"


class _StopWhenSteady(TrainerCallback):
    """Stops training after a step that raises no peak, or after `MAX_STEPS`."""

    def __init__(self, allocator: CachingAllocator, first_steps: int) -> None:
        self._allocator = allocator
        self._first_steps = first_steps
        self._peaks = (0, 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        before = self._peaks
        self._peaks = (self._allocator.peak_allocated, self._allocator.peak_reserved)
        is_steady = state.global_step >= self._first_steps and self._peaks == before
        if is_steady or state.global_step >= MAX_STEPS:
            control.should_training_stop = True


class _LongestSoon(torch.utils.data.Sampler[int]):
    """Yields rows in their order, but inserts the longest ones after the first few."""

    def __init__(self, sampler: Any, lengths: list[int], head: int, batch: int) -> None:
        self._sampler = sampler
        self._head = head
        self._longest = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[:batch]

    def __len__(self) -> int:
        return len(self._sampler) + len(self._longest)

    def __iter__(self) -> Iterator[int]:
        rows = iter(self._sampler)
        yield from islice(rows, self._head)
        yield from self._longest
        yield from rows


def take_first_steps(trainer: Trainer, allocator: CachingAllocator) -> tuple[str, ...]:
    """Train until the peaks are steady, without writing, logging or uploading anything.

    The user's training arguments are not changed. If rows differ in length and the training is longer, a
    batch of the longest rows is inserted early.

    Args:
        trainer: The Trainer.
        allocator: The allocator whose peaks are observed.

    Returns:
        Assumptions about the lengths of rows.

    Raises:
        UnsupportedError: Steps of such a trainer cannot be traced.
    """
    _check_supported(trainer)
    trainer.args = _quiet(trainer.args)
    first_steps, lengths = _plan(trainer)
    trainer.callback_handler = CallbackHandler(  # type: ignore[no-untyped-call]
        [DefaultFlowCallback(), _StopWhenSteady(allocator, first_steps)],
        trainer.model,
        trainer.processing_class,
        trainer.optimizer,
        trainer.lr_scheduler,
    )
    trainer._memory_tracker = TrainerMemoryTracker(skip_memory_metrics=True)  # type: ignore[no-untyped-call]
    # The Trainer still reads the values that it logs from the device.
    trainer.log = _log_nothing  # type: ignore[method-assign]
    trainer.train()
    return lengths


def _plan(trainer: Trainer) -> tuple[int, tuple[str, ...]]:
    """The minimum number of steps, and assumptions about the lengths of rows.

    A short training runs as it is.
    """
    arguments = trainer.args
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    dataset: Any = trainer.train_dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        unknown = "rows of a stream: longer ones than those of the first batches take more"
        return FIRST_STEPS, (unknown,)
    steps = arguments.max_steps
    if steps <= 0:
        steps = math.ceil(len(dataset) / batch * arguments.num_train_epochs)
    lengths = [_length(dataset[row]) for row in range(min(len(dataset), MAX_ROWS))]
    if len(set(lengths)) < 2:
        return FIRST_STEPS, ()
    if steps <= MAX_STEPS:
        return MAX_STEPS, ()
    sampler = trainer._get_train_sampler()
    # Other samplers repeat rows in groups, as in GRPO.
    if not isinstance(sampler, torch.utils.data.RandomSampler | torch.utils.data.SequentialSampler):
        return FIRST_STEPS, (
            "rows of different lengths: longer ones than those of the first batches take more",
        )
    soon = _LongestSoon(sampler, lengths, FIRST_STEPS * batch, batch)
    trainer._get_train_sampler = lambda *_: soon  # type: ignore[method-assign]
    looked_at = f"the first {MAX_ROWS:,} rows" if len(dataset) > MAX_ROWS else "all rows"
    return FIRST_STEPS + 2, (
        f"rows of different lengths: a batch of the longest of {looked_at} is among the steps, "
        "whether or not the training comes to it",
    )


def _length(row: Any) -> int:
    """The number of elements in all columns of a row, to compare rows."""
    if not isinstance(row, Mapping):
        return 0
    values = [value for value in row.values() if hasattr(value, "__len__")]
    return sum(len(value) for value in values if getattr(value, "ndim", 1))


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
    """A copy of the arguments without evaluation, logging, saving and workers."""
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
    """Copy a Trainer that was created on the host, as if it had been created on the redirected GPU.

    The model of the copy has the same layout but no values. The Trainer and its model are not changed.

    Raises:
        UnsupportedError: Its constructor would have behaved differently on a GPU.
    """
    with torch._C.DisableTorchFunction():
        copied = _copy_of(trainer)
    # Reading this property sets up the device.
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
    # With full evaluation in lower precision, `train` moves the model itself.
    is_moved = trainer.place_model_on_device or arguments.bf16_full_eval or arguments.fp16_full_eval
    if is_moved and not is_bitsandbytes:
        trainer._move_model_to_device(model, arguments.device)
    if not all(parameter.is_cuda for parameter in model.parameters()):
        raise UnsupportedError(
            f"the Trainer does not move its model to the GPU, where it would have been: {_BUILD_IT}"
        )


def _copy_of(trainer: Trainer) -> Trainer:
    """A copy of the trainer with a model on the host whose weights have no values."""
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
    # An optimizer wrapped by accelerate is left over from an earlier training; a new one is created.
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
    """Copy dicts and lists recursively; everything else is shared."""
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = _containers_copied(item)
        return copied
    if type(value) is list:
        return [_containers_copied(item) for item in value]
    return value


def _without_values(model: nn.Module) -> dict[int, Any]:
    """The memo for `copy.deepcopy` that replaces the model's tensors by uninitialised ones.

    Memory that is never written does not become resident.
    """
    stand_ins: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:  # subclasses, such as quantized ones, copy themselves
            empty = nn.Parameter(
                torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad
            )
            vars(empty).update(vars(parameter))
            stand_ins[id(parameter)] = empty
    for buffer in model.buffers():
        stand_ins[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return stand_ins


def _of_other_device(arguments: TrainingArguments) -> TrainingArguments:
    """A copy of the arguments whose device is not set up yet."""
    copied = copy.copy(arguments)
    vars(copied).pop("_setup_devices", None)
    copied.accelerator_config = copy.copy(arguments.accelerator_config)
    copied.use_cpu = False
    return copied
