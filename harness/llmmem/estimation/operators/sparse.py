"""Sparse tensors in COO format.

Their indices and their values take blocks of the allocator. The sparse tensor itself takes none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.operators.common import Arguments, Entry, Keywords
from llmmem.estimation.operators.workspaces import FLOAT, INDEX

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]

aten = torch.ops.aten


def _make(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return func(*args, **kwargs)


def _add(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Add a sparse tensor to a dense one in place, with a buffer of linear indices.

    If the sum has another type than the dense tensor, that tensor and the result are copied to it.

    Source: ``aten/src/ATen/native/sparse/cuda/SparseCUDATensorMath.cu``,
    ``add_out_dense_sparse_cuda``.
    """
    target, other = args[:2]
    if not (isinstance(other, torch.Tensor) and other.is_sparse and target.is_meta):
        return tracer.run(func, args, kwargs)
    dtype = torch.promote_types(target.dtype, other.dtype)
    cast = 0 if dtype is target.dtype else target.numel() * dtype.itemsize
    with tracer.scratch(cast, cast, INDEX * other._nnz()):
        return target


def _mask(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The values of a dense tensor at the indices of a sparse one, multiplied by ones.

    Source: ``aten/src/ATen/native/sparse/SparseTensor.cpp``, ``sparse_mask``.
    """
    dense, mask = args
    if not dense.is_meta:
        return func(*args, **kwargs)
    count = mask._nnz()
    with tracer.scratch(FLOAT, count * dense.element_size()):
        indices = torch.empty_like(mask._indices())
        values = torch.empty(count, dtype=dense.dtype, device="meta")
        tracer.allocate([indices, values])
    make = aten._sparse_coo_tensor_with_dims_and_tensors.default
    return make(
        mask.sparse_dim(), mask.dense_dim(), mask.shape, indices, values,
        dtype=dense.dtype, layout=torch.sparse_coo, device=torch.device("meta"),
    )  # fmt: skip


ENTRIES = (
    Entry("_sparse_coo_tensor_with_dims_and_tensors.default", _make),
    Entry("add_.Tensor", _add),
    Entry("sparse_mask.default", _mask),
)
