"""Softmax, layer norm and group norm."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    contiguous_copy,
    is_on_device,
    nbytes_of,
)
from llmmem.estimation.operators.contiguous import run_on_contiguous
from llmmem.estimation.operators.reductions import split_buffers
from llmmem.estimation.operators.workspaces import FLOAT, ceil_div
from llmmem.estimation.tracing.tensors import HALF

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]


def _softmax_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A buffer holds the product of gradient and output."""
    out = tracer.run(func, args, kwargs)
    with tracer.scratch(nbytes_of(args[1]) if is_on_device(args[1]) else 0):
        pass
    return out


def _safe_softmax(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Rows of -inf become zeros, which takes a mask, its reduction to rows and a scalar."""
    out = tracer.run(func, args, kwargs)
    if is_on_device(out):
        with tracer.scratch(out.numel(), out.numel() // out.shape[args[1]], 4):
            pass
    return out


def _layer_norm_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """With many rows, the gradients of weight and bias are partial sums that are then reduced.

    Source: ``aten/src/ATen/native/cuda/layer_norm_kernel.cu``, ``layer_norm_backward_cuda`` and
    ``LayerNormBackwardKernelImplInternal``.
    """
    gradient, tensor, shape = args[:3]
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    of_input, of_weight, of_bias = out = func(*args, **kwargs)
    columns = prod(shape)
    rows = tensor.numel() // columns
    partial = _layer_norm_partials(rows, columns, tensor.element_size(), tracer.gpu.sm_count)
    of_parameters = [result for result in (of_weight, of_bias) if result is not None]
    copy_of_gradient = contiguous_copy(gradient)
    with tracer.scratch(contiguous_copy(tensor)):
        tracer.allocate(of_input)
        if of_weight is None or not partial:
            tracer.allocate(of_parameters)
            with tracer.scratch(copy_of_gradient):
                return out
        # The reduced sums replace the gradients that were allocated first.
        first = [torch.empty_like(result) for result in of_parameters]
        tracer.allocate(first)
        with tracer.scratch(copy_of_gradient, partial, partial):
            rows_of_parts = partial // (columns * tensor.element_size())
            parts = torch.empty((rows_of_parts, columns), device="meta")
            for result in of_parameters:
                tracer.allocate(result)
                split_buffers(tracer, parts, 0)
                del first[0]
    return out


def _layer_norm_partials(rows: int, columns: int, itemsize: int, sm_count: int) -> int:
    """Bytes of the partial sums for weight, and for bias, in the backward of layer norm; often 0.

    Source: ``aten/src/ATen/native/cuda/layer_norm_kernel.cu``,
    ``LaunchGammaBetaBackwardCUDAKernel``.
    """
    if rows <= 65_536 or columns // 32 >= sm_count / 2:
        return 0
    parts = min(32_768 // ceil_div(columns, 32), ceil_div(rows, 32))
    return parts * columns * itemsize


def _group_norm(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Weights are folded into a scale and a shift for each channel.

    The statistics of a half precision input are computed in float32 first.

    Source: ``aten/src/ATen/native/cuda/group_norm_kernel.cu``, ``GroupNormKernelImplInternal``.
    """
    out = tracer.run(func, args, kwargs)
    tensor, weight, bias, rows, channels, size, groups = args[:7]
    if not is_on_device(tensor):
        return out
    of_groups = _accumulated(tensor) * rows * groups if tensor.dtype in HALF else 0
    is_folded = size > 1 and (weight is not None or bias is not None)
    nbytes = _accumulated(tensor) * rows * channels if is_folded else 0
    with tracer.scratch(contiguous_copy(tensor), of_groups, of_groups, nbytes, nbytes):
        return out


def _group_norm_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../cuda/group_norm_kernel.cu``, ``GroupNormBackwardKernelImplInternal``."""
    gradient, tensor, _, _, weight, rows, channels, size, groups = args[:9]
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    wide = _accumulated(tensor) * rows
    of_channels = wide * channels if size > 1 else 0
    with tracer.scratch(contiguous_copy(gradient), contiguous_copy(tensor)):
        out = tracer.run(func, args, kwargs)
        of_groups = wide * groups if out[0] is not None else 0
        of_weight = of_channels if out[0] is not None and weight is not None else 0
        with tracer.scratch(of_channels, of_channels, of_groups, of_groups, of_weight):
            return out


def _accumulated(tensor: Tensor) -> int:
    """Bytes of the type in which the elements of a tensor are accumulated."""
    return max(FLOAT, tensor.element_size())


ENTRIES = (
    Entry("_softmax_backward_data.default", _softmax_backward),
    Entry("_safe_softmax.default", _safe_softmax),
    Entry("native_layer_norm.default", run_on_contiguous),
    Entry("native_layer_norm_backward.default", _layer_norm_backward),
    Entry("native_group_norm.default", _group_norm),
    Entry("native_group_norm_backward.default", _group_norm_backward),
)
