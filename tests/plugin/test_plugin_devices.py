"""Tests that allocate on several GPUs, or by another allocator than PyTorch's own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import torch
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("simulated_gpu")

MIB = 2**20

SEVERAL_GPUS = """
    import gc

    import pytest
    import torch

    def hold(mib, index):
        return torch.empty(mib << 20, dtype=torch.uint8, device=f"cuda:{index}")

    def work():
        hold(700, 0)
        larger = hold(710, 0)  # than the block that is cached: 1410 MiB are reserved
        return larger, hold(1000, 1)

    @pytest.mark.max_vram("800MiB", metric="allocated")
    def test_allocates_most_on_the_second():
        work()

    @pytest.mark.max_vram("1200MiB", metric="reserved")
    def test_reserves_most_on_the_first():
        work()

    @pytest.mark.max_vram("2GiB")
    def test_is_within_the_limit():
        work()

    @pytest.mark.max_vram("2GiB")
    def test_is_recorded():
        hold(50, 1)

    def test_what_is_imported_is_spared_by_collections():
        assert gc.get_freeze_count() > 50_000
"""


def test_every_gpu_is_held_to_the_limit(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run_pytest(SEVERAL_GPUS, "--llmmem-device=sim:h100x2", "--llmmem-report=report.json")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "peak allocated 0.98 GiB is over the limit of 800MiB (0.78 GiB) by 0.20 GiB",
            "  device       sim:h100 cuda:1 (*",
            "  peaks        allocated 0.98 GiB, reserved 0.98 GiB, *",
            "  cuda:0       allocated 0.69 GiB, reserved 1.38 GiB, *",
            "  largest *0.98 GiB  test_it.py:7 in hold",
            "peak reserved 1.38 GiB is over the limit of 1200MiB (1.17 GiB) by 0.21 GiB",
            "  device       sim:h100 cuda:0 (*",
            "  cuda:1       allocated 0.98 GiB, *",
        ]
    )
    rows = json.loads((pytester.path / "report.json").read_text())
    found = {
        (row["test"].partition("::")[2], row["phase"]): (
            row["gpu_index"],
            row["peak_allocated_bytes"] // MIB,
            row["peak_reserved_bytes"] // MIB,
        )
        for row in rows
    }
    on_both = {"cuda:0": (0, 710, 1410), "cuda:1": (1, 1000, 1000)}
    for test, decides in (
        ("test_allocates_most_on_the_second", 1),
        ("test_reserves_most_on_the_first", 0),
        ("test_is_within_the_limit", 0),
    ):
        assert found[test, "total"] == on_both[f"cuda:{decides}"]
        assert {phase: found[test, phase] for phase in on_both} == on_both
    assert found["test_is_recorded", "total"] == (1, 50, 50)


ALLOCATOR = """
#include <stddef.h>
#include <sys/types.h>

int cudaMalloc(void **pointer, size_t size);
int cudaFree(void *pointer);

void *take(ssize_t size, int device, void *stream) {
    void *pointer = NULL;
    cudaMalloc(&pointer, (size_t)size);
    return pointer;
}

void give(void *pointer, ssize_t size, int device, void *stream) { cudaFree(pointer); }
"""

PLUGGABLE = """
    import torch
    from torch.cuda.memory import CUDAPluggableAllocator, change_current_allocator

    change_current_allocator(CUDAPluggableAllocator("./allocator.so", "take", "give"))
"""

ANY_ALLOCATOR = """
    import os

    import pytest
    import torch

    ASKED = []
    statistics = torch._C._cuda_memoryStats

    def ask(device):
        ASKED.append(os.environ.get("PYTEST_CURRENT_TEST", ""))
        return statistics(device)

    torch._C._cuda_memoryStats = ask

    def hold(mib):
        return torch.empty(mib << 20, dtype=torch.uint8, device="cuda")

    @pytest.fixture(scope="module")
    def kept():
        return hold(10)

    @pytest.fixture
    def broken():
        hold(10)
        raise LookupError

    def test_unmarked(kept):
        hold(64)

    def test_unmarked_with_a_broken_fixture(broken):
        pass

    def test_unmarked_that_fails():
        hold(64)
        raise LookupError

    @pytest.mark.max_vram("1GiB")
    def test_within(kept):
        hold(64)

    @pytest.mark.max_vram("600MiB")
    def test_over(kept):
        hold(256)

    @pytest.mark.max_vram("1GiB", metric="allocated")
    def test_allocated():
        hold(64)

    @pytest.mark.max_vram(gpu="t4")
    def test_smaller_card():
        hold(64)

    @pytest.mark.max_vram("1GiB")
    def test_nothing(kept):
        pass

    def test_unmarked_ones_ask_for_no_statistics():
        assert not [test for test in ASKED if "::test_unmarked" in test]
"""


@pytest.mark.parametrize("allocator", ["CUDAPluggableAllocator", "backend:cudaMallocAsync"])
def test_any_allocator_is_measured_as_far_as_it_tells(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    allocator: str,
) -> None:
    is_pluggable = allocator == "CUDAPluggableAllocator"
    if is_pluggable:
        compile_allocator(pytester)
        pytester.makeconftest(PLUGGABLE)
    else:
        has_new_name = Version(torch.__version__) >= Version("2.9")
        name = "PYTORCH_ALLOC_CONF" if has_new_name else "PYTORCH_CUDA_ALLOC_CONF"
        monkeypatch.setenv(name, allocator)
    result = run_pytest(ANY_ALLOCATOR, "--llmmem-device=sim:h100", "-v")
    outcomes = dict(
        re.findall(r"^test_it\.py::test_(\S+) (\w+)", result.stdout.str(), re.MULTILINE)
    )
    assert outcomes == {
        "unmarked": "PASSED",
        "unmarked_with_a_broken_fixture": "ERROR",
        "unmarked_that_fails": "FAILED",
        "within": "PASSED",
        "over": "FAILED",
        "allocated": "FAILED" if is_pluggable else "PASSED",
        "smaller_card": "PASSED",
        "nothing": "FAILED",
        "unmarked_ones_ask_for_no_statistics": "PASSED",
    }
    result.stdout.fnmatch_lines(
        [
            "peak process 0.* GiB is over the limit of 600MiB (0.59 GiB) by *",
            *(
                [
                    "not measured: the allocator in use keeps no statistics of what is allocated; "
                    'use metric="process"'
                ]
                if is_pluggable
                else []
            ),
            "not measured: nothing was allocated on a GPU in this process *",
        ]
    )
    result.stdout.no_fnmatch_line("*KeyError*")


def compile_allocator(pytester: pytest.Pytester) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    pytester.path.joinpath("allocator.c").write_text(ALLOCATOR)
    command = [compiler, "-shared", "-fPIC", "allocator.c", "-o", "allocator.so"]
    subprocess.run(command, cwd=pytester.path, check=True)
