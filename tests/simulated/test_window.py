"""Measuring in the process itself, on a simulated GPU: exact to the byte."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20

PROGRAM = """
import json
import sys
from llmmem import simgpu
gpu = simgpu.activate("h100")
from llmmem.catalogue.gpus import find_gpu
from llmmem.measurement.window import Window, release_cached_memory

found = {}

def figures(measurement):
    return {
        "allocated": measurement.peaks.allocated,
        "reserved": measurement.peaks.reserved,
        "process": measurement.peaks.process,
        "held": measurement.held_before.allocated,
        "touched": measurement.touched,
        "source": measurement.source,
        "device": measurement.device,
    }

def hold(mib):
    return torch.empty(mib << 20, dtype=torch.uint8, device="cuda")

with Window() as before_torch:
    pass
found["before torch"] = figures(before_torch.measurement)

with Window() as first_use:
    import torch
    hold(64)
found["first use"] = figures(first_use.measurement)

with Window() as outer:
    hold(512)
    with Window() as inner:
        hold(64)
    hold(32)
found["outer"], found["inner"] = figures(outer.measurement), figures(inner.measurement)

with Window() as early:
    with Window() as part:
        hold(512)
        torch.cuda.reset_peak_memory_stats()
    hold(64)
found["reset in a part"] = figures(part.measurement)
found["reset around a part"] = figures(early.measurement)

for name, module in {"torch.cuda": torch.cuda, "torch.accelerator": torch.accelerator}.items():
    with Window() as disturbed:
        hold(512)
        # Up to PyTorch 2.8 there is one way only to reset them.
        getattr(module, "reset_peak_memory_stats", torch.cuda.reset_peak_memory_stats)()
        hold(64)
        seen_by_the_program = torch.cuda.max_memory_allocated()
    found[f"reset by {name}"] = figures(disturbed.measurement)
    assert seen_by_the_program == 64 << 20

kept = hold(128)
with Window() as holding:
    hold(64)
found["holding"] = figures(holding.measurement)
with Window() as idle:
    kept.add_(1)
found["idle"] = figures(idle.measurement)
del kept

def step():
    model = torch.nn.Linear(1024, 1024, bias=False).cuda()
    model(torch.zeros(16, 1024, device="cuda")).sum().backward()

for name in ("once", "again"):
    with Window(source_lines=True) as window:
        step()
    found[name] = figures(window.measurement)
found["places"] = [(line.where, line.bytes) for line in window.measurement.source_lines]
found["inductor"] = "torch._inductor" in sys.modules

with Window(source_lines=True) as recording_itself:
    hold(64)
    torch.cuda.memory._record_memory_history()
    torch.cuda.memory._record_memory_history(None)
found["recording itself"] = len(recording_itself.measurement.source_lines)
found["context"] = gpu.context_bytes
print(json.dumps(found))
"""


@pytest.fixture
def found(run_python: Callable[[str], str]) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(run_python(PROGRAM))
    return figures


def test_windows_see_peaks_whatever_else_happens_to_the_counters(found: dict[str, Any]) -> None:
    context = found["context"]

    nothing = found["before torch"]
    assert not nothing["touched"]
    assert nothing["allocated"] == nothing["process"] == 0
    assert (nothing["source"], nothing["device"]) == ("simulated", "sim:h100")

    # The first use of CUDA may well come inside a window.
    first = found["first use"]
    assert first["touched"]
    assert first["allocated"] == first["reserved"] == 64 * MIB
    assert first["process"] == 64 * MIB + context

    # A window inside another has a peak of its own, and takes nothing from the outer.
    assert found["inner"]["allocated"] == 64 * MIB
    assert found["outer"]["allocated"] == 512 * MIB
    assert found["outer"]["process"] == 512 * MIB + context

    # A program that resets the counters hides nothing.
    assert found["reset by torch.cuda"]["allocated"] == 512 * MIB
    assert found["reset by torch.accelerator"]["allocated"] == 512 * MIB
    assert found["reset in a part"]["allocated"] == 512 * MIB
    assert found["reset around a part"]["allocated"] == 512 * MIB

    # Figures are absolute, with what was held before said.
    assert found["holding"]["held"] == 128 * MIB
    assert found["holding"]["allocated"] == 192 * MIB
    assert not found["idle"]["touched"]
    assert found["idle"]["allocated"] == 128 * MIB

    # The same step takes the same bytes, first or second, and every byte has its line.
    assert found["once"] == found["again"]
    lines = dict(found["places"])
    assert sum(lines.values()) == found["once"]["allocated"]
    assert lines["the backward pass"] >= 4 * MIB
    assert {where.rpartition(" ")[2] for where in lines if "in" in where} <= {"step"}
    assert not found["inductor"], "to see the lines imports Inductor, which takes seconds"
    assert found["recording itself"] == 0


CARDS = """
import json
from llmmem import simgpu
simgpu.activate("h100", count=2)
import torch
from llmmem.catalogue.gpus import find_gpu
from llmmem.measurement.cap import capped
from llmmem.measurement.window import Window

torch.cuda.init()
with Window() as both, Window(0) as first, Window(1) as second:
    torch.empty(1 << 20, dtype=torch.uint8, device="cuda:0")
    torch.empty(64 << 20, dtype=torch.uint8, device="cuda:1")

def fits(size):
    try:
        torch.empty(size, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return False
    torch.cuda.empty_cache()
    return True

t4 = find_gpu("t4")
usable = (t4.total_bytes - t4.context_bytes) // 2**21 * 2**21
with capped(t4, 0):
    capped_fits = [fits(usable), fits(usable + 2**21)]
print(json.dumps({
    "both": both.measurement.peaks.allocated,
    "first": first.measurement.peaks.allocated,
    "second": second.measurement.peaks.allocated,
    "capped": capped_fits,
    "afterwards": fits(usable + 2**21),
}))
"""


def test_of_several_gpus_the_fullest_counts_and_a_smaller_card_is_a_tighter_fit(
    run_python: Callable[[str], str],
) -> None:
    assert json.loads(run_python(CARDS)) == {
        "both": 64 * MIB,
        "first": MIB,
        "second": 64 * MIB,
        "capped": [True, False],
        "afterwards": True,
    }


NVML = """
import json, os
from llmmem import simgpu
gpu = simgpu.activate("h100", count=2)
from llmmem.nvml import NvmlMeter, driver_version, gpu_count

counts = {}
for visible in ("0,1", "1", "0,7,1", "-1", ""):
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    counts[visible] = gpu_count()
del os.environ["CUDA_VISIBLE_DEVICES"]

import time
import torch
torch.cuda.init()
with NvmlMeter(0, period_s=0.001) as meter:
    held = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    reserved = torch.cuda.max_memory_reserved()
    deadline = time.monotonic() + 60  # the sampling thread may have to wait for its turn
    while (peak := meter.peak(reserved)) < reserved and time.monotonic() < deadline:
        time.sleep(0.01)
    del held
    torch.cuda.empty_cache()
    meter.reset()
    afterwards = meter.held()
print(json.dumps({
    "count": gpu_count(),
    "counts": counts,
    "driver": driver_version(),
    "peak": peak,
    "exact": gpu.peak_process_bytes(),
    "afterwards": afterwards,
    "context": gpu.context_bytes,
}))
"""


def test_nvml_tells_what_this_process_holds(run_python: Callable[[str], str]) -> None:
    found = json.loads(run_python(NVML))
    assert found["count"] == 2
    assert found["counts"] == {"0,1": 2, "1": 1, "0,7,1": 1, "-1": 0, "": 0}
    assert found["driver"]
    assert found["peak"] == found["exact"] == 64 * MIB + found["context"]
    assert found["afterwards"] == found["context"]
