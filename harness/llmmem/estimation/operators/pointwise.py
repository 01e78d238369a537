"""Pointwise operators that differ from their meta kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.operators.common import Arguments, Entry, Keywords, is_on_device
from llmmem.estimation.operators.workspaces import FLOAT

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]


def _log_sigmoid(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The second output is empty on CUDA (``aten/src/ATen/native/cuda/Activation.cpp``)."""
    if not is_on_device(args[0]):
        return func(*args, **kwargs)
    out, buffer = func(*args, **kwargs)
    tracer.allocate(out)
    return out, buffer.new_empty(0)


def _is_infinite(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/TensorCompare.cpp``, ``isinf``."""
    (tensor,) = args
    if not is_on_device(tensor) or not tensor.is_floating_point():
        return tracer.run(func, args, kwargs)
    with tracer.tracing_calls():
        return tensor.abs() == torch.inf


def _power_of_number(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The base becomes a tensor on the device (``aten/src/ATen/native/Pow.cpp``)."""
    out = tracer.run(func, args, kwargs)
    with tracer.scratch(FLOAT if is_on_device(out) else 0):
        pass
    return out


def _native_dropout(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The kernel allocates the mask before the output."""
    output, mask = func(*args, **kwargs)
    tracer.allocate([mask, output])
    return output, mask


ENTRIES = (
    Entry("log_sigmoid_forward.default", _log_sigmoid),
    Entry("isinf.default", _is_infinite),
    Entry("pow.Scalar", _power_of_number),
    Entry("native_dropout.default", _native_dropout),
)
