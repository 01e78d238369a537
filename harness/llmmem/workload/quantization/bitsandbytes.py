"""bitsandbytes: LLM.int8 and 4-bit layers (a `QuantizationBackend`)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmmem.errors import InputError, UnsupportedError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from llmmem.setups import Setup

__all__ = [
    "assumptions",
    "bytes_per_parameter",
    "config",
    "constants",
    "has_nested_constants",
    "is_quantized_layer",
    "keep_unquantized",
    "move_to_device",
]

_INT8_BYTES = Fraction(1)
_FOUR_BIT_BYTES = Fraction(1, 2)


def config(setup: Setup) -> Any:
    """The ``BitsAndBytesConfig`` of a setup.

    Raises:
        InputError: A key is unknown, or a value is not accepted.
        UnsupportedError: The library cannot be imported.
    """
    from transformers import BitsAndBytesConfig

    keys = _keys(setup)
    # Unknown keys would only cause a warning.
    accepted = sorted(BitsAndBytesConfig().to_dict())  # type: ignore[no-untyped-call]
    for key in keys:
        if key not in accepted:
            raise unknown("key of quantization", key, accepted)
    if not (keys.get("load_in_4bit") or keys.get("load_in_8bit")):
        raise InputError(
            f"invalid quantization {setup.quantization!r}: it needs load_in_4bit = true or "
            "load_in_8bit = true"
        )
    try:
        return BitsAndBytesConfig(**keys)  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise UnsupportedError(f"cannot quantize: {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"invalid quantization {setup.quantization!r}: {error}") from error


def _keys(setup: Setup) -> dict[str, Any]:
    if isinstance(setup.quantization, Mapping):
        return {key: value for key, value in setup.quantization.items() if key != "quant_method"}
    if setup.quantization == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": setup.quantization,
        "bnb_4bit_use_double_quant": setup.double_quant,
        "bnb_4bit_compute_dtype": setup.dtype,
    }


def keep_unquantized(config: Any, modules: Sequence[str]) -> None:
    """Make the config exclude exactly the modules with these names from quantization."""
    config.llm_int8_skip_modules = list(modules)


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether a module of a skeleton is a quantized layer of bitsandbytes."""
    return hasattr(module, "source_cls")  # transformers' mark on a layer that it has replaced


def move_to_device(layer: nn.Module, device: torch.device) -> None:
    """Quantize a layer by moving it from the host to the device.

    The layer has no storage. Its temporary host weights are zeros.
    """
    for name, parameter in list(layer.named_parameters(recurse=False)):
        host = type(parameter)(_host_zeros(parameter), requires_grad=False, **parameter.__dict__)
        setattr(layer, name, host)
    layer.to(device)


def _host_zeros(like: torch.Tensor) -> torch.Tensor:
    """A host tensor of the same shape and dtype; its pages cost nothing until they are read."""
    # numpy gets zeroed pages from the kernel (calloc), whereas torch writes the zeros.
    zeros = np.zeros(like.numel() * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(zeros).view(like.dtype).view(like.shape)


def constants(model: nn.Module) -> Iterator[torch.Tensor]:
    """Scales and code books, which are plain attributes of parameters and layers."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for holder in (parameter, state, getattr(state, "state2", None)):
            yield from _tensors_of(holder)
    for module in model.modules():
        # Those of int8 move from the parameter to the layer at its first call.
        yield from _tensors_of(vars(module).get("state"))


def _tensors_of(holder: object) -> Iterator[torch.Tensor]:
    attributes = getattr(holder, "__dict__", {})
    return (value for value in attributes.values() if isinstance(value, torch.Tensor))


def bytes_per_parameter(setup: Setup) -> Fraction:
    """1 byte for LLM.int8, half a byte for 4-bit weights."""
    return _INT8_BYTES if _keys(setup).get("load_in_8bit") else _FOUR_BIT_BYTES


def has_nested_constants(setup: Setup) -> bool | None:
    """Whether the constants of 4-bit weights are quantized too; ``None`` for int8."""
    keys = _keys(setup)
    if keys.get("load_in_8bit"):
        return None
    return bool(keys.get("bnb_4bit_use_double_quant"))


def assumptions(setup: Setup) -> tuple[str, ...]:
    """LLM.int8 computes columns with outliers in float16 too, which takes memory."""
    if _keys(setup).get("load_in_8bit"):
        return ("no activation is an outlier of LLM.int8",)
    return ()
