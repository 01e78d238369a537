"""Sizes of workspaces that several families of operators share: those of split reductions.

The functions return bytes and name the source in PyTorch that they follow. Paths are relative to
the root of pytorch/pytorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmmem.catalogue.gpus import Gpu

__all__ = [
    "FLOAT",
    "FLOAT_AND_INDEX",
    "INDEX",
    "Reduction",
    "ceil_div",
    "round_up",
    "split_reduction",
]

# Bytes of an element.
FLOAT = 4
INDEX = 8
FLOAT_AND_INDEX = 16  # a pair, aligned


def round_up(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def ceil_div(value: int, divisor: int) -> int:
    """`value` divided by `divisor`, rounded up."""
    return -(-value // divisor)


def _power_of_two_below(value: int) -> int:
    """The largest power of two up to `value`; 1 for any value below 2."""
    return 1 << (max(value, 1).bit_length() - 1)


@dataclass(frozen=True)
class Reduction:
    """The two buffers, in bytes, of a reduction whose input is split over thread blocks."""

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
    """The buffers of a reduction that is split over thread blocks; ``None`` if it is not split.

    Args:
        shape: Sizes of the input.
        strides: Its strides, in elements.
        offset: Its storage offset, in elements.
        reduced: The dimensions over which it is reduced.
        gpu: The card, whose multiprocessors decide into how many blocks the input is split.
        accumulator: Bytes of the type in which the kernel accumulates.

    Source: ``aten/src/ATen/native/cuda/Reduce.cuh``, ``setReduceConfig``.
    """
    inner, outer = _iteration_order(shape, strides, set(reduced))
    inputs = prod(size for size, _ in inner)
    outputs = prod(size for size, _ in outer)
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
    is_split_over_warps = ceil_div(inputs, step_input) >= min(block_height * 16, 256)
    if is_split_over_warps:
        step_input *= block_height
    else:
        step_output *= block_height
    values = ceil_div(inputs, step_input)
    grid = ceil_div(outputs // vector, step_output)
    target = gpu.sm_count * (gpu.threads_per_sm // (block_width * block_height))
    if not is_split_over_warps or values < 256 or grid > target:
        return None
    blocks = min(max(ceil_div(target, grid), ceil_div(values, 256)), ceil_div(values, 16))
    if blocks <= 1:
        return None
    buffer = accumulator * outputs * blocks * (1 if is_fast else block_width * vector)
    return Reduction(buffer, FLOAT * grid)


def _iteration_order(
    shape: Sequence[int], strides: Sequence[int], reduced: set[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The sizes and strides of reduced and of other dimensions, as ``TensorIterator`` merges them."""
    inner = sorted(
        ((shape[d], strides[d]) for d in reduced if shape[d] != 1), key=lambda pair: pair[1]
    )
    # The other dimensions are ordered by their strides in the output, which is contiguous.
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
