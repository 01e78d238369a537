"""Quantization of a model's linear layers, a file per library.

A new library is one file with a `QuantizationBackend`, named in :data:`BACKENDS`, and one file for
its traces (see `llmmem.estimation.trace.TRACED_LIBRARIES`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.errors import UnsupportedError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from fractions import Fraction

    import torch
    from torch import nn

    from llmmem.setups import Setup

__all__ = [
    "BACKENDS",
    "QuantizationBackend",
    "backend_of",
    "constant_tensors",
    "libraries_of",
    "quantizes_adapter",
]

#: The module with the backend, by the ``quant_method`` of transformers.
BACKENDS: Mapping[str, str] = {"bitsandbytes": "llmmem.workload.quantization.bitsandbytes"}


class QuantizationBackend(Protocol):
    """The functions that a module must have to support a library that quantizes linear layers."""

    def config(self, setup: Setup) -> Any:
        """The ``quantization_config`` of transformers for the setup.

        Raises:
            InputError: A key is unknown, or a value is not accepted.
            UnsupportedError: The library cannot be imported.
        """

    def keep_unquantized(self, config: Any, modules: Sequence[str]) -> None:
        """Make the config exclude exactly the modules with these names from quantization."""

    def is_quantized_layer(self, module: nn.Module) -> bool:
        """Whether a module of a skeleton is a quantized layer of the library."""

    def move_to_device(self, layer: nn.Module, device: torch.device) -> None:
        """Create a quantized layer of the library on the device, from zeros on the host."""

    def constants(self, model: nn.Module) -> Iterator[torch.Tensor]:
        """Tensors of a model that are neither parameters nor buffers: scales, code books."""

    def bytes_per_parameter(self, setup: Setup) -> Fraction:
        """Bytes of a quantized parameter, without constants, for the closed-form rules."""

    def has_nested_constants(self, setup: Setup) -> bool | None:
        """Whether 4-bit constants are quantized too; ``None`` if there are none to count."""

    def assumptions(self, setup: Setup) -> tuple[str, ...]:
        """What a trace assumes about the quantized layers."""


def backend_of(setup: Setup) -> QuantizationBackend:
    """The backend of a setup that is quantized.

    Raises:
        InputError: transformers has no such ``quant_method``.
        UnsupportedError: llmmem does not support the method.
    """
    from transformers.utils.quantization_config import QuantizationMethod

    method = setup.quantization_method or ""
    known = [method.value for method in QuantizationMethod]
    if method not in known:
        raise unknown("quant_method", method, known)
    if method not in BACKENDS:
        raise UnsupportedError(
            f"quantization {setup.quantization!r} is not built yet (built: {', '.join(BACKENDS)})"
        )
    return _load(method)


def _load(method: str) -> QuantizationBackend:
    """The backend of a ``quant_method`` in :data:`BACKENDS`."""
    return cast("QuantizationBackend", importlib.import_module(BACKENDS[method]))


def constant_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """The quantization constants of a model, for layers of all supported libraries."""
    for method in BACKENDS:
        yield from _load(method).constants(model)


def libraries_of(setup: Setup) -> frozenset[str]:
    """The libraries that the setup's optimizer and quantized layers come from."""
    found = {OPTIMIZERS[setup.optimizer].package} if setup.optimizer else set()
    if setup.quantization_method is not None:
        found.add(setup.quantization_method)
    if quantizes_adapter(setup):
        found.add("bitsandbytes")
    return frozenset(found)


def quantizes_adapter(setup: Setup) -> bool:
    """Whether the adapter's first weights come from a quantization of the base (LoftQ)."""
    adapter = setup.adapter if isinstance(setup.adapter, Mapping) else {}
    return adapter.get("init_lora_weights") == "loftq" or "loftq_config" in adapter
