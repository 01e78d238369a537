"""Temporary storage of CUB's algorithms, in bytes.

Each algorithm works on tiles, whose size CUB picks by the card, and keeps a state for each tile. An
algorithm requests the sum of its parts, each rounded up to 256 bytes, and 255 bytes to align the
first. The formulas follow ``cub/device/dispatch`` of CUDA 13. The tile sizes were determined from
the requests of PyTorch 2.14's operators for int64 keys and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmmem.estimation.operators.workspaces import INDEX, ceil_div, round_up

if TYPE_CHECKING:
    from llmmem.catalogue.gpus import Gpu

__all__ = ["count", "radix_sort", "scan", "select", "unique_by_key"]

ALIGNMENT = 256
DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
TILE_PADDING = 32
SCAN_TILE = 448
# A single block counts up to this many items. Beyond it, each multiprocessor gets five times as many
# blocks as it can hold.
COUNTED_BY_ONE_BLOCK = 4096
COUNT_SUBSCRIPTION = 5
# Threads of a block that counts, and of a multiprocessor by compute capability.
COUNT_THREADS = 256
RESIDENT_THREADS = {(7, 5): 1024, (8, 6): 1536, (8, 9): 1536, (12, 0): 1536}
# A single block sorts up to this many pairs in shared memory.
SORTED_BY_ONE_BLOCK = 2304


def radix_sort(pairs: int, largest_key: int, gpu: Gpu) -> int:
    """A sort of int64 pairs by keys of up to `largest_key` (``cub::DeviceRadixSort``, onesweep).

    It takes a histogram for each digit, a look-back for each tile and digit, and with more than one
    digit a second copy of keys and values.
    """
    if pairs <= SORTED_BY_ONE_BLOCK:
        return 1
    digits = ceil_div(largest_key.bit_length(), DIGIT_BITS)
    tile = {7: 2816, 8: 3840}.get(gpu.compute_capability[0], 4608)
    copies = [INDEX * pairs] * 2 if digits > 1 else []
    return _storage(digits * DIGITS * 8, _tiles(pairs, tile) * DIGITS * 4, *copies, digits)


def unique_by_key(items: int, gpu: Gpu) -> int:
    """The first of each run of equal int64 keys (``cub::DeviceSelect::UniqueByKey``)."""
    small = {(8, 0): 672}.get(gpu.compute_capability, 160)
    return _scan(items, small if gpu.compute_capability < (9, 0) else 2464)


def scan(items: int) -> int:
    """A running sum of int64 (``cub::DeviceScan``)."""
    return _scan(items, SCAN_TILE)


def count(items: int, gpu: Gpu) -> int:
    """The number of true elements among `items` booleans, as int32 (``cub::DeviceReduce::Sum``)."""
    if items <= COUNTED_BY_ONE_BLOCK:
        return 1
    resident = RESIDENT_THREADS.get(gpu.compute_capability, 2048) // COUNT_THREADS
    return _storage(4 * gpu.sm_count * resident * COUNT_SUBSCRIPTION)


def select(items: int, gpu: Gpu) -> int:
    """The indices of the true elements (``cub::DeviceSelect::Flagged``)."""
    tile = {(8, 0): 2304, (9, 0): 4224}.get(gpu.compute_capability, 640)
    if gpu.compute_capability >= (10, 0):
        tile = 3520
    return _storage((_tiles(items, tile) + TILE_PADDING) * INDEX, 1)


def _scan(items: int, tile: int) -> int:
    """The states of the tiles, of 8 bytes each and padded in front, and two small parts."""
    states = (_tiles(items, tile) + TILE_PADDING) * INDEX
    return _storage(states, 1, 1)


def _tiles(items: int, tile: int) -> int:
    return ceil_div(items, tile)


def _storage(*parts: int) -> int:
    return ALIGNMENT - 1 + sum(round_up(part, ALIGNMENT) for part in parts)
