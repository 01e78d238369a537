"""Sizes of the device memory that CUDA kernels allocate and no operator shows.

Every function gives bytes (or a count that decides bytes), says what it is the size of, and names
the place in PyTorch that it follows. Paths are relative to the root of pytorch/pytorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmmem.catalogue.gpus import Gpu

__all__ = [
    "Reduction",
    "cudnn_backward_workspace",
    "efficient_backward_workspace",
    "embedding_adds_atomically",
    "embedding_segments",
    "flash_head_dim",
    "flash_splits",
    "foreach_norm_partials",
    "has_gqa",
    "layer_norm_partials",
    "round_up",
    "split_reduction",
]

FLOAT = 4
INDEX = 8
FLOAT_AND_INDEX = 16  # a pair, aligned


def round_up(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _power_of_two_below(value: int) -> int:
    """The largest power of two that is not above `value`; 1 for anything below 2."""
    return 1 << (max(value, 1).bit_length() - 1)


@dataclass(frozen=True)
class Reduction:
    """A reduction whose input is split over thread blocks: bytes of its two buffers."""

    buffer: int
    semaphores: int


def split_reduction(
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    reduced: Iterable[int],
    gpu: Gpu,
    accumulator: int = FLOAT,
) -> Reduction | None:
    """Buffers of a reduction that is split over blocks; ``None`` if it is not.

    Args:
        shape: Sizes of the input.
        strides: Its strides, in elements.
        offset: Its storage offset, in elements.
        reduced: The dimensions that are reduced.
        gpu: The card: its multiprocessors decide into how many blocks the input is split.
        accumulator: Bytes of the type that is accumulated in.

    Source: ``aten/src/ATen/native/cuda/Reduce.cuh``, ``setReduceConfig``.
    """
    inner, outer = _iteration_order(shape, strides, set(reduced))
    inputs = _product(size for size, _ in inner)
    outputs = _product(size for size, _ in outer)
    if not inputs or not outputs or not inner:
        return None
    is_fast = not outer or inner[0][1] < outer[0][1]
    width, height, vector = inputs, outputs, 1
    if is_fast:
        if inner[0][1] == 1 and width >= 128 and len(inner) == 1:
            width //= 4
    else:
        if outer[0][1] == 1:
            others = [stride for _, stride in inner + outer[1:]]
            vector = _vector_size([offset, outer[0][0], *others])
        width, height = outputs // vector, inputs
    block_width, block_height = _block_dimensions(width, height, 512 // vector)
    step_input = block_width if is_fast else 1
    step_output = 1 if is_fast else block_width
    is_split_over_warps = _ceil(inputs, step_input) >= min(block_height * 16, 256)
    if is_split_over_warps:
        step_input *= block_height
    else:
        step_output *= block_height
    values = _ceil(inputs, step_input)
    grid = _ceil(outputs // vector, step_output)
    target = gpu.sm_count * (gpu.threads_per_sm // (block_width * block_height))
    if not is_split_over_warps or values < 256 or grid > target:
        return None
    blocks = min(max(_ceil(target, grid), _ceil(values, 256)), _ceil(values, 16))
    if blocks <= 1:
        return None
    buffer = accumulator * outputs * blocks * (1 if is_fast else block_width * vector)
    return Reduction(buffer, FLOAT * grid)


def _iteration_order(
    shape: Sequence[int], strides: Sequence[int], reduced: set[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Sizes and strides as ``TensorIterator`` orders and merges them: reduced ones, then others."""
    inner = sorted(
        ((shape[d], strides[d]) for d in reduced if shape[d] != 1), key=lambda pair: pair[1]
    )
    # The output is contiguous: its strides, which come first, order the others.
    outer = [
        (shape[d], strides[d])
        for d in reversed(range(len(shape)))
        if d not in reduced and shape[d] != 1
    ]
    return _merged(inner) or [(1, 1)], _merged(outer)


def _merged(dimensions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for size, stride in dimensions:
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    return merged


def _vector_size(values: Iterable[int]) -> int:
    vector = 4
    for value in values:
        while value % vector:
            vector //= 2
    return vector


def _block_dimensions(width: int, height: int, threads: int) -> tuple[int, int]:
    width = _power_of_two_below(min(width, threads))
    height = _power_of_two_below(min(height, threads))
    block_width = min(width, 32)
    block_height = min(height, threads // block_width)
    return min(width, threads // block_height), block_height


def _product(values: Iterable[int]) -> int:
    product = 1
    for value in values:
        product *= value
    return product


def cudnn_backward_workspace(batch: int, heads: int, queries: int, head_dim: int, gpu: Gpu) -> int:
    """Bytes of what is asked for beside the plan in the backward pass of cuDNN's attention.

    A sum for each row and an accumulator of the gradient of the queries, in float32; with heads of
    256 elements Blackwell writes the gradient directly.

    Source: NVIDIA/cudnn-frontend, ``include/cudnn_frontend/node/
    scaled_dot_product_flash_attention.h``, ``softmax_sum`` and ``dQ_accum``.
    """
    major, _ = gpu.compute_capability
    is_direct = major == 10 and head_dim == 256
    return FLOAT * batch * heads * queries * (1 if is_direct else head_dim + 1)


def flash_head_dim(head_dim: int) -> int:
    """The head dimension that flash attention's kernels round to.

    Source: ``aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp``, ``mha_fwd``.
    """
    padded = round_up(head_dim, 8)
    return round_up(padded, 32 if padded <= 128 else 64)


def flash_splits(
    batch: int, heads: int, queries: int, keys: int, head_dim: int, sm_count: int
) -> int:
    """Over how many splits of the keys flash attention's forward works; 1 needs no buffer.

    Source: ``.../flash_attn/flash_api.cpp``, ``num_splits_heuristic`` and ``set_params_splitkv``
    (called without dropout only).
    """
    block = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    key_blocks = _ceil(keys, block)
    work = batch * heads * _ceil(queries, 64)
    slots = 2 * sm_count
    if work >= 0.8 * slots:
        return 1
    efficiencies: dict[int, float] = {}
    for splits in range(1, min(128, slots, key_blocks) + 1):
        if splits == 1 or _ceil(key_blocks, splits) != _ceil(key_blocks, splits - 1):
            waves = work * splits / slots
            efficiencies[splits] = waves / -(-waves // 1)
    best = max(efficiencies.values())
    return next(splits for splits, value in efficiencies.items() if value >= 0.85 * best)


def has_gqa(query_heads: int, key_heads: int) -> bool:
    """Whether several query heads share a key head, so that gradients are summed over them."""
    return query_heads != key_heads


@dataclass(frozen=True)
class _BackwardKernel:
    """Block sizes of a kernel of memory-efficient attention's backward."""

    block_i: int
    block_j: int
    max_head_dim: int


def _efficient_backward_kernel(head_dim: int, is_half: bool, gpu: Gpu) -> _BackwardKernel:
    """The first kernel in order that serves the head dimension and fits shared memory.

    Source: ``.../transformers/cuda/mem_eff_attention/kernels/cutlassB.h``.
    """
    major, minor = gpu.compute_capability
    is_large = (major, minor) in ((8, 0), (9, 0), (10, 0), (10, 3))
    if head_dim <= 32:
        return _BackwardKernel(64, 64, 32)
    if head_dim <= 64:
        return _BackwardKernel(64, 64, 64)
    if is_half and major >= 8 and head_dim <= 96 and (major, minor) in ((8, 6), (8, 9)):
        return _BackwardKernel(128, 64, 96)
    max_head_dim = 128 if head_dim <= 128 else 65536
    if not is_large:
        return _BackwardKernel(64, 64, max_head_dim)
    block_j = 128 if is_half and max_head_dim == 128 else 64
    return _BackwardKernel(128, block_j, max_head_dim)


def efficient_backward_workspace(
    batch: int, heads: int, queries: int, keys: int, head_dim: int, is_half: bool, gpu: Gpu
) -> int:
    """Bytes of the workspace of memory-efficient attention's backward.

    Source: ``.../mem_eff_attention/kernel_backward.h``, ``workspace_size``.
    """
    kernel = _efficient_backward_kernel(head_dim, is_half, gpu)
    splits = _ceil(keys, kernel.block_j)
    if batch * heads >= 256 and keys <= 2 * kernel.block_j:
        splits = 1
    is_kept_in_registers = kernel.max_head_dim <= kernel.block_i
    key_elements = 0
    if is_half and not is_kept_in_registers:
        splits = max(1, min(splits, 200 // (batch * heads)))
        tile = round_up(head_dim, kernel.block_i)
        key_elements = 2 * splits * kernel.block_j * tile
    tiles = _ceil(queries, kernel.block_i) * _ceil(head_dim, kernel.block_j)
    query_elements = tiles * (4 + kernel.block_i * kernel.block_j)
    return FLOAT * batch * heads * round_up(key_elements + query_elements, 4)


def embedding_segments(indices: int, rows: int) -> int:
    """Most segments that an embedding's gradient is summed in before it is added up.

    Source: ``aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu``, ``NROWS_PER_THREAD`` = 10.
    """
    return indices // 10 + min(indices, rows)


def embedding_adds_atomically(indices: int, rows: int, columns: int, sm_count: int) -> bool:
    """Whether the segments of a small table are too many for one thread each to add up.

    Source: read off the requests of PyTorch 2.14 (``EmbeddingBackwardKernel.cu``): where the rows
    do not fill the card and have more than three segments each beside their own.
    """
    unique = min(indices, rows)
    features = round_up(columns, 32)
    blocks = _ceil(unique * features, min(features, 1024))
    return blocks < 4 * sm_count and embedding_segments(indices, rows) > 4 * unique


def layer_norm_partials(rows: int, columns: int, itemsize: int, sm_count: int) -> int:
    """Bytes of each partial gradient of weight and bias in layer norm's backward; often 0.

    Source: ``aten/src/ATen/native/cuda/layer_norm_kernel.cu``,
    ``LaunchGammaBetaBackwardCUDAKernel``.
    """
    if rows <= 65_536 or columns // 32 >= sm_count / 2:
        return 0
    parts = min(32_768 // _ceil(columns, 32), _ceil(rows, 32))
    return parts * columns * itemsize


def foreach_norm_partials(numels: Sequence[int], opmath: int = FLOAT) -> int:
    """Bytes of the partial results of the norms of a list of tensors.

    Source: ``aten/src/ATen/native/cuda/ForeachReduceOp.cu``, ``foreach_tensor_norm_cuda``.
    """
    return opmath * len(numels) * max(_ceil(numel, 65_536) for numel in numels)
