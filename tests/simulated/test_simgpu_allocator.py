"""PyTorch's allocators on the simulated GPU do what PyTorch's own tests of memory ask of them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parents[1] / "programs" / "simgpu_allocator.py"
MIB = 2**20
TORCH = tuple(int(part) for part in metadata.version("torch").split(".")[:2])

pytestmark = pytest.mark.skipif(TORCH < (2, 14), reason="older allocators lack some of this")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def value(outcomes: dict[str, dict[str, Any]]) -> Any:
    def of(name: str) -> Any:
        outcome = outcomes[name]
        assert "error" not in outcome, outcome["error"]
        return outcome["value"]

    return of


def test_pinned_memory_is_counted_in_powers_of_two_and_given_back(value: Any) -> None:
    seen = value("pinned_memory")
    assert seen == {"bytes": [192 * 1024, 64 * 1024], "calls": [2, 1], "pinned": True}


def test_host_memory_is_pinned_while_it_is_registered(value: Any) -> None:
    assert value("registered_memory") == [False, True, False, True]


def test_an_expandable_segment_grows_and_shrinks_by_its_pages(value: Any) -> None:
    assert value("expandable_segments") == {"grown": [100, 100, 1], "emptied": [80, 80]}


def test_out_of_memory_gives_back_cached_segments_of_both_kinds(value: Any) -> None:
    assert value("kinds_of_segments_out_of_memory") == [False, True, 120, 120]


def test_observers_of_out_of_memory_are_told_what_was_free(value: Any) -> None:
    assert value("observers_of_out_of_memory") == [False, True]


def test_without_the_cache_memory_comes_from_the_driver_and_is_not_in_the_statistics(
    value: Any,
) -> None:
    assert value("the_cache_switched_off") == [[0, 2], [MIB, 2]]


def test_segments_belong_to_the_innermost_pool_and_are_split_as_it_says(value: Any) -> None:
    assert value("pools") == [[1, 1], [3], [1, 1]]


def test_when_memory_runs_out_a_pool_that_allows_it_is_used(value: Any) -> None:
    seen = value("a_pool_for_when_memory_runs_out")
    assert seen == {"full": False, "spare is used": True, "private is not": True}


def test_what_an_allocator_of_ones_own_takes_is_counted(value: Any) -> None:
    assert value("an_allocator_of_ones_own") == [40, 0]


def test_graphs_share_a_pool_that_can_be_restored_and_ends_with_them(value: Any) -> None:
    assert value("pools_of_graphs") == {"shared": 1, "restored": True, "live": True, "end": 0}


def test_graphs_that_share_a_pool_reserve_less(value: Any) -> None:
    assert value("what_graphs_reserve") == [4, 2, 0]


def test_pinned_memory_that_a_graph_copies_from_is_not_used_again(value: Any) -> None:
    assert value("pinned_memory_in_graphs") == [True, False]


def test_the_history_has_what_a_segment_maps_and_unmaps(value: Any) -> None:
    events = value("history_of_segments")
    assert events[0] == ["segment_map", 2]
    assert events[-1] == ["segment_unmap", 2]
