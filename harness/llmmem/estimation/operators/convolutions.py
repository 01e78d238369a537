"""Convolutions by cuDNN, whose workspaces are not modelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    bind,
    is_on_device,
    nbytes_of,
)
from llmmem.estimation.operators.inexact import run_inexact
from llmmem.estimation.operators.reductions import split_buffers

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]


def _convolution(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Input and weights are converted to one memory format.

    Source: ``aten/src/ATen/native/cudnn/ConvShared.cpp``, ``cudnn_convolution``.
    """
    tensor, weight = args[:2]
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    if bind(func, args, kwargs, "transposed"):
        return run_inexact(tracer, func, args, kwargs)
    memory_format = _common_format(tensor, weight)
    out = _in_format(func(*args, **kwargs), memory_format)
    with tracer.scratch(_copy_to_format(tensor, memory_format)):
        tracer.allocate(out)
        with tracer.scratch(_copy_to_format(weight, memory_format)):
            return out


def _convolution_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The gradients of input, weights and bias, one after the other.

    Source: ``aten/src/ATen/native/cudnn/ConvShared.cpp``, ``cudnn_convolution_backward``.
    """
    gradient, tensor, weight = args[:3]
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    if bind(func, args, kwargs, "transposed"):
        return run_inexact(tracer, func, args, kwargs)
    memory_format = _common_format(tensor, weight)
    *of_both, of_bias = func(*args, **kwargs)
    of_input, of_weight = (_in_format(value, memory_format) for value in of_both)
    # A gradient in another memory format is converted once. One that suggests the right format
    # without being contiguous in it is copied for each result.
    copy = _copy_to_format(gradient, memory_format)
    copied_once = copy if suggest_memory_format(gradient) is not memory_format else 0
    copied = 0 if copied_once else copy
    with tracer.scratch(_copy_to_format(tensor, memory_format), copied_once):
        if of_input is not None:
            tracer.allocate(of_input)
            with tracer.scratch(copied, _copy_to_format(weight, memory_format)):
                pass
        if of_weight is not None:
            with tracer.scratch(copied):
                tracer.allocate(of_weight)
    if of_bias is not None:
        tracer.allocate(of_bias)
        split_buffers(tracer, gradient, [0, *range(2, gradient.dim())])
    return of_input, of_weight, of_bias


def _in_format(output: Any, memory_format: torch.memory_format) -> Any:
    """The output in the memory format of a GPU; the meta device makes all outputs contiguous."""
    if output is None or output.is_contiguous(memory_format=memory_format):
        return output
    return torch.empty_like(output, memory_format=memory_format)


def _common_format(tensor: Tensor, weight: Tensor) -> torch.memory_format:
    """The memory format of input or weights that is not contiguous; contiguous if both are."""
    formats = (suggest_memory_format(value) for value in (tensor, weight))
    return next(
        (found for found in formats if found is not torch.contiguous_format),
        torch.contiguous_format,
    )


def _copy_to_format(tensor: Tensor, memory_format: torch.memory_format) -> int:
    """Bytes of the copy that converts a tensor to a memory format."""
    return 0 if tensor.is_contiguous(memory_format=memory_format) else nbytes_of(tensor)


ENTRIES = (
    Entry("convolution.default", _convolution),
    Entry("convolution_backward.default", _convolution_backward),
)
