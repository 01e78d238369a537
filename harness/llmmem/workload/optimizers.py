"""Optimizers, created by the names that transformers' Trainer gives them."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

import torch

from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.errors import InputError, UnsupportedError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmmem.setups import Setup

__all__ = ["create_optimizer", "state_tensors"]


def create_optimizer(
    setup: Setup, parameters: Sequence[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Create the setup's optimizer; arguments that are not set have the defaults of its library.

    Raises:
        InputError: The optimizer does not accept an argument or a value.
        UnsupportedError: The optimizer is not installed, or llmmem does not support it.
    """
    name = setup.optimizer or ""
    entry = OPTIMIZERS[name]
    if entry.refused:
        raise UnsupportedError(f"optimizer {name!r} is not built: {entry.refused}")
    try:
        create = getattr(importlib.import_module(entry.module), entry.class_name)
    except ImportError as error:
        raise UnsupportedError(
            f"optimizer {name!r} needs {entry.package}, which cannot be imported: {error}"
        ) from error
    given = dict(setup.optimizer_args or {})
    accepted = [key for key in inspect.signature(create).parameters if key != "params"]
    for key in given:
        if key not in accepted:
            raise unknown(f"{name} argument", key, accepted)
    try:
        optimizer: torch.optim.Optimizer = create(parameters, **{**entry.arguments, **given})
    except (TypeError, ValueError) as error:
        raise InputError(f"invalid optimizer_args {given!r} of {name!r}: {error}") from error
    if hasattr(optimizer, "train"):  # schedule-free optimizers have two modes, as models do
        optimizer.train()
    return optimizer


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """All tensors of the optimizer's state, on any device."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
