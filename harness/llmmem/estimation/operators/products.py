"""Matrix products by cuBLAS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    bind,
    is_on_device,
    nbytes_of,
)
from llmmem.estimation.operators.workspaces import round_up

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]


def _matrix_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    left, right = [value for value in args if isinstance(value, Tensor)][-2:]
    if left.dtype is not right.dtype and is_on_device(left):
        # CUDA raises an error where the meta device computes a result.
        raise RuntimeError(
            "expected mat1 and mat2 to have the same dtype, but got: "
            f"{left.dtype} and {right.dtype}"
        )
    out = tracer.run(func, args, kwargs)
    if not is_on_device(out) or not left.numel() or not right.numel():
        return out
    with tracer.scratch(_operand_copy(left), _operand_copy(right)):
        tracer.use_cublas()
    return out


def _operand_copy(operand: Tensor) -> int:
    """Bytes of the copy of an operand whose strides cuBLAS does not support.

    Source: ``aten/src/ATen/native/cuda/Blas.cpp``, ``prepare_matrix_for_cublas`` and
    ``prepare_batch_matrix_for_cublas``.
    """
    if operand.dim() < 2:
        return 0
    rows, columns = operand.shape[-2:]
    row_stride, column_stride = operand.stride()[-2:]
    if column_stride == 1 and row_stride >= max(1, columns):
        return 0
    if row_stride == 1 and column_stride >= max(1, rows):
        return 0
    return nbytes_of(operand)


def _inner_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    out = tracer.run(func, args, kwargs)
    if is_on_device(out) and args[0].numel():
        tracer.use_cublas()
    return out


def _scaled_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/ScaledBlas.cpp``, by cuBLASLt in cuBLAS' workspace."""
    out = tracer.run(func, args, kwargs)
    if is_on_device(out):
        tracer.use_cublas()
    return out


def _grouped_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """One product for each group (expert); rows of the output are aligned to 16 bytes.

    In bfloat16 on compute capability 9.0, the kernel takes a buffer of addresses and strides for
    the groups, and a workspace.

    Source: ``aten/src/ATen/native/cuda/GroupedBlas.cpp`` and ``GroupMM.cu``.
    """
    left, right = args[:2]
    if not is_on_device(left):
        return func(*args, **kwargs)
    offsets = bind(func, args, kwargs, "offs")
    groups = left.shape[0] if offsets is None else offsets.shape[0]
    rows, columns = left.shape[-2], right.shape[-1]
    shape = [rows, columns] if left.dim() != right.dim() else [groups, rows, columns]
    padded = round_up(columns, 16 // left.element_size())
    strides = [padded, 1] if len(shape) == 2 else [rows * padded, padded, 1]
    # The meta kernel supports fewer types than the CUDA kernel does.
    out = torch.empty_strided(shape, strides, dtype=left.dtype, device="meta")
    tracer.allocate(out)
    if left.dtype is torch.bfloat16 and tracer.gpu.compute_capability[0] == 9:
        with tracer.scratch(60 * groups, 67_584):
            pass
    return out


ENTRIES = (
    Entry(
        "mm addmm addmm_ _addmm_activation bmm baddbmm baddbmm_ addbmm mv addmv addmv_",
        _matrix_product,
    ),
    Entry("dot vdot", _inner_product),
    Entry("_scaled_mm.default", _scaled_product),
    Entry("_grouped_mm.default", _grouped_product, releases=">=2.8"),
)
