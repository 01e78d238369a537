from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from llmmem.accounting.allocator import AllocatorConfig, Block, CachingAllocator, OutOfMemory
from llmmem.errors import InputError, UnsupportedError
from llmmem.units import GIB, MIB

GOLDEN = sorted((Path(__file__).parent.parent / "data" / "allocator").glob("*.json"))
EXPANDABLE = AllocatorConfig(expandable_segments=True)


def allocator(config: AllocatorConfig | None = None, memory: int = 16 * GIB) -> CachingAllocator:
    return CachingAllocator(config or AllocatorConfig(), memory, memory)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_operation_recorded_from_pytorch_is_reproduced(path: Path) -> None:
    golden = json.loads(path.read_text())
    config = AllocatorConfig.parse(golden["alloc_conf"])
    if golden["fraction"] is not None:
        config = replace(config, memory_fraction=golden["fraction"])
    model = CachingAllocator(config, golden["device_total"], golden["device_total"])
    live: dict[int, Block] = {}
    for number, (operation, *values) in enumerate(golden["ops"]):
        done = operation
        if operation in ("alloc", "oom"):
            try:
                live[values[0]] = model.malloc(values[1])
                done = "alloc"
            except OutOfMemory:
                done = "oom"
        elif operation == "free":
            model.free(live.pop(values[0]))
        else:
            model.empty_cache()
        state = [model.allocated, model.reserved, model.requested, model.num_alloc_retries]
        assert (number, done, state) == (number, operation, values[-4:])
    assert model.peak_allocated == golden["peak_allocated"]
    assert model.peak_reserved == golden["peak_reserved"]


def test_the_golden_traces_are_there() -> None:
    assert len(GOLDEN) == 13


@pytest.mark.parametrize(
    ("nbytes", "allocated", "reserved", "inactive_split", "expandable"),
    [
        (1, 512, 2 * MIB, 2_096_640, (512, 2 * MIB)),
        (MIB, MIB, 2 * MIB, MIB, (MIB, 2 * MIB)),
        (MIB + 1, 1_049_088, 20 * MIB, 19_922_432, (1_049_088, 20 * MIB)),
        (8_519_680, 8_519_680, 20 * MIB, 12_451_840, (8_519_680, 20 * MIB)),
        (10 * MIB, 10 * MIB, 10 * MIB, 0, (10 * MIB, 20 * MIB)),
        (11_010_048, 11_010_048, 12 * MIB, 1_572_864, (11_010_048, 20 * MIB)),
        (11 * MIB, 12 * MIB, 12 * MIB, 0, (11 * MIB, 20 * MIB)),
        (19 * MIB, 20 * MIB, 20 * MIB, 0, (19 * MIB, 20 * MIB)),
        (32 * MIB, 32 * MIB, 32 * MIB, 0, (32 * MIB, 40 * MIB)),
    ],
)
def test_a_first_request_takes_the_segment_that_pytorch_takes(
    nbytes: int, allocated: int, reserved: int, inactive_split: int, expandable: tuple[int, int]
) -> None:
    model = allocator()
    model.malloc(nbytes)
    assert (model.allocated, model.reserved) == (allocated, reserved)
    assert model.inactive_split_bytes == inactive_split
    model = allocator(EXPANDABLE)
    model.malloc(nbytes)
    assert (model.allocated, model.reserved) == expandable


def test_a_hole_is_handed_out_whole_when_little_would_remain() -> None:
    model = allocator()
    hole = model.malloc(3 * MIB)
    model.malloc(4 * MIB)
    model.free(hole)
    assert model.malloc(2 * MIB).size == 3 * MIB
    assert (model.allocated, model.reserved) == (7 * MIB, 20 * MIB)


def test_an_expandable_segment_gives_back_whole_pages_only() -> None:
    model = allocator(EXPANDABLE)
    _, middle, _ = (model.malloc(15 * MIB) for _ in range(3))
    assert model.reserved == 60 * MIB
    model.free(middle)
    model.empty_cache()
    assert model.reserved == 60 * MIB
    model.malloc(16 * MIB)
    assert model.reserved == 80 * MIB


def test_a_free_block_serves_only_the_stream_that_it_was_taken_on() -> None:
    model = allocator()
    model.free(model.malloc(30 * MIB, stream=1))
    model.malloc(30 * MIB, stream=2)
    assert model.reserved == 60 * MIB
    model.malloc(30 * MIB, stream=1)
    assert model.reserved == 60 * MIB


def test_out_of_memory_comes_only_after_the_cache_was_given_back() -> None:
    model = allocator(memory=100 * MIB)
    model.free(model.malloc(60 * MIB))
    kept = model.malloc(80 * MIB)
    assert (model.reserved, model.num_alloc_retries, model.num_ooms) == (80 * MIB, 1, 0)
    with pytest.raises(OutOfMemory, match="tried to take 31,457,280 bytes"):
        model.malloc(30 * MIB)
    assert (model.allocated, model.reserved, model.num_ooms) == (80 * MIB, 80 * MIB, 1)
    model.free(kept)
    model.malloc(30 * MIB)


def test_a_memory_fraction_caps_what_is_reserved() -> None:
    model = allocator(AllocatorConfig.parse("per_process_memory_fraction:0.5"), 100 * MIB)
    model.malloc(40 * MIB)
    with pytest.raises(OutOfMemory):
        model.malloc(20 * MIB)


def test_throwing_at_once_leaves_the_cache_alone() -> None:
    text = "per_process_memory_fraction:0.5,throw_on_cudamalloc_oom:True"
    model = allocator(AllocatorConfig.parse(text), 100 * MIB)
    model.free(model.malloc(30 * MIB))
    with pytest.raises(OutOfMemory):
        model.malloc(40 * MIB)
    assert (model.reserved, model.num_alloc_retries) == (30 * MIB, 0)


def test_peaks_start_again_from_what_is_held() -> None:
    model = allocator()
    held = model.malloc(30 * MIB)
    model.free(model.malloc(50 * MIB))
    assert (model.peak_allocated, model.peak_reserved) == (80 * MIB, 80 * MIB)
    model.empty_cache()
    model.reset_peaks()
    assert (model.peak_allocated, model.peak_reserved) == (held.size, 30 * MIB)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:64,max_non_split_rounding_mb:30",
        "max_split_size_mb:40,expandable_segments:True",
        "large_segment_size_mb:33",
        "roundup_power2_divisions:[1:2,4:8,>:4]",
        "garbage_collection_threshold:0.5,per_process_memory_fraction:0.6",
        "garbage_collection_threshold:0.3,per_process_memory_fraction:0.6,expandable_segments:True",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_no_byte_is_lost_in_random_traces(text: str, seed: int) -> None:
    memory = 2 * GIB
    model = allocator(AllocatorConfig.parse(text), memory)
    generator = random.Random(seed)
    live: list[Block] = []
    for _ in range(3000):
        choice = generator.random()
        if choice < 0.55:
            nbytes = round(2 ** generator.uniform(4, 28))
            try:
                live.append(model.malloc(nbytes, generator.choice([0, 0, 7])))
            except OutOfMemory:
                live, dead = live[::2], live[1::2]
                for block in dead:
                    model.free(block)
        elif choice < 0.995 and live:
            model.free(live.pop(generator.randrange(len(live))))
        else:
            model.empty_cache()
        assert model.allocated == sum(block.size for block in live)
        assert model.requested == sum(block.requested for block in live)
        assert model.allocated + model.cached_bytes == model.reserved <= memory
        assert not any(_has_free_neighbour(block) for block in live)
    for block in live:
        model.free(block)
    model.empty_cache()
    assert (model.allocated, model.requested, model.reserved) == (0, 0, 0)
    assert model.malloc(memory // 4).size >= memory // 4


def _has_free_neighbour(block: Block) -> bool:
    """Whether two free blocks with memory lie side by side right after `block`."""
    first = block.following
    second = first.following if first is not None else None
    return all(b is not None and b.mapped and not b.allocated for b in (first, second))


def test_settings_are_read_as_pytorch_reads_them() -> None:
    config = AllocatorConfig.parse(
        " max_split_size_mb:128, garbage_collection_threshold:0.8,pinned_num_register_threads:4"
    )
    assert config == AllocatorConfig(max_split_size=128 * MIB, garbage_collection_threshold=0.8)
    assert AllocatorConfig.parse("backend:native") == AllocatorConfig()


def test_divisions_of_the_first_size_cover_all_below_it_and_others_only_themselves() -> None:
    config = AllocatorConfig.parse("roundup_power2_divisions:[64:8,256:4,1024:2,>:1]")
    assert config.roundup_power2_divisions == (8,) * 7 + (0, 4, 0, 2) + (1,) * 5
    assert config.round_size(5 * MIB + 1) == 5 * MIB + MIB // 2
    assert config.round_size(129 * MIB + 1) == 129 * MIB + 512


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segment:True", "did you mean 'expandable_segments'"),
        ("expandable_segments:true", "expected True or False"),
        ("max_split_size_mb:10", "at least 20"),
        ("max_split_size_mb:many", "a whole number of MiB"),
        ("large_segment_size_mb:10", "above 10"),
        ("garbage_collection_threshold:1.0", "between 0 and 1"),
        ("per_process_memory_fraction:2", "from 0 to 1"),
        ("roundup_power2_divisions:3", "power of two"),
        ("roundup_power2_divisions:[64:8", "unclosed list"),
        ("expandable_segments", "key:value"),
        ("backend:none", "unknown allocator backend"),
        ("backend:native,backend:native", "given twice"),
    ],
)
def test_a_setting_that_pytorch_refuses_is_an_input_error(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AllocatorConfig.parse(text)


def test_the_driver_s_own_allocator_is_not_modelled() -> None:
    with pytest.raises(UnsupportedError, match="backend:native"):
        AllocatorConfig.parse("backend:cudaMallocAsync")
