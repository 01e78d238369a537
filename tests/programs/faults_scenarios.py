"""Programs that meet with faults on the simulated GPU; tests look at what they return.

Run as a script: one process for all of them, one after the other, and prints one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
GIB = 2**30

gpu = simgpu.activate("rtx4090")

import pynvml  # noqa: E402
import torch  # noqa: E402


def hold(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def error_of(program: Callable[[], object]) -> list[str] | None:
    """The type of what it raises, and the first line of what that says."""
    try:
        program()
    except Exception as error:
        return [type(error).__name__, str(error).splitlines()[0]]
    return None


def nvml_device() -> Any:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def oom_at_the_third_allocation() -> Any:
    with gpu.inject("oom_at=3"):
        kept = [hold(20 * MIB), hold(20 * MIB)]
        refused = error_of(lambda: hold(20 * MIB))
        inside = error_of(lambda: hold(20 * MIB))
    after = error_of(lambda: hold(20 * MIB))
    return {"held": len(kept), "refused": refused, "again": inside, "after": after}


def oom_that_passes() -> Any:
    def retries() -> int:
        return int(torch.cuda.memory_stats().get("num_alloc_retries", 0))

    before = retries()
    with gpu.inject("oom_at=1;oom_count=1"):
        hidden = error_of(lambda: hold(30 * MIB))
    hidden_retries = retries() - before
    torch.cuda.empty_cache()
    with gpu.inject("oom_at=1;oom_count=2"):
        return {
            "hidden": hidden,
            "retries": hidden_retries,
            "raised": error_of(lambda: hold(30 * MIB)),
            "recovered": error_of(lambda: hold(30 * MIB)),
        }


def oom_above_a_size() -> Any:
    with gpu.inject("oom_above=100MiB"):
        sizes = (100 * MIB, 102 * MIB, 100 * MIB)
        return [error_of(partial(hold, size)) for size in sizes]


def oom_of_an_expandable_segment() -> Any:
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    try:
        with gpu.inject("oom_at=2"):
            return [error_of(lambda: hold(40 * MIB))]
    finally:
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")


def another_process() -> Any:
    free_before, _ = torch.cuda.mem_get_info()
    device = nvml_device()
    used_before = pynvml.nvmlDeviceGetMemoryInfo(device).used
    held = gpu.process_bytes()
    gpu.reset_peak()
    with gpu.inject("outside=20GiB"):
        try:
            hold(4 * GIB)
            message = ""
        except torch.OutOfMemoryError as error:
            message = str(error)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
        return {
            "message": message,
            "free": free_before - torch.cuda.mem_get_info()[0],
            "used": pynvml.nvmlDeviceGetMemoryInfo(device).used - used_before,
            "processes": [p.usedGpuMemory for p in processes],
            "own": [held, gpu.process_bytes(), gpu.peak_process_bytes()],
        }


def another_process_that_grows() -> Any:
    free = []
    kept = []
    with gpu.inject("outside=1GiB;outside_step=1GiB"):
        while error_of(lambda: kept.append(hold(GIB))) is None:
            free.append(torch.cuda.mem_get_info()[0] // GIB)
    return [len(kept), free]


def nvml_that_refuses() -> Any:
    hold(MIB)
    device = nvml_device()
    questions = {
        "count": pynvml.nvmlDeviceGetCount,
        "handle": nvml_device,
        "name": partial(pynvml.nvmlDeviceGetName, device),
        "memory": partial(pynvml.nvmlDeviceGetMemoryInfo, device),
        "processes": partial(pynvml.nvmlDeviceGetComputeRunningProcesses, device),
    }
    seen: dict[str, Any] = {}
    for fault in ("not_supported", "no_permission", "no_process_memory", "gpu_lost"):
        with gpu.inject(f"nvml={fault}"):
            errors = {name: error_of(ask) for name, ask in questions.items()}
            seen[fault] = {name: error[0] for name, error in errors.items() if error}
            if "processes" not in seen[fault]:
                held = [process.usedGpuMemory for process in questions["processes"]()]
                seen[fault]["held"] = held
    return seen


def what_the_meters_say_of_it() -> Any:
    """What a window measures: on a real GPU it would be the same code that asks."""
    from llmmem.measurement.window import Window
    from llmmem.nvml import driver_version, gpu_names

    seen = {}
    for fault in ("not_supported", "no_permission", "no_process_memory", "gpu_lost"):
        with gpu.inject(f"nvml={fault}"):
            with Window() as window:
                hold(10 * MIB)
            peaks, notes = window.measurement.peaks, window.measurement.notes
            seen[fault] = {
                "peaks": [peaks.allocated, peaks.process],
                "notes": notes[-2:],
                "names": len(gpu_names()),
                "driver": driver_version() is not None,
            }
    return seen


def a_launch_that_fails() -> Any:
    x = torch.ones(4, device="cuda")
    with gpu.inject("launch_error_at=2"):
        first = error_of(lambda: x + 1)
        second = error_of(lambda: x + 1)
        later = {
            "launch": error_of(lambda: x + 1),
            "synchronize": error_of(torch.cuda.synchronize),
            "allocate": error_of(lambda: hold(64 * MIB)),
            "copy": error_of(x.cpu),
            "event": error_of(torch.cuda.Event(enable_timing=True).record),
            "free memory": error_of(torch.cuda.mem_get_info),
        }
        named = pynvml.nvmlDeviceGetName(nvml_device())
    return {
        "first": first,
        "second": second,
        "later": later,
        "nvml": named,
        "afterwards": error_of(torch.cuda.synchronize),
    }


def a_gpu_that_is_lost() -> Any:
    x = torch.ones(4, device="cuda")
    device = nvml_device()
    with gpu.inject("lost_at=1"):
        before = error_of(lambda: pynvml.nvmlDeviceGetName(device))
        return {
            "before": before,
            "launch": error_of(lambda: x + 1),
            "later": error_of(torch.cuda.synchronize),
            "nvml": error_of(lambda: pynvml.nvmlDeviceGetName(device)),
        }


def a_slow_allocation() -> Any:
    with gpu.inject("allocation_seconds=1"):
        began = time.perf_counter()
        hold(50 * MIB)
        allocated = time.perf_counter()
        hold(50 * MIB)  # what the allocator has cached
        return [allocated - began, time.perf_counter() - allocated]


def faults_within_faults() -> Any:
    before = str(gpu.faults)
    with gpu.inject("oom_above=1GiB"):
        with gpu.inject(simgpu.Faults(nvml="gpu_lost")):
            inner = str(gpu.faults)
            unlimited = error_of(lambda: hold(2 * GIB))
        torch.cuda.empty_cache()
        outer = error_of(lambda: hold(2 * GIB))
        note = gpu.notes[-1]
    return [before, inner, unlimited, outer is not None, note, str(gpu.faults)]


SCENARIOS = (
    oom_at_the_third_allocation,
    oom_that_passes,
    oom_above_a_size,
    oom_of_an_expandable_segment,
    another_process,
    another_process_that_grows,
    nvml_that_refuses,
    what_the_meters_say_of_it,
    a_launch_that_fails,
    a_gpu_that_is_lost,
    a_slow_allocation,
    faults_within_faults,
)


def outcome(program: Callable[[], Any]) -> dict[str, Any]:
    torch.cuda.empty_cache()
    try:
        return {"value": program()}
    except Exception:
        return {"error": traceback.format_exc()}


def main() -> None:
    torch.ones(4, device="cuda")  # the context
    json.dump({program.__name__: outcome(program) for program in SCENARIOS}, sys.stdout)


if __name__ == "__main__":
    main()
