"""The step itself, phase by phase, on any torch device: training, a forward pass or generation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from llmmem.errors import UnsupportedError
from llmmem.workload.build import build, quiet_libraries, weight_tensors
from llmmem.workload.generation import Generation
from llmmem.workload.optimizers import create_optimizer, state_tensors
from llmmem.workload.parallel import (
    is_of_shards,
    local,
    on_gathering,
    rank_zero,
    replicate,
    unwrapped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from llmmem.setups import Setup
    from llmmem.workload.build import Built

__all__ = ["TASK_ADAPTERS", "Observer", "execute"]

#: PEFT types whose forward pass takes the task of each sequence.
TASK_ADAPTERS = ("MULTITASK_PROMPT_TUNING", "POLY")


class Observer(Protocol):
    """Observes a setup while it runs."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Entered for each phase: one of `llmmem.results.PHASES`."""

    def step(self) -> AbstractContextManager[None]:
        """Entered for each step, around its phases."""

    def watch(self, model: nn.Module) -> None:
        """Called once, with the built model, before the steps."""

    def label(self, component: str, tensors: Iterable[Tensor]) -> None:
        """Called with the role of tensors: one of `llmmem.results.COMPONENTS`."""


def execute(
    setup: Setup,
    device: torch.device,
    observer: Observer,
    *,
    move: Callable[[nn.Module, torch.device], None] | None = None,
) -> None:
    """Build the setup on the device and run its steps.

    Each step creates its batches on the device. Tensors are dropped as soon as they are not needed: only the
    loss of a forward pass is kept, and only the gradients of its backward pass.

    Args:
        setup: What to run.
        device: Where to run it.
        observer: Notified of each phase and of the roles of tensors.
        move: See `llmmem.workload.build.build`.

    Raises:
        InputError: The setup names something that does not exist.
        UnsupportedError: The setup is valid and cannot be run here.
        torch.OutOfMemoryError: The device ran out of memory.
    """
    with quiet_libraries(), _seeded(device), rank_zero(setup, device) as mesh:
        with observer.phase("load"):
            built = build(setup, device, mesh=mesh, move=move)
            if setup.strategy == "fsdp2":
                on_gathering(built.model, partial(observer.label, "temporaries"))
            if setup.strategy == "ddp" and setup.is_train:  # DDP only reduces gradients
                built = _replicated(built, device, observer)
            observer.label("weights", map(local, weight_tensors(built.model)))
            optimizer = create_optimizer(setup, built.trainable) if setup.is_train else None
        observer.watch(unwrapped(built.model))
        for _ in range(setup.steps or 1):
            with observer.step():
                if optimizer is not None:
                    _train_step(setup, built, optimizer, device, observer)
                elif setup.mode == "generate":
                    _generate_step(setup, built, device, observer)
                else:
                    _forward_step(setup, built, device, observer)


def _replicated(built: Built, device: torch.device, observer: Observer) -> Built:
    def on_bucket(bucket: Tensor) -> None:
        observer.label("gradients", [bucket])

    return replace(built, model=replicate(built.model, device, on_bucket))


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Seed the random generators while inside, and restore their state afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(0)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def _train_step(
    setup: Setup,
    built: Built,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    observer: Observer,
) -> None:
    accumulation = setup.gradient_accumulation_steps or 1
    for _ in range(accumulation):
        with observer.phase("forward"):
            loss = _outputs(setup, built, device).loss
        with observer.phase("backward"):
            (loss / accumulation).backward()
            del loss
        gradients = [p.grad for p in built.trainable if p.grad is not None]
        observer.label("gradients", map(local, gradients))
    with observer.phase("optimizer"):
        if setup.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(built.trainable, setup.max_grad_norm)
        try:
            optimizer.step()
        except (ValueError, RuntimeError) as error:
            # bitsandbytes raises a ValueError if it has no kernel for the dtypes.
            if isinstance(error, RuntimeError) and not is_of_shards(error):
                raise
            raise UnsupportedError(
                f"optimizer {setup.optimizer!r} cannot step here: {error}"
            ) from error
        optimizer.zero_grad(set_to_none=True)
    observer.label("optimizer", map(local, state_tensors(optimizer)))


@torch.no_grad()
def _forward_step(setup: Setup, built: Built, device: torch.device, observer: Observer) -> None:
    with observer.phase("forward"):
        logits = _outputs(setup, built, device).logits
        del logits  # kept until here, as a caller that uses them would


@torch.no_grad()
def _generate_step(setup: Setup, built: Built, device: torch.device, observer: Observer) -> None:
    generation = Generation(setup, built)
    with _autocast(setup, device):
        with observer.phase("prefill"):
            generation.prefill(_random_ids(setup, built, device))
        with observer.phase("decode"):
            generation.decode(setup.new_tokens or 0)


def _outputs(setup: Setup, built: Built, device: torch.device) -> Any:
    """The model's outputs for a new batch, to which no reference remains."""
    with _autocast(setup, device):
        return built.model(**_batch(setup, built, device))


def _autocast(setup: Setup, device: torch.device) -> AbstractContextManager[Any]:
    # Autocast is not available for every device, so it is only entered if the setup uses it.
    if setup.autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, setup.autocast))


def _random_ids(setup: Setup, built: Built, device: torch.device) -> Tensor:
    """Token ids [B, S]."""
    vocabulary = built.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (setup.batch_size, setup.seq_len), device=device)


def _batch(setup: Setup, built: Built, device: torch.device) -> dict[str, Any]:
    """Arguments of the forward pass: random ids [B, S], a mask of ones, labels in training."""
    ids = _random_ids(setup, built, device)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if setup.is_train:
        batch["labels"] = _labels(setup, ids)
    elif setup.task == "seq2seq-lm":
        batch["decoder_input_ids"] = ids
    if _takes(built.model, "use_cache"):
        batch["use_cache"] = False
    if isinstance(setup.adapter, Mapping) and setup.adapter["peft_type"] in TASK_ADAPTERS:
        batch["task_ids"] = ids.new_zeros(setup.batch_size)  # all of the first task
    return batch


def _labels(setup: Setup, ids: Tensor) -> Tensor:
    if setup.task != "sequence-classification":
        return ids
    # One label means regression, with floating-point targets.
    dtype = torch.long if setup.num_labels != 1 else getattr(torch, setup.dtype)
    return torch.zeros(setup.batch_size, dtype=dtype, device=ids.device)


def _takes(model: nn.Module, argument: str) -> bool:
    # Wrappers forward all arguments: the signature of the model inside counts.
    model = unwrapped(model)
    base = getattr(model, "get_base_model", lambda: model)()
    return argument in inspect.signature(base.forward).parameters
