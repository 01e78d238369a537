"""Embeddings, indexing, masked scatters and sorting."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.operators import cub
from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    bind,
    is_on_device,
    nbytes_of,
)
from llmmem.estimation.operators.workspaces import FLOAT, INDEX, ceil_div, round_up
from llmmem.estimation.tracing.tensors import HALF

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmmem.accounting.allocator import Block
    from llmmem.catalogue.gpus import Gpu
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]

aten = torch.ops.aten


def _embedding(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    indices = args[1]
    copy = 0 if not is_on_device(indices) or indices.is_contiguous() else nbytes_of(indices)
    with tracer.scratch(copy):
        return tracer.run(func, args, kwargs)


def _embedding_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/Embedding.cu`` and ``EmbeddingBackwardKernel.cu``."""
    gradient, indices, rows = args[:3]
    if not is_on_device(gradient):
        return func(*args, **kwargs)
    n = indices.numel()
    copies = [0 if t.is_contiguous() else nbytes_of(t) for t in (indices, gradient)]
    with tracer.scratch(*copies):
        if n <= 3072:
            return tracer.run(func, args, kwargs)
        with tracer.scratch(INDEX * n, INDEX * n):
            with tracer.scratch(INDEX * n, cub.radix_sort(n, rows, tracer.gpu)):
                pass
            out = tracer.run(func, args, kwargs)
            unique = min(n, rows)
            with tracer.scratch(INDEX * n, INDEX):
                with tracer.scratch(INDEX * n, cub.unique_by_key(n, tracer.gpu)):
                    pass
                with tracer.scratch(INDEX * unique, INDEX * unique):
                    with tracer.scratch(cub.scan(unique)):
                        pass
                    with tracer.scratch(INDEX, *_embedding_sums(n, rows, gradient, tracer.gpu)):
                        pass
    return out


def _embedding_sums(n: int, rows: int, gradient: Tensor, gpu: Gpu) -> list[int]:
    """Bytes of the buffers for the sums of segments: their offsets, and the sums or a whole table."""
    segments = _embedding_segments(n, rows)
    columns = gradient.shape[-1]
    if not _embedding_adds_atomically(n, rows, columns, gpu.sm_count):
        return [INDEX * segments, FLOAT * segments * columns]
    table = FLOAT * rows * columns if gradient.dtype in HALF else 0
    return [INDEX * segments, INDEX * segments, table]


def _embedding_segments(indices: int, rows: int) -> int:
    """The most segments into which the gradient of an embedding is split before it is added up.

    Source: ``aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu``, ``NROWS_PER_THREAD`` = 10.
    """
    return indices // 10 + min(indices, rows)


def _embedding_adds_atomically(indices: int, rows: int, columns: int, sm_count: int) -> bool:
    """Whether a small table has so many segments that they are added up by atomic additions.

    That is so if the rows do not fill the card, and have more than three segments each beside
    their own, as seen in the requests of PyTorch 2.14.

    Source: ``aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu``.
    """
    unique = min(indices, rows)
    features = round_up(columns, 32)
    blocks = ceil_div(unique * features, min(features, 1024))
    return blocks < 4 * sm_count and _embedding_segments(indices, rows) > 4 * unique


def _index(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    tensor, given = args
    # PyTorch turns an index that is a list into a device tensor without calling an operator.
    tracer.allocate(list(given))
    indices = _expanded_masks(tracer, given)
    with tracer.scratch(*_index_copies(indices)):
        return tracer.run(func, (tensor, indices), kwargs)


def _expanded_masks(tracer: Tracer, given: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The indices, with each boolean mask of the device replaced by the indices of its true elements.

    Source: ``aten/src/ATen/native/IndexingUtils.h``, ``expandTensors``.
    """
    indices: list[Tensor | None] = []
    for index in given:
        if index is not None and index.dtype is torch.bool and index.device.type == "meta":
            with tracer.tracing_calls():
                indices += index.nonzero().unbind(1)
        else:
            indices.append(index)
    return indices


def _index_copies(indices: Iterable[Tensor | None]) -> list[int]:
    """Bytes of the copies by which all indices get the same strides, as the CUDA kernels need.

    Source: ``aten/src/ATen/native/TensorAdvancedIndexing.cpp``, ``make_info``.
    """
    tensors = [index for index in indices if index is not None and index.dtype is not torch.bool]
    expanded = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    if len({index.stride() for index in expanded}) <= 1:
        return []
    return [0 if index.is_contiguous() else nbytes_of(index) for index in expanded]


def _index_put(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/Indexing.cu``, ``index_put_with_sort_kernel``."""
    target, given, values = args[:3]
    if not is_on_device(target):
        return func(*args, **kwargs)
    is_accumulated = bind(func, args, kwargs, "accumulate", False)
    # The gradient of an index: autograd adds to it in place, except under a dispatch mode.
    is_gradient = tracer.in_backward and is_accumulated and func is aten.index_put.default
    if is_gradient:
        out = func(*args, **kwargs)
        tracer.hand_over(target, out)
    else:
        out = tracer.run(func, args, kwargs)
    given = _expanded_masks(tracer, given)
    if not is_accumulated:
        with tracer.scratch(*_index_copies(given)):
            return out
    indices = {dim: index for dim, index in enumerate(given) if index is not None}
    pairs = prod(torch.broadcast_shapes(*(index.shape for index in indices.values())))  # type: ignore[no-untyped-call]
    if pairs:
        linear = _linear_index(tracer, len(indices), INDEX * pairs, is_checked=not is_gradient)
        copy = 0 if values.is_contiguous() else nbytes_of(values)
        rows = prod(target.shape[dim] for dim in indices)
        # Indices that came from a mask are freed here.
        del given, indices
        sort = cub.radix_sort(pairs, rows - 1, tracer.gpu)
        with tracer.scratch(copy, INDEX * pairs, INDEX * pairs, INDEX * pairs, sort):
            pass
        tracer.free(*linear)
    return out


def _linear_index(
    tracer: Tracer, count: int, nbytes: int, *, is_checked: bool
) -> tuple[int, Block]:
    """The block of the linear index into which `count` indices are combined.

    With `is_checked`, the kernel first looks up whether they are in range.
    """
    linear = None
    for _ in range(count):
        if is_checked:
            lowest, highest = tracer.malloc(INDEX), tracer.malloc(INDEX)
            for _ in range(2):
                with tracer.scratch(1):
                    pass
            tracer.free(*lowest)
            tracer.free(*highest)
        wrapped, product = tracer.malloc(nbytes), tracer.malloc(nbytes)
        tracer.free(*wrapped)
        if linear is None:
            linear = product
        else:
            tracer.free(*product)
    assert linear is not None
    return linear


def _masked_scatter(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A running sum over the mask numbers the elements of the source.

    Source: ``aten/src/ATen/native/cuda/IndexKernel.cpp``, ``masked_scatter__cuda``.
    """
    target, mask = args[:2]
    out = tracer.run(func, args, kwargs)
    if not is_on_device(target):
        return out
    expanded = mask.expand(out.shape)
    copied = 0 if expanded.is_contiguous() else out.numel()
    with tracer.scratch(INDEX * out.numel(), copied, cub.scan(out.numel())):
        pass
    return out


def _masked_scatter_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The elements of the gradient that the mask selects, padded with zeros.

    Source: ``aten/src/ATen/native/TensorAdvancedIndexing.cpp``, ``masked_scatter_backward``.
    """
    gradient, mask, sizes = args
    if not is_on_device(gradient):
        return func(*args, **kwargs)
    with tracer.tracing_calls():
        selected = gradient.masked_select(mask)
        missing = prod(sizes) - selected.numel()
        if missing > 0:
            selected = torch.cat([selected, gradient.new_zeros(missing)])
        return selected.view(sizes)


def _sort(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    out = tracer.run(func, args, kwargs)
    if is_on_device(args[0]):
        with tracer.scratch(INDEX * args[0].numel()):
            pass
    return out


ENTRIES = (
    Entry("embedding.default", _embedding),
    Entry("embedding_dense_backward.default", _embedding_backward),
    Entry("index.Tensor", _index),
    Entry("index_put.default index_put_.default _index_put_impl_.default", _index_put),
    Entry("masked_scatter.default masked_scatter_.default", _masked_scatter),
    Entry("masked_scatter_backward.default", _masked_scatter_backward),
    Entry("sort.default sort.stable", _sort),
)
