"""Optimizers by the names that transformers' Trainer gives them."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from llmmem.errors import InputError, UnsupportedError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llmmem.setups import Setup

__all__ = ["create_optimizer", "state_tensors"]


@dataclass(frozen=True)
class _Source:
    """Where the class of an optimizer is, and the arguments that make it the one of its name."""

    module: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _bitsandbytes(name: str, bits: int, **arguments: bool) -> _Source:
    return _Source("bitsandbytes.optim", name, {"optim_bits": bits, **arguments})


def _torchao(name: str) -> _Source:
    return _Source("torchao.optim", name, {"block_size": 256})


# As in transformers/trainer_optimizer.py (5.23), which cannot be asked without importing all of
# PEFT and bitsandbytes; a test holds this table to it.
_SOURCES: Mapping[str, _Source] = {
    "adamw_torch": _Source("torch.optim", "AdamW"),
    "adamw_torch_fused": _Source("torch.optim", "AdamW", {"fused": True}),
    "sgd": _Source("torch.optim", "SGD"),
    "adagrad": _Source("torch.optim", "Adagrad"),
    "rmsprop": _Source("torch.optim", "RMSprop"),
    "adafactor": _Source(
        "transformers.optimization",
        "Adafactor",
        {"lr": 5e-5, "scale_parameter": False, "relative_step": False},
    ),
    "adamw_bnb_8bit": _bitsandbytes("AdamW", 8, is_paged=False),
    "adamw_8bit": _bitsandbytes("AdamW", 8, is_paged=False),
    "paged_adamw_32bit": _bitsandbytes("AdamW", 32, is_paged=True),
    "paged_adamw_8bit": _bitsandbytes("AdamW", 8, is_paged=True),
    "ademamix": _bitsandbytes("AdEMAMix", 32, is_paged=False),
    "ademamix_8bit": _bitsandbytes("AdEMAMix", 8, is_paged=False),
    "paged_ademamix_32bit": _bitsandbytes("AdEMAMix", 32, is_paged=True),
    "paged_ademamix_8bit": _bitsandbytes("AdEMAMix", 8, is_paged=True),
    "lion_32bit": _bitsandbytes("Lion", 32, is_paged=False),
    "lion_8bit": _bitsandbytes("Lion", 8, is_paged=False),
    "paged_lion_32bit": _bitsandbytes("Lion", 32, is_paged=True),
    "paged_lion_8bit": _bitsandbytes("Lion", 8, is_paged=True),
    "rmsprop_bnb": _bitsandbytes("RMSprop", 32),
    "rmsprop_bnb_32bit": _bitsandbytes("RMSprop", 32),
    "rmsprop_bnb_8bit": _bitsandbytes("RMSprop", 8),
    "adamw_torch_4bit": _torchao("AdamW4bit"),
    "adamw_torch_8bit": _torchao("AdamW8bit"),
    "grokadamw": _Source("grokadamw", "GrokAdamW"),
    "stable_adamw": _Source("optimi", "StableAdamW", {"lr": 5e-5}),
    "schedule_free_adamw": _Source("schedulefree", "AdamWScheduleFree"),
    "schedule_free_radam": _Source("schedulefree", "RAdamScheduleFree"),
    "schedule_free_sgd": _Source("schedulefree", "SGDScheduleFree"),
}
_TARGETS = "it needs target modules, which a setup cannot name"
_FUSED = "it updates weights during the backward pass, in a loop of its own"
_REFUSED: Mapping[str, str] = {
    "adamw_torch_xla": "it runs on XLA devices only",
    "adamw_torch_npu_fused": "it runs on NPU devices only",
    "adamw_anyprecision": "its library, torchdistx, is not maintained",
    "galore_adamw": _TARGETS,
    "galore_adamw_8bit": _TARGETS,
    "galore_adafactor": _TARGETS,
    "galore_adamw_layerwise": _TARGETS,
    "galore_adamw_8bit_layerwise": _TARGETS,
    "galore_adafactor_layerwise": _TARGETS,
    "apollo_adamw": _TARGETS,
    "apollo_adamw_layerwise": _TARGETS,
    "lomo": _FUSED,
    "adalomo": _FUSED,
}


def create_optimizer(
    setup: Setup, parameters: Sequence[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The setup's optimizer over the parameters, with its library's defaults but for its arguments.

    Raises:
        InputError: An argument that it does not take, or a value that it refuses.
        UnsupportedError: It is not installed, or not built by llmmem.
    """
    name = setup.optimizer or ""
    if name in _REFUSED:
        raise UnsupportedError(f"optimizer {name!r} is not built: {_REFUSED[name]}")
    source = _SOURCES[name]
    try:
        create = getattr(importlib.import_module(source.module), source.name)
    except ImportError as error:
        library = source.module.partition(".")[0]
        raise UnsupportedError(
            f"optimizer {name!r} needs {library}, which cannot be imported: {error}"
        ) from error
    given = dict(setup.optimizer_args or {})
    accepted = [key for key in inspect.signature(create).parameters if key != "params"]
    for key in given:
        if key not in accepted:
            raise unknown(f"{name} argument", key, accepted)
    try:
        optimizer: torch.optim.Optimizer = create(parameters, **{**source.arguments, **given})
    except (TypeError, ValueError) as error:
        raise InputError(f"invalid optimizer_args {given!r} of {name!r}: {error}") from error
    if hasattr(optimizer, "train"):  # schedule-free optimizers have two modes, as models do
        optimizer.train()
    return optimizer


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """All tensors that the optimizer keeps from step to step, wherever they are."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
