"""Operators whose output has a data-dependent shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.errors import UnsupportedError
from llmmem.estimation.operators import cub
from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    bind,
    is_on_device,
    nbytes_of,
)
from llmmem.estimation.operators.workspaces import INDEX
from llmmem.estimation.tracing.host_values import KNOWN

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]

aten = torch.ops.aten

# Up to this many elements CUB sorts in a single thread block.
SORTED_BY_ONE_BLOCK = 2048


def _nonzero(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The indices of the elements that are known to be nonzero; none if the values are not known.

    Source: ``aten/src/ATen/native/cuda/Nonzero.cu``.
    """
    (tensor,) = args
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    values = tracer.host_values.found(func, args, kwargs)
    if values is None or values.mark != KNOWN:
        tracer.note_guess(func)
    found = 0 if values is None else values.values.shape[0]
    with tracer.scratch(4):
        with tracer.scratch(cub.count(tensor.numel(), tracer.gpu)):
            pass
        indices = torch.empty((tensor.dim(), found), dtype=torch.int64, device="meta")
        tracer.allocate(indices)
        with tracer.scratch(cub.select(tensor.numel(), tracer.gpu)):
            pass
    return indices.t()


def _masked_select(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/IndexKernel.cpp``, ``masked_select_out_cuda_impl``."""
    tensor, mask = args
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    with tracer.tracing_calls():
        tensor, mask = torch.broadcast_tensors(tensor, mask)  # type: ignore[no-untyped-call]
        return aten.index.Tensor(tensor, [mask])


def _repeat_interleave(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Repeat.cpp``, ``repeat_interleave_common``."""
    (repeats,) = args
    if not is_on_device(repeats):
        return func(*args, **kwargs)
    with tracer.tracing_calls():
        ends = repeats.cumsum(0)
        size = kwargs.get("output_size")
        if size is None:
            size = int(ends[-1].item()) if repeats.numel() else 0
    out = torch.empty(size, dtype=repeats.dtype, device="meta")
    tracer.allocate(out)
    return out


def _unique(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A sorted copy of the elements, and an output of as many elements, which is then resized.

    The storage of CUB fits the smallest block of the allocator for up to `SORTED_BY_ONE_BLOCK`
    elements.

    Source: ``aten/src/ATen/native/cuda/UniqueCub.cu``, ``compute_unique``.
    """
    (tensor,) = args[:1]
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    found = tracer.host_values.found(func, args, kwargs)
    numbers = tensor.numel()
    if numbers and (found is None or numbers > SORTED_BY_ONE_BLOCK or any(args[2:])):
        raise UnsupportedError(
            f"unique can be traced only for up to {SORTED_BY_ONE_BLOCK} elements whose values are known"
        )
    count = 0 if found is None else found.values.numel()
    with tracer.scratch(nbytes_of(tensor), INDEX):
        out = torch.empty(numbers, dtype=tensor.dtype, device="meta")
        tracer.allocate(out)
    return (out[:count], *(torch.empty(0, dtype=torch.int64, device="meta") for _ in range(2)))


def _unique_consecutive(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The elements that differ from the one before; one element if the values are not known.

    Source: ``aten/src/ATen/native/cuda/UniqueCub.cu``, ``unique_consecutive_cuda``.
    """
    (tensor,) = args[:1]
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    numbers = tensor.numel()
    if numbers > SORTED_BY_ONE_BLOCK or bind(func, args, kwargs, "dim") is not None:
        raise UnsupportedError(
            "unique_consecutive can be traced only without dim and for up to "
            f"{SORTED_BY_ONE_BLOCK} elements"
        )
    found = tracer.host_values.found(func, args, kwargs)
    if found is None or found.mark != KNOWN:
        tracer.note_guess(func)
    count = min(1, numbers) if found is None else found.values.numel()
    inverse, counts = (torch.empty(0, dtype=torch.int64, device="meta") for _ in range(2))
    if bind(func, args, kwargs, "return_inverse"):
        inverse = torch.empty(tensor.shape, dtype=torch.int64, device="meta")
        tracer.allocate(inverse)
        with tracer.scratch(4 * numbers, cub.select(numbers, tracer.gpu)):
            pass
    unique = torch.empty(numbers, dtype=tensor.dtype, device="meta")
    tracer.allocate(unique)
    with tracer.scratch(INDEX):
        if bind(func, args, kwargs, "return_counts"):
            counts = torch.empty(numbers, dtype=torch.int64, device="meta")
            tracer.allocate(counts)
        with tracer.scratch(cub.select(numbers, tracer.gpu)):
            pass
    return unique[:count], inverse, counts[:count]


ENTRIES = (
    Entry("nonzero.default", _nonzero),
    Entry("masked_select.default", _masked_select),
    Entry("repeat_interleave.Tensor", _repeat_interleave),
    Entry("_unique2.default", _unique),
    Entry("unique_consecutive.default", _unique_consecutive),
)
