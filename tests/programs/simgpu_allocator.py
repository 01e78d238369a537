"""Programs that assert what PyTorch's allocators do, for the simulated GPU.

They check what PyTorch's own tests of CUDA memory check, in our words. Run as a script: imports
once, forks for every program, and prints one JSON document.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simgpu_scenarios import in_child

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

MIB = 2**20

PROGRAMS: list[Callable[[], Any]] = []


def program(function: Callable[[], Any]) -> Callable[[], Any]:
    PROGRAMS.append(function)
    return function


def tensor(mebibytes: int) -> torch.Tensor:
    import torch

    return torch.empty(mebibytes * MIB, dtype=torch.uint8, device="cuda")


def fits(mebibytes: int) -> bool:
    import torch

    try:
        tensor(mebibytes)
    except torch.OutOfMemoryError:
        return False
    return True


def held() -> int:
    """MiB that the process holds beside its context."""
    gpu = simgpu.active()
    assert gpu is not None
    return (gpu.process_bytes() - gpu.context_bytes) // MIB


def allow(mebibytes: int) -> None:
    """Let PyTorch's allocator take no more than this."""
    import torch

    torch.cuda.init()
    torch.cuda.set_per_process_memory_fraction(mebibytes * MIB / torch.cuda.mem_get_info()[1])


def set_allocator(settings: str) -> None:
    import torch

    torch._C._accelerator_setAllocatorSettings(settings)


def segments(pool: tuple[int, int]) -> list[Any]:
    import torch

    return [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) == tuple(pool)]


# ---- pinned memory ------------------------------------------------------------------------------


@program
def pinned_memory() -> Any:
    """Blocks are powers of two; emptying the cache gives back what no tensor holds."""
    import torch

    torch.cuda.init()  # before it there are no statistics
    kept = torch.empty(10 * 1024, pin_memory=True)
    dropped = torch.empty(20 * 1024, pin_memory=True)
    both = torch.cuda.host_memory_stats()
    del dropped
    torch._C._host_emptyCache()
    one = torch.cuda.host_memory_stats()
    return {
        "bytes": [both["allocated_bytes.current"], one["allocated_bytes.current"]],
        "calls": [both["num_host_alloc"], one["num_host_free"]],
        "pinned": kept.is_pinned(),
    }


@program
def registered_memory() -> Any:
    import torch

    plain = torch.ones(20)
    runtime = torch.cuda.cudart()
    seen = [plain.is_pinned()]
    runtime.cudaHostRegister(plain.data_ptr(), plain.nbytes, 0)
    seen.append(plain.is_pinned())
    runtime.cudaHostUnregister(plain.data_ptr())
    seen.append(plain.is_pinned())
    set_allocator("pinned_use_cuda_host_register:True,pinned_num_register_threads:8")
    return [*seen, torch.ones(2 * MIB).pin_memory().is_pinned()]


# ---- settings and limits ------------------------------------------------------------------------


@program
def expandable_segments() -> Any:
    """A segment grows by pages of 20 MiB, and gives back those that no block touches."""
    import torch

    set_allocator("expandable_segments:True")
    tensors = [tensor(30) for _ in range(3)]
    grown = [torch.cuda.memory_reserved() // MIB, held(), len(torch.cuda.memory_snapshot())]
    del tensors[1]
    torch.cuda.empty_cache()
    return {"grown": grown, "emptied": [torch.cuda.memory_reserved() // MIB, held()]}


@program
def kinds_of_segments_out_of_memory() -> Any:
    """Out of memory, cached segments of both kinds are given back before the retry."""
    import torch

    allow(120)
    tensors = []
    for expandable in (False, True, False):
        set_allocator(f"expandable_segments:{expandable},max_split_size_mb:40")
        tensors.append(tensor(40))
    before = fits(40)
    del tensors
    return [before, fits(120), torch.cuda.memory_reserved() // MIB, held()]


@program
def observers_of_out_of_memory() -> Any:
    import torch

    seen: list[Any] = []
    torch._C._cuda_attach_out_of_memory_observer(lambda *numbers: seen.append(numbers))
    free, total = torch.cuda.mem_get_info()
    return [fits(2**22), seen == [(0, 2**42, total, free)]]


@program
def the_cache_switched_off() -> Any:
    import torch

    torch.cuda.init()
    counted = []
    for cached in (False, True):
        torch.cuda.caching_allocator_enable(cached)
        torch.cuda.reset_accumulated_memory_stats()
        pointer = torch.cuda.caching_allocator_alloc(MIB)
        counted.append([torch.cuda.memory_stats()["requested_bytes.all.allocated"], held()])
        torch.cuda.caching_allocator_delete(pointer)
    return counted


# ---- pools --------------------------------------------------------------------------------------


@program
def pools() -> Any:
    """Segments belong to the innermost pool; without splitting, each block has its own."""
    import torch

    outer, inner, whole = (
        torch.cuda.MemPool(),
        torch.cuda.MemPool(),
        torch.cuda.MemPool(no_split=True),
    )
    tensors = []
    with torch.cuda.use_mem_pool(outer):
        tensors.append(tensor(20))
        with torch.cuda.use_mem_pool(inner):
            tensors += [tensor(4), tensor(4)]
        tensors.append(tensor(20))
    with torch.cuda.use_mem_pool(whole):
        tensors += [tensor(4), tensor(4)]
    return [
        [len(segment["blocks"]) for segment in pool.snapshot()] for pool in (outer, inner, whole)
    ]


@program
def a_pool_for_when_memory_runs_out() -> Any:
    import torch

    allow(80)
    private, spare = torch.cuda.MemPool(), torch.cuda.MemPool(use_on_oom=True)
    with torch.cuda.use_mem_pool(private):
        first = tensor(40)
    with torch.cuda.use_mem_pool(spare):
        second = tensor(40)
    address = second.data_ptr()
    full = fits(40)
    del first, second
    third = tensor(30)
    return {
        "full": full,
        "spare is used": third.data_ptr() == address,
        "private is not": not fits(30),
    }


@program
def an_allocator_of_ones_own() -> Any:
    """What a pool's own allocator takes from the driver counts, and comes back with the pool."""
    import torch

    source = """
        #include <stddef.h>
        int cudaMalloc(void **, size_t); int cudaFree(void *);
        void *take(size_t size, int device, void *stream) { void *p = 0; cudaMalloc(&p, size); return p; }
        void give(void *p, size_t size, int device, void *stream) { cudaFree(p); }
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "own.so"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=source, text=True, check=True)
        own = torch.cuda.memory.CUDAPluggableAllocator(str(library), "take", "give")
        ctypes.CDLL(str(library))
    pool = torch.cuda.MemPool(own.allocator())
    with torch.cuda.use_mem_pool(pool):
        held_by_pool = tensor(40)
    taken = held()
    del held_by_pool, pool
    gc.collect()
    return [taken, held()]


# ---- graphs -------------------------------------------------------------------------------------


@program
def pools_of_graphs() -> Any:
    """Two graphs share a pool; a checkpoint of it can be restored; it ends with the graphs."""
    import torch

    stream = torch.cuda.Stream()
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(first, stream=stream):
        kept = [torch.ones(512, dtype=torch.uint8, device="cuda") for _ in range(11)][5]
    pool = first.pool()
    before = segments(pool)
    state = torch._C._cuda_getCheckpointState(0, pool)
    with torch.cuda.graph(second, stream=stream, pool=pool):
        stale = torch.ones(512, dtype=torch.uint8, device="cuda")
    shared = len(segments(pool))
    torch._C._cuda_setCheckpointPoolState(0, state, [stale.untyped_storage()._cdata], [])
    states = [[[b["size"], b["state"]] for b in segment["blocks"]] for segment in before]
    restored = [[[b["size"], b["state"]] for b in segment["blocks"]] for segment in segments(pool)]
    live = torch._C._cuda_checkPoolLiveAllocations(0, pool, {kept.data_ptr()})
    del kept, stale, first, second
    gc.collect()
    torch.cuda.empty_cache()
    return {
        "shared": shared,
        "restored": restored == states,
        "live": live,
        "end": len(segments(pool)),
    }


@program
def what_graphs_reserve() -> Any:
    """Two captures one after the other, in pools of their own and in one: MiB reserved."""
    import torch

    torch.cuda.init()
    stream = torch.cuda.Stream()
    reserved = []
    for pool in (None, torch.cuda.graph_pool_handle()):
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        before = torch.cuda.memory_reserved()
        for graph in (first, second):
            with torch.cuda.graph(graph, stream=stream, pool=pool):
                torch.zeros(1000, device="cuda")
        reserved.append((torch.cuda.memory_reserved() - before) // MIB)
        del first, second, graph
        gc.collect()
        torch.cuda.empty_cache()
    return [*reserved, held()]


@program
def pinned_memory_in_graphs() -> Any:
    """A block that a captured copy reads is not used again; one that was only freed is."""
    import torch

    with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        block = torch.zeros(8).pin_memory()
        freed = block.data_ptr()
        del block
        block = torch.zeros(8).pin_memory()
        copied = block.data_ptr()
        torch.empty(8, device="cuda").copy_(block, non_blocking=True)
        del block
        last = torch.zeros(8).pin_memory().data_ptr()
    return [copied == freed, last == copied]


# ---- history ------------------------------------------------------------------------------------


@program
def history_of_segments() -> Any:
    import torch

    set_allocator("expandable_segments:True")
    torch.cuda.memory._record_memory_history(context="all", stacks="python")
    tensor(1)
    torch.cuda.empty_cache()
    events = torch.cuda.memory._snapshot()["device_traces"][0]
    return [[event["action"], event["size"] // MIB] for event in events]


def main() -> None:
    simgpu.activate("h100")
    import torch

    assert not torch.cuda.is_initialized()
    json.dump({function.__name__: in_child("h100", function) for function in PROGRAMS}, sys.stdout)


if __name__ == "__main__":
    main()
