"""What the simulated GPU costs: to build and start, for each CUDA call and operator, and in memory.

    python benchmarks/simgpu_cost.py

Writes ``reports/simgpu-cost.md``. Every time is the median of several; run it on an idle machine. Start-up
and operators are told in processor time, of which other programs take less than of the clock's.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from llmmem import simgpu
from llmmem.simgpu.compilers import compiler
from llmmem.units import MIB
from llmmem.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable

CARD = "h100"
CALLS = 20_000
REPEATS = 15
ACTIVATIONS = 7
OPERATORS = 2_000
LAYERS = 200
REPORT = Path(__file__).parents[1] / "reports" / "simgpu-cost.md"

ACTIVATE = f"""
import time
from llmmem import simgpu
start = time.perf_counter()
simgpu.activate({CARD!r})
print(time.perf_counter() - start)
"""


FIRST_TENSOR = f"""
from llmmem import simgpu
simgpu.activate({CARD!r})
import torch
torch.zeros(1, device="cuda")
"""


def seconds_to_first_tensor() -> float:
    """Processor seconds of a process that imports PyTorch and makes one tensor on the device."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", FIRST_TENSOR], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def seconds_to_activate(cache: Path | None = None) -> float:
    """Seconds that `simgpu.activate` takes in a new process; with a new cache it compiles."""
    environment = dict(os.environ)
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", ACTIVATE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def compiled() -> ctypes.CDLL:
    """The timing loops of ``simgpu_cost.c``, bound to the libraries that are loaded."""
    cc = compiler()
    assert cc is not None
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "cost.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run([cc, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        loops = ctypes.CDLL(str(library))
    loops.name.restype = ctypes.c_char_p
    loops.measure.argtypes, loops.measure.restype = [ctypes.c_int, ctypes.c_long], ctypes.c_double
    return loops


def nanoseconds_by_call() -> dict[str, tuple[float, float]]:
    """Median nanoseconds of each call: in a process that holds nothing, and in one that holds much."""
    loops = compiled()
    loops.prepare()
    alone = _medians(loops)
    loops.fill()
    crowded = _medians(loops)
    return {name: (took, crowded[name]) for name, took in alone.items()}


def _medians(loops: ctypes.CDLL) -> dict[str, float]:
    found = {}
    for i in range(loops.count()):
        times = [loops.measure(i, CALLS) for _ in range(REPEATS)]
        assert min(times) >= 0, f"{loops.name(i).decode()} fails"
        found[loops.name(i).decode()] = statistics.median(times)
    return found


def microseconds_by_operator() -> dict[str, float]:
    """Median microseconds of processor time of what a program calls in PyTorch."""
    import torch

    torch.set_num_threads(1)  # those of OpenMP wait busily
    known = torch.arange(16, device="cuda")
    unknown = torch.randn(1024, 1024, device="cuda")
    layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(LAYERS))).to("cuda")
    batch = torch.randn(8, 64, device="cuda")
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "an addition on the host, 16 integers": (OPERATORS, partial(torch.add, known.cpu(), 1)),
        "an addition, 16 known integers": (OPERATORS, partial(torch.add, known, 1)),
        "an addition, 1,048,576 unknown floats": (OPERATORS, partial(torch.add, unknown, unknown)),
        "a product of matrices, 1024 x 1024": (OPERATORS, partial(torch.mm, unknown, unknown)),
        "torch.empty": (OPERATORS, partial(torch.empty, 1024, device="cuda")),
        f"forward and backward, {LAYERS} linear layers": (
            10,
            lambda: layers(batch).sum().backward(),
        ),
    }
    return {name: statistics.median(_microseconds(*case)) for name, case in cases.items()}


def _microseconds(calls: int, call: Callable[[], object]) -> list[float]:
    times = []
    for number in range(REPEATS + 1):
        start = time.process_time()
        for _ in range(calls):
            call()
        if number:  # the first loads and caches
            times.append(1e6 * (time.process_time() - start) / calls)
    return times


def resident_bytes() -> int:
    """Host memory of this process that is present."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth_by_use() -> dict[str, tuple[int, int]]:
    """Bytes by which the process grows in 10,000 uses, and in 100,000 more."""
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    runtime = ctypes.CDLL(str(next(p for p in gpu.libraries.paths if "cudart" in p.name)))
    held: list[torch.Tensor] = []

    def allocate_and_free(i: int) -> None:
        pointer = ctypes.c_void_p()
        runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(1 + i * 37 % (4 * MIB)))
        runtime.cudaFree(pointer)

    def keep_fifty_tensors(i: int) -> None:
        held.append(torch.empty(1 + i * 7919 % (2 * MIB), dtype=torch.uint8, device="cuda"))
        if len(held) > 50:
            held.pop(i * 31 % 50)

    def fill_and_compute(i: int) -> None:
        held[i % 50] = torch.full((1 + i % 1000,), i, device="cuda") + 1

    def send_and_compute(i: int) -> None:
        (torch.tensor([i, i + 1], device="cuda") + 1).sum().item()

    uses: tuple[Callable[[int], None], ...] = (
        allocate_and_free,
        keep_fifty_tensors,
        fill_and_compute,
        send_and_compute,
    )
    found = {}
    for use in uses:
        sizes = []
        for start, end in ((0, 1000), (1000, 11_000), (11_000, 111_000)):
            for i in range(start, end):
                use(i)
            sizes.append(resident_bytes())
        name = use.__name__.replace("_", " ")
        found[name] = (sizes[1] - sizes[0], sizes[2] - sizes[1])
    return found


def machine() -> str:
    """The class of the machine."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def report() -> str:
    """The whole report, measured now."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        build = seconds_to_activate(Path(cache))
        with_start = time.perf_counter() - start
    activation = statistics.median(seconds_to_activate() for _ in range(ACTIVATIONS))
    first_tensor = statistics.median(seconds_to_first_tensor() for _ in range(ACTIVATIONS))
    simgpu.activate(CARD)
    calls = nanoseconds_by_call()
    operators = microseconds_by_operator()
    growth = growth_by_use()
    versions = ", ".join(f"{name} {found}" for name, found in library_versions().items() if found)
    return "\n".join(
        [
            "# What the simulated GPU costs",
            "",
            "Made by `python benchmarks/simgpu_cost.py`.",
            "",
            f"- machine: {machine()}",
            f"- versions: {versions}",
            f"- card: {CARD}",
            "",
            "## Start",
            "",
            tabulate(
                [
                    ["to build and activate, once on a machine", f"{build:.1f} s"],
                    ["the same, with the start of Python", f"{with_start:.1f} s"],
                    [f"to activate once built (median of {ACTIVATIONS})", f"{activation:.3f} s"],
                    [
                        "to import PyTorch and make one tensor, in a process of its own "
                        f"(median of {ACTIVATIONS}, processor time)",
                        f"{first_tensor:.2f} s",
                    ],
                ],
                headers=["what", "time"],
                tablefmt="github",
            ),
            "",
            "## Calls",
            "",
            f"Median of {REPEATS} times {CALLS:,} calls from C: in a process that holds nothing, and in",
            "one that holds 500 segments and 4,000 small tensors with known values.",
            "",
            tabulate(
                [
                    [name, f"{alone / 1000:.3f} µs", f"{crowded / 1000:.3f} µs"]
                    for name, (alone, crowded) in calls.items()
                ],
                headers=["call", "alone", "crowded"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            "## Operators",
            "",
            "What a program calls in PyTorch, from Python: median microseconds of processor time, with",
            "what PyTorch itself takes. Values that are known are followed on the host.",
            "",
            tabulate(
                [[name, f"{took:,.1f} µs"] for name, took in operators.items()],
                headers=["call", "time"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            "## Host memory",
            "",
            "How much larger the process is after 10,000 uses, and after 100,000 more.",
            "",
            tabulate(
                [
                    [name, f"{first / MIB:.2f} MiB", f"{more / MIB:.2f} MiB"]
                    for name, (first, more) in growth.items()
                ],
                headers=["use", "10,000", "100,000 more"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
        ]
    )


if __name__ == "__main__":
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report(), encoding="utf-8")
    print(f"written: {REPORT}")
