"""Sparse tensors (COO) on the meta device: what is made of values at places, and added to others.

The places and the values have blocks of their own; the sparse tensor that holds them has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.operators.workspaces import FLOAT, INDEX

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Handler, Tracer

__all__ = ["SPARSE_HANDLERS"]

aten = torch.ops.aten


def _make(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _add(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """To a dense tensor, in place: the places as one number each.

    Where the sum is of another type than the tensor, both it and the result are copied to that.

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


def _mask(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The values of a dense tensor at the places of a sparse one: they times one.

    Source: ``aten/src/ATen/native/sparse/SparseTensor.cpp``, ``sparse_mask``.
    """
    dense, mask = args
    if not dense.is_meta:
        return func(*args, **kwargs)
    count = mask._nnz()
    with tracer.scratch(FLOAT, count * dense.element_size()):
        places = torch.empty_like(mask._indices())
        values = torch.empty(count, dtype=dense.dtype, device="meta")
        tracer.born([places, values])
    make = aten._sparse_coo_tensor_with_dims_and_tensors.default
    return make(
        mask.sparse_dim(), mask.dense_dim(), mask.shape, places, values,
        dtype=dense.dtype, layout=torch.sparse_coo, device=torch.device("meta"),
    )  # fmt: skip


SPARSE_HANDLERS: dict[Handler, str] = {
    _make: "_sparse_coo_tensor_with_dims_and_tensors.default",
    _add: "add_.Tensor",
    _mask: "sparse_mask.default",
}
