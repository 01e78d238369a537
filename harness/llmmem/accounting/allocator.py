"""A model of PyTorch's CUDA caching allocator: sizes in, allocated and reserved bytes out.

It follows the policy of ``c10/cuda/CUDACachingAllocator.cpp`` (backend ``native``, the default)
of torch 2.13 and later for one device, with any number of streams: rounding, best fit, splitting,
coalescing, expandable segments, garbage collection and the retries before an out-of-memory error.
Not modelled: private pools (CUDA graphs, ``MemPool``) and ``record_stream``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmmem.errors import InputError, UnsupportedError, unknown
from llmmem.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["AllocatorConfig", "Block", "CachingAllocator", "OutOfMemory"]

MIN_BLOCK = 512
SMALL_SIZE = MIB
SMALL_BUFFER = 2 * MIB
MIN_LARGE_ALLOC = 10 * MIB
ROUND_LARGE = 2 * MIB
LARGE_SEGMENT = 20 * MIB
# Physical memory is handed out in pages of this size.
PAGE = 2 * MIB
DIVISION_INTERVALS = 16


@dataclass(frozen=True)
class AllocatorConfig:
    """The settings of ``PYTORCH_ALLOC_CONF`` that decide bytes; sizes in bytes.

    Attributes:
        max_split_size: Blocks of at least this size are never split; ``None`` is no limit.
        max_non_split_rounding: How much larger than asked such a block may be; ``None`` is
            `large_segment_size`.
        large_segment_size: Segment for requests above 1 and below 10 MiB.
        roundup_power2_divisions: Divisions between two powers of two, for each of the 16
            intervals from 1 MiB on; empty is off.
        garbage_collection_threshold: Part of the allowed memory above which cached blocks are
            freed; 0 is off.
        expandable_segments: Whether segments grow by pages.
        memory_fraction: Part of the device's memory that may be reserved.
        throw_on_cudamalloc_oom: Whether a request past `memory_fraction` fails without a retry.
    """

    max_split_size: int | None = None
    max_non_split_rounding: int | None = None
    large_segment_size: int = LARGE_SEGMENT
    roundup_power2_divisions: tuple[int, ...] = ()
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    memory_fraction: float = 1.0
    throw_on_cudamalloc_oom: bool = False

    @classmethod
    def parse(cls, text: str) -> AllocatorConfig:
        """Read a value of ``PYTORCH_ALLOC_CONF``, such as ``"expandable_segments:True"``.

        Raises:
            InputError: An unknown key or a value that PyTorch would refuse.
            UnsupportedError: ``backend:cudaMallocAsync``, another allocator.
        """
        given: dict[str, object] = {}
        settings = dict(_settings(text))
        for key, value in settings.items():
            if key == "backend":
                _check_backend(value)
            elif key in _READERS:
                name, read = _READERS[key]
                given[name] = read(key, value)
            elif key not in _WITHOUT_EFFECT:
                raise unknown("allocator setting", key, sorted([*_READERS, "backend"]))
        config = cls(**given)  # type: ignore[arg-type]
        config._check()
        return config

    def _check(self) -> None:
        smallest = self.large_segment_size
        if smallest <= MIN_LARGE_ALLOC:
            raise InputError("invalid large_segment_size_mb: it must be above 10")
        for name in ("max_split_size", "max_non_split_rounding"):
            value: int | None = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(
                    f"invalid {name}_mb {value // MIB}: it must be at least {smallest // MIB}"
                )

    def without_limits(self) -> AllocatorConfig:
        """The same settings, without those that depend on the size of the device's memory."""
        return replace(
            self,
            garbage_collection_threshold=0.0,
            memory_fraction=1.0,
            throw_on_cudamalloc_oom=False,
        )

    @property
    def split_limit(self) -> float:
        """Size in bytes from which blocks are never split."""
        return float("inf") if self.max_split_size is None else self.max_split_size

    @property
    def non_split_rounding(self) -> int:
        """Bytes by which a block that is not split may exceed the request."""
        if self.max_non_split_rounding is None:
            return self.large_segment_size
        return self.max_non_split_rounding

    def round_size(self, nbytes: int) -> int:
        """Bytes of the block for a request of `nbytes`."""
        if nbytes < MIN_BLOCK:
            return MIN_BLOCK
        if self.roundup_power2_divisions:
            interval = min(max(nbytes.bit_length() - 1 - 20, 0), DIVISION_INTERVALS - 1)
            divisions = self.roundup_power2_divisions[interval]
            if divisions > 1 and nbytes > MIN_BLOCK * divisions:
                return _round_to_division(nbytes, divisions)
        return -(-nbytes // MIN_BLOCK) * MIN_BLOCK

    def segment_size(self, rounded: int) -> int:
        """Bytes of the segment that is made for a block of `rounded` bytes."""
        if rounded <= SMALL_SIZE:
            return SMALL_BUFFER
        if rounded < MIN_LARGE_ALLOC:
            return self.large_segment_size
        return -(-rounded // ROUND_LARGE) * ROUND_LARGE


def _round_to_division(nbytes: int, divisions: int) -> int:
    power = 1 << (nbytes.bit_length() - 1)
    if nbytes == power:
        return nbytes
    step = power >> (divisions.bit_length() - 1)
    if step == 0:
        return 2 * power
    return -(-nbytes // step) * step


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values of ``key:value,key:[a:b,c:d]``."""
    compact = "".join(text.split())
    seen: set[str] = set()
    while compact:
        key, colon, rest = compact.partition(":")
        if not colon:
            raise InputError(
                f"invalid allocator setting {key!r} in {text!r}: expected key:value,key:value"
            )
        if key in seen:
            raise InputError(f"allocator setting {key!r} is given twice in {text!r}")
        seen.add(key)
        if rest.startswith("["):
            value, bracket, rest = rest.partition("]")
            if not bracket or (rest and not rest.startswith(",")):
                raise InputError(f"invalid allocator setting {key!r} in {text!r}: unclosed list")
            value, compact = value + bracket, rest[1:]
        else:
            value, _, compact = rest.partition(",")
        yield key, value


def _check_backend(value: str) -> None:
    if value == "cudaMallocAsync":
        raise UnsupportedError(
            "the model of the caching allocator knows backend:native only: "
            "backend:cudaMallocAsync leaves memory to the CUDA driver"
        )
    if value != "native":
        raise unknown("allocator backend", value, ("native", "cudaMallocAsync"))


def _read_boolean(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise InputError(f"invalid {key} {value!r}: expected True or False")
    return value == "True"


def _read_mebibytes(key: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal()):
        raise InputError(f"invalid {key} {value!r}: expected a whole number of MiB")
    return int(value) * MIB


def _read_fraction(key: str, value: str) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise InputError(f"invalid {key} {value!r}: expected a number from 0 to 1")
    return fraction


def _read_threshold(key: str, value: str) -> float:
    threshold = _read_fraction(key, value)
    if threshold in (0.0, 1.0):
        raise InputError(f"invalid {key} {value!r}: expected a number between 0 and 1")
    return threshold


def _read_divisions(key: str, value: str) -> tuple[int, ...]:
    if not value.startswith("["):
        return (_power_of_two(key, value),) * DIVISION_INTERVALS
    table = [0] * DIVISION_INTERVALS
    last = -1
    for pair in value[1:-1].split(","):
        size, _, divisions_text = pair.partition(":")
        divisions = _power_of_two(key, divisions_text)
        if size == ">":
            table[last + 1 :] = [divisions] * (DIVISION_INTERVALS - last - 1)
            continue
        interval = min(_power_of_two(key, size).bit_length() - 1, DIVISION_INTERVALS - 1)
        # The first size also covers everything below it.
        first = 0 if last < 0 else interval
        table[first : interval + 1] = [divisions] * (interval + 1 - first)
        last = interval
    return tuple(table)


def _power_of_two(key: str, value: str) -> int:
    number = int(value) if value.isascii() and value.isdecimal() else 0
    if number < 1 or number & (number - 1):
        raise InputError(f"invalid {key} value {value!r}: expected a power of two")
    return number


_READERS: Mapping[str, tuple[str, Callable[[str, str], object]]] = {
    "max_split_size_mb": ("max_split_size", _read_mebibytes),
    "max_non_split_rounding_mb": ("max_non_split_rounding", _read_mebibytes),
    "large_segment_size_mb": ("large_segment_size", _read_mebibytes),
    "roundup_power2_divisions": ("roundup_power2_divisions", _read_divisions),
    "garbage_collection_threshold": ("garbage_collection_threshold", _read_threshold),
    "expandable_segments": ("expandable_segments", _read_boolean),
    "per_process_memory_fraction": ("memory_fraction", _read_fraction),
    "throw_on_cudamalloc_oom": ("throw_on_cudamalloc_oom", _read_boolean),
}
# Settings of locks, of address space, of CUDA graphs and of host memory.
_WITHOUT_EFFECT = frozenset(
    {
        "expandable_segments_reserve",
        "expandable_segments_reserve_by_class",
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
    }
)


class OutOfMemory(Exception):  # noqa: N818 - the name of the outcome
    """The allocator could not serve a request; the state before it is kept.

    Attributes:
        segment_bytes: What it tried to take from the device.
    """

    def __init__(self, segment_bytes: int, allocated: int, reserved: int, free: int) -> None:
        self.segment_bytes = segment_bytes
        super().__init__(
            f"out of memory: tried to take {segment_bytes:,} bytes with {allocated:,} allocated, "
            f"{reserved:,} reserved and {free:,} free on the device"
        )


class Block:
    """A range of a segment: in use, free, or (in an expandable segment) without memory.

    Attributes:
        size: Bytes of the block: what ``memory_allocated`` counts.
        requested: Bytes that were requested.
        address: A made-up address; segments made later have higher ones.
    """

    __slots__ = (
        "address",
        "age_base",
        "allocated",
        "following",
        "mapped",
        "pool",
        "previous",
        "requested",
        "segment",
        "size",
        "stream",
    )

    def __init__(
        self, pool: _Pool, segment: _Segment, stream: int, address: int, size: int
    ) -> None:
        self.pool = pool
        self.segment = segment
        self.stream = stream
        self.address = address
        self.size = size
        self.requested = 0
        self.allocated = False
        self.mapped = True
        self.previous: Block | None = None
        self.following: Block | None = None
        self.age_base = 0

    @property
    def is_split(self) -> bool:
        """Whether it is only a part of its segment."""
        return self.previous is not None or self.following is not None


@dataclass(frozen=True)
class _Segment:
    """Memory taken from the device at once; `page` is 0 unless it is expandable."""

    order: int
    base: int
    page: int = 0


_Key = tuple[int, int, int, Block]


@dataclass
class _Pool:
    """Free blocks of one of the two sizes, per stream, in the order in which they are taken."""

    is_small: bool
    free: dict[int, list[_Key]] = field(default_factory=dict)
    unmapped: dict[int, list[tuple[int, Block]]] = field(default_factory=dict)
    # Counts only while garbage collection is on.
    searches: int = 0

    def insert(self, block: Block) -> None:
        block.age_base = self.searches
        insort(self.free.setdefault(block.stream, []), _key(block))

    def remove(self, block: Block) -> None:
        blocks = self.free[block.stream]
        del blocks[bisect_left(blocks, (block.size, block.segment.order, block.address))]

    def insert_unmapped(self, block: Block) -> None:
        insort(self.unmapped.setdefault(block.stream, []), (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        blocks = self.unmapped[block.stream]
        del blocks[bisect_left(blocks, (block.address,))]

    def blocks(self) -> list[Block]:
        """All free blocks, in order of stream and size."""
        return [key[3] for stream in sorted(self.free) for key in self.free[stream]]


def _key(block: Block) -> _Key:
    # Ties go to the oldest segment, then to the lowest address: no two keys reach the block.
    return (block.size, block.segment.order, block.address, block)


class CachingAllocator:
    """The caching allocator of one device.

    Args:
        config: The settings.
        total_bytes: Memory of the device.
        free_bytes: What the driver can still allocate: the total less the context and other processes.

    Attributes:
        allocated: Bytes of the blocks in use.
        reserved: Bytes reserved on the device.
        requested: Bytes that were requested for the blocks in use.
        peak_allocated: The maximum of `allocated` since `reset_peaks`.
        peak_reserved: The maximum of `reserved` since `reset_peaks`.
        num_alloc_retries: How often the whole cache was released to serve a request.
        num_ooms: The number of requests that failed.
        limit_bytes: The most that it may reserve.
        is_limited: Whether the size of the device's memory has affected anything yet. If not, the state
            would be the same on every larger device.
    """

    def __init__(self, config: AllocatorConfig, total_bytes: int, free_bytes: int) -> None:
        self.config = config
        self.allocated = 0
        self.reserved = 0
        self.requested = 0
        self.peak_allocated = 0
        self.peak_reserved = 0
        self.num_alloc_retries = 0
        self.num_ooms = 0
        self.is_limited = False
        self._total_bytes = total_bytes
        self._free_bytes = free_bytes
        fraction = config.memory_fraction
        self._allowed = round(fraction * total_bytes) if fraction < 1 else None
        allowed = free_bytes if self._allowed is None else self._allowed
        self.limit_bytes = min(allowed, free_bytes)
        self._split_limit = config.split_limit
        self._collects = self._allowed is not None and config.garbage_collection_threshold > 0
        self._small = _Pool(is_small=True)
        self._large = _Pool(is_small=False)
        self._segments = 0
        self._next_address = PAGE

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        """Allocate a block for `nbytes` bytes (above zero; PyTorch allocates nothing for zero).

        Raises:
            OutOfMemory: The device has too little memory left, even after releasing the cache.
        """
        size = self.config.round_size(nbytes)
        pool = self._small if size <= SMALL_SIZE else self._large
        block = self._find_free(pool, size, stream) or self._get_new(pool, size, stream)
        if self._should_split(pool, block, size):
            rest = Block(pool, block.segment, stream, block.address + size, block.size - size)
            rest.previous, rest.following = block, block.following
            if rest.following is not None:
                rest.following.previous = rest
            block.following = rest
            block.size = size
            pool.insert(rest)
        block.allocated = True
        block.requested = nbytes
        self.requested += nbytes
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block

    def free(self, block: Block) -> None:
        """Free a block; it is merged with free neighbours and stays reserved."""
        self.allocated -= block.size
        self.requested -= block.requested
        block.allocated = False
        self._absorb(block, block.previous)
        self._absorb(block, block.following)
        block.pool.insert(block)

    def empty_cache(self) -> None:
        """Release segments without a block in use (and free pages) to the device."""
        for pool in (self._large, self._small):
            blocks = pool.blocks()
            for block in blocks:
                if not block.segment.page and not block.is_split:
                    self._release(block)
            for block in blocks:
                if block.segment.page:
                    self._unmap(block)

    def reset_peaks(self) -> None:
        """Set the peaks to the current values."""
        self.peak_allocated = self.allocated
        self.peak_reserved = self.reserved

    @property
    def inactive_split_bytes(self) -> int:
        """Bytes of free blocks that share a segment with others (expandable ones left out)."""
        return sum(
            block.size
            for pool in (self._small, self._large)
            for block in pool.blocks()
            if block.is_split and not block.segment.page
        )

    @property
    def cached_bytes(self) -> int:
        """Bytes of all free blocks: `reserved` less `allocated`."""
        return sum(block.size for pool in (self._small, self._large) for block in pool.blocks())

    def _find_free(self, pool: _Pool, size: int, stream: int) -> Block | None:
        """The best fit: the smallest free block that is large enough."""
        if self._collects:
            pool.searches += 1
        blocks = pool.free.get(stream)
        if not blocks:
            return None
        at = bisect_left(blocks, (size,))
        if at == len(blocks):
            return None
        block = blocks[at][3]
        if block.segment.page:
            # A block that can grow counts as what it can grow to: holes are preferred to it.
            while at + 1 < len(blocks) and _extent(blocks[at + 1][3]) < _extent(block):
                at += 1
                block = blocks[at][3]
        if size < self._split_limit:
            if block.size >= self._split_limit:
                return None
        elif block.size >= size + self.config.non_split_rounding:
            return None
        del blocks[at]
        return block

    def _should_split(self, pool: _Pool, block: Block, size: int) -> bool:
        rest = block.size - size
        if pool.is_small or self.config.expandable_segments:
            return rest >= MIN_BLOCK
        return size < self._split_limit and rest > SMALL_SIZE

    def _get_new(self, pool: _Pool, size: int, stream: int) -> Block:
        """A new segment, after giving back as much as that takes."""
        if self._collects:
            self._collect_garbage()
        segment_bytes = self.config.segment_size(size)
        block = self._take(pool, size, segment_bytes, stream)
        if block is None:
            self.is_limited = True
        if block is None and not self._is_rejected(segment_bytes):
            if self._release_oversize(pool, size, stream):
                block = self._take(pool, size, segment_bytes, stream)
            if block is None:
                self.empty_cache()
                block = self._take(pool, size, segment_bytes, stream)
                self.num_alloc_retries += 1
        if block is None:
            self.num_ooms += 1
            raise OutOfMemory(segment_bytes, self.allocated, self.reserved, self._free_bytes)
        return block

    def _is_rejected(self, segment_bytes: int) -> bool:
        return (
            self.config.throw_on_cudamalloc_oom
            and self.reserved + segment_bytes > self.config.memory_fraction * self._total_bytes
        )

    def _take(self, pool: _Pool, size: int, segment_bytes: int, stream: int) -> Block | None:
        """Memory from the device, as a free block that is in no pool; ``None`` without success."""
        if self._allowed is not None and self.reserved + segment_bytes > self._allowed:
            return None
        if self._is_rejected(segment_bytes):
            return None
        if self.config.expandable_segments:
            return self._grow(pool, size, stream)
        pages = -(-segment_bytes // PAGE) * PAGE
        if pages > self._free_bytes:
            return None
        self._free_bytes -= pages
        self._reserve(segment_bytes)
        segment = self._new_segment(pages)
        return Block(pool, segment, stream, segment.base, segment_bytes)

    def _reserve(self, nbytes: int) -> None:
        self.reserved += nbytes
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def _new_segment(self, length: int, page: int = 0) -> _Segment:
        segment = _Segment(self._segments, self._next_address, page)
        self._segments += 1
        self._next_address += length
        return segment

    def _release(self, block: Block) -> None:
        """Give a block that is a whole segment back to the device."""
        block.pool.remove(block)
        self.reserved -= block.size
        self._free_bytes += -(-block.size // PAGE) * PAGE

    def _release_oversize(self, pool: _Pool, size: int, stream: int) -> bool:
        """Give back free blocks that are never split, enough for `size`; whether it was enough."""
        if self.config.max_split_size is None:
            return False
        wanted = max(size, self.config.max_split_size)
        blocks = pool.free.get(stream, [])
        at = bisect_left(blocks, (wanted,))
        if at < len(blocks) and not blocks[at][3].segment.page:
            self._release(blocks[at][3])
            return True
        released = 0
        for key in reversed(blocks[:at]):
            if released >= wanted or key[0] < self.config.max_split_size:
                break
            if not key[3].segment.page:
                released += key[0]
                self._release(key[3])
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Give back the cached blocks that have not been used for longest."""
        assert self._allowed is not None
        threshold = int(self.config.garbage_collection_threshold * self._allowed)
        target = self.reserved - threshold
        if target <= 0:
            return
        self.is_limited = True
        pool = self._large
        ages = {
            block: pool.searches - block.age_base for block in pool.blocks() if not block.is_split
        }
        total_age, count, reclaimed = sum(ages.values()), len(ages), 0
        has_freed = True
        while reclaimed < target and has_freed and count > 0:
            oldest = total_age / count
            has_freed = False
            for block, age in list(ages.items()):
                if not block.segment.page and age >= oldest:
                    has_freed = True
                    reclaimed += block.size
                    total_age -= age
                    count -= 1
                    del ages[block]
                    self._release(block)

    def _absorb(self, block: Block, neighbour: Block | None) -> None:
        """Merge a free neighbour of the same kind into `block`."""
        if neighbour is None or neighbour.allocated or neighbour.mapped != block.mapped:
            return
        if neighbour.mapped:
            block.pool.remove(neighbour)
        else:
            block.pool.remove_unmapped(neighbour)
        if neighbour is block.previous:
            block.address = neighbour.address
            block.previous = neighbour.previous
            if block.previous is not None:
                block.previous.following = block
        else:
            block.following = neighbour.following
            if block.following is not None:
                block.following.previous = block
        block.size += neighbour.size

    # Expandable segments: one range of addresses per pool and stream, mapped page by page.

    def _grow(self, pool: _Pool, size: int, stream: int) -> Block | None:
        block = self._find_room(pool, size, stream)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            tail = block.following
            assert tail is not None
            if not self._map(tail, min(size - block.size, tail.size)):
                return None
            # Mapping merges the free block before it into the tail.
            block = tail
        pool.remove(block)
        return block

    def _find_room(self, pool: _Pool, size: int, stream: int) -> Block:
        """The first free or unmapped block that with those after it makes `size` bytes."""
        for _, block in pool.unmapped.get(stream, []):
            before = block.previous
            first = before if before is not None and not before.allocated else block
            if _room(first, size) >= size:
                return first
        if stream in pool.unmapped:
            # The range that there is has no room left: it would have been longer.
            self.is_limited = True
        page = SMALL_BUFFER if pool.is_small else self.config.large_segment_size
        # 9/8 of the memory, so that a range never runs out because of fragmentation.
        length = -(-9 * self._total_bytes // (8 * page)) * page
        segment = self._new_segment(length, page)
        block = Block(pool, segment, stream, segment.base, length)
        block.mapped = False
        pool.insert_unmapped(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the first `size` bytes of an unmapped block, in whole pages."""
        page = block.segment.page
        mapped = min(-(-size // page) * page, block.size)
        pages = -(-page // PAGE) * PAGE * (mapped // page)
        if pages > self._free_bytes:
            return False
        self._free_bytes -= pages
        self._reserve(mapped)
        pool = block.pool
        pool.remove_unmapped(block)
        block.mapped = True
        if mapped < block.size:
            rest = Block(
                pool, block.segment, block.stream, block.address + mapped, block.size - mapped
            )
            rest.mapped = False
            rest.previous, rest.following = block, block.following
            if rest.following is not None:
                rest.following.previous = rest
            block.following = rest
            block.size = mapped
            pool.insert_unmapped(rest)
        self._absorb(block, block.previous)
        self._absorb(block, block.following)
        pool.insert(block)
        return True

    def _unmap(self, block: Block) -> None:
        """Give the pages that lie wholly in a free block back to the device."""
        segment, pool = block.segment, block.pool
        page = segment.page
        start = -(-(block.address - segment.base) // page) * page + segment.base
        end = (block.address + block.size - segment.base) // page * page + segment.base
        if end <= start:
            return
        pool.remove(block)
        if start > block.address:
            stub = Block(pool, segment, block.stream, block.address, start - block.address)
            stub.previous, stub.following = block.previous, block
            if stub.previous is not None:
                stub.previous.following = stub
            block.previous = stub
            pool.insert(stub)
        if block.address + block.size > end:
            stub = Block(pool, segment, block.stream, end, block.address + block.size - end)
            stub.previous, stub.following = block, block.following
            if stub.following is not None:
                stub.following.previous = stub
            block.following = stub
            pool.insert(stub)
        self.reserved -= end - start
        self._free_bytes += -(-page // PAGE) * PAGE * ((end - start) // page)
        block.address, block.size, block.mapped = start, end - start, False
        self._absorb(block, block.previous)
        self._absorb(block, block.following)
        if block.is_split:
            pool.insert_unmapped(block)


def _extent(block: Block) -> int:
    tail = block.following
    return block.size + (tail.size if tail is not None and not tail.mapped else 0)


def _room(block: Block | None, size: int) -> int:
    total = 0
    while total < size and block is not None and not block.allocated:
        total += block.size
        block = block.following
    return total
