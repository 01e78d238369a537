"""Sums, extremes, norms and scans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.operators import cub
from llmmem.estimation.operators.common import Arguments, Entry, Keywords, bind, is_on_device
from llmmem.estimation.operators.workspaces import FLOAT, FLOAT_AND_INDEX, ceil_div, split_reduction
from llmmem.estimation.tracing.tensors import HALF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES", "split_buffers"]

aten = torch.ops.aten


def _reduce(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return _reduced(tracer, func, args, kwargs, FLOAT)


def _reduce_bytes(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return _reduced(tracer, func, args, kwargs, 1)


def _find_extreme(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return _reduced(tracer, func, args, kwargs, FLOAT_AND_INDEX)


def _reduced(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords, accumulator: int) -> Any:
    out = tracer.run(func, args, kwargs)
    tensor = args[0]
    if is_on_device(tensor) and tensor.numel():
        dims = bind(func, args, kwargs, "dim")
        with tracer.scratch(_reduction_cast(func, tensor, out)):
            split_buffers(tracer, tensor, dims, accumulator)
    return out


def _reduction_cast(func: Any, tensor: Tensor, out: Any) -> int:
    """Bytes of the input in the type of the output, to which sums and products convert it first.

    Source: ``aten/src/ATen/native/ReduceOpsUtils.h``, ``make_reduction``. The kernels
    convert 16-bit floats to float32 as they read them.
    """
    if func._overloadpacket not in (aten.sum, aten.mean, aten.prod) or tensor.dtype == out.dtype:
        return 0
    if tensor.dtype in HALF and out.dtype is torch.float32:
        return 0
    nbytes: int = tensor.numel() * out.element_size()
    return nbytes


def split_buffers(tracer: Tracer, tensor: Tensor, dims: Any, accumulator: int = FLOAT) -> None:
    """Allocate and free the buffers of a split reduction.

    Args:
        tracer: Allocates the buffers.
        tensor: The input of the reduction.
        dims: A dimension or several; none for all of them.
        accumulator: Bytes of the type in which the kernel accumulates.
    """
    listed = [dims] if isinstance(dims, int) else dims or range(tensor.dim())
    reduced = [dim % tensor.dim() for dim in listed] if tensor.dim() else []
    split = split_reduction(
        tensor.shape,
        tensor.stride(),
        int(tensor.storage_offset()),
        reduced,
        tracer.gpu,
        accumulator,
    )
    if split is not None:
        with tracer.scratch(split.buffer, split.semaphores):
            pass


def _foreach_norm(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    tensors = [tensor for tensor in args[0] if is_on_device(tensor)]
    if not tensors:
        return func(*args, **kwargs)
    with tracer.scratch(_foreach_norm_partials([tensor.numel() for tensor in tensors])):
        return tracer.run(func, args, kwargs)


def _foreach_norm_partials(numels: Sequence[int], opmath: int = FLOAT) -> int:
    """Bytes of the partial results of the norms of a list of tensors.

    Source: ``aten/src/ATen/native/cuda/ForeachReduceOp.cu``, ``foreach_tensor_norm_cuda``.
    """
    return opmath * len(numels) * max(ceil_div(numel, 65_536) for numel in numels)


def _cumsum(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    tensor = args[0]
    out = func(*args, **kwargs)
    if not is_on_device(tensor):
        return out
    cast = 0 if tensor.dtype == out.dtype else tensor.numel() * out.element_size()
    tracer.allocate(out)
    is_one_row = tensor.dim() < 2 or tensor.numel() == tensor.shape[bind(func, args, kwargs, "dim")]
    with tracer.scratch(cast, cub.scan(tensor.numel()) if is_one_row else 0):
        pass
    return out


ENTRIES = (
    Entry(
        "sum.default sum.dim_IntList mean.default mean.dim amax.default amin.default max.default "
        "min.default linalg_vector_norm.default norm.Scalar norm.ScalarOpt_dim prod.default "
        "prod.dim_int",
        _reduce,
    ),
    Entry("any.default any.dim any.dims all.default all.dim all.dims", _reduce_bytes),
    Entry("argmax.default argmin.default", _find_extreme),
    Entry("_foreach_norm.Scalar", _foreach_norm),
    Entry("cumsum.default", _cumsum),
)
