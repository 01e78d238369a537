"""Restores the settings that a program changes for the whole process."""

from __future__ import annotations

import os
import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["process_state_kept"]


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Restore seeds, settings of PyTorch, the environment and accelerate's state at the end."""
    environment = dict(os.environ)
    seeds, numpy_seeds = random.getstate(), np.random.get_state()
    settings = _settings()
    shared = {name: dict(state) for name, state in _shared_states().items()}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for name, state in _shared_states().items():
            state.clear()
            state.update(shared.get(name, {}))
        _set(settings)
        random.setstate(seeds)
        np.random.set_state(numpy_seeds)
        os.environ.clear()
        os.environ.update(environment)


def _shared_states() -> Mapping[str, dict[str, Any]]:
    """The process-wide state of accelerate; empty if it is not imported."""
    module = sys.modules.get("accelerate.state")
    names = ("AcceleratorState", "GradientState", "PartialState")
    return {name: getattr(module, name)._shared_state for name in names} if module else {}


def _settings() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


def _set(settings: tuple[Any, ...]) -> None:
    deterministic, warn_only, cudnn_deterministic, benchmark, dtype, grad = settings
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    # `torch.backends.disable_global_flags` forbids setting these flags.
    if torch.backends.cudnn.deterministic != cudnn_deterministic:
        torch.backends.cudnn.deterministic = cudnn_deterministic
    if torch.backends.cudnn.benchmark != benchmark:
        torch.backends.cudnn.benchmark = benchmark
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
