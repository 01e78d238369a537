"""A long program on the simulated GPU does not grow: what it remembers of memory has bounds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20

PROGRAM = """
import ctypes, json, os
from pathlib import Path
from llmmem import simgpu

gpu = simgpu.activate("h100")
import torch

runtime = ctypes.CDLL(str(next(path for path in gpu.libraries.paths if "cudart" in path.name)))
held = [torch.empty(1, device="cuda") for _ in range(50)]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def allocate_and_free(i):
    pointer = ctypes.c_void_p()
    assert runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(1 + i * 37 % 2**22)) == 0
    assert runtime.cudaFree(pointer) == 0

def keep_fifty_tensors(i):
    held[i * 31 % 50] = torch.empty(1 + i * 7919 % 2**21, dtype=torch.uint8, device="cuda")

def launch(i):
    held[i % 50] = torch.full((1 + i % 1000,), i, device="cuda") + 1

def send(i):
    held[i % 50] = torch.tensor([i, i + 1], device="cuda")

def empty_cache(i):
    held[0] = None
    held[0] = torch.empty(2**24, dtype=torch.uint8, device="cuda")
    torch.cuda.empty_cache()

growth = {}
for use in (allocate_and_free, keep_fifty_tensors, launch, send, empty_cache):
    sizes = []
    for start, end in ((0, 500), (500, 10_500), (10_500, 60_500)):
        for i in range(start, end):
            use(i)
        sizes.append(resident())
    growth[use.__name__] = [sizes[1] - sizes[0], sizes[2] - sizes[0]]
print(json.dumps(growth))
"""


def test_ten_thousand_allocations_launches_and_copies_leave_the_process_no_larger(
    run_python: Callable[[str], str],
) -> None:
    growth = json.loads(run_python(PROGRAM))
    assert len(growth) == 5
    # After 10,000 uses, and after 60,000.
    assert max(size for sizes in growth.values() for size in sizes) < 20 * MIB, growth
