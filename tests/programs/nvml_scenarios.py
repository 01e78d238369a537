"""Programs that ask NVML on the simulated GPU; tests look at what they return.

Run as a script: forks for every scenario, and prints one JSON document.
"""

from __future__ import annotations

import ctypes
import inspect
import io
import json
import os
import re
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pynvml
from simgpu_scenarios import in_child  # beside this script

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 2**20
GIB = 2**30


def devices() -> list[Any]:
    pynvml.nvmlInit()
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def name_of_error(ask: Callable[[], Any]) -> str | None:
    try:
        ask()
    except pynvml.NVMLError as error:
        return type(error).__name__
    return None


def hold(size: int, device: str = "cuda:0") -> Any:
    import torch

    return torch.empty(size, dtype=torch.uint8, device=device)


# ---- single functions ---------------------------------------------------------------------------


def questions() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """All functions of the bindings that ask for something of one device and take nothing else."""
    for name, function in vars(pynvml).items():
        if not name.startswith("nvmlDeviceGet") or name.startswith("nvmlDeviceGetHandle"):
            continue
        parameters = inspect.signature(function).parameters.values()
        if len([p for p in parameters if p.default is inspect.Parameter.empty]) == 1:
            yield name, function


def every_question() -> Any:
    """What of the bindings' functions is not answered, and how; and what was answered unset."""
    device = devices()[0]
    hold(MIB)
    library = ctypes.CDLL("libnvidia-ml.so.1")
    answered, errors, unset = [], {}, []
    for name, ask in questions():
        error = name_of_error(lambda ask=ask: ask(device))
        if error is None:
            answered.append(name)
        else:
            errors[name] = error
        source = inspect.getsource(inspect.unwrap(ask))
        for symbol in re.findall(r'_nvmlGetFunctionPointer\("(nvml\w+)"', source):
            function = getattr(library, symbol, None)
            outputs = [ctypes.create_string_buffer(b"\xa5" * 4096) for _ in range(3)]
            if function is not None and function(device, *outputs) == 0:
                unset += [symbol] if outputs[0].raw[:4096] == b"\xa5" * 4096 else []
    return {"answered": answered, "errors": errors, "unset": unset}


def identity() -> Any:
    device = devices()[0]
    place = pynvml.nvmlDeviceGetPciInfo(device)
    extended = pynvml.nvmlPciInfoExt_v1_t(version=pynvml.nvmlPciInfoExt_v1)
    pynvml.nvmlDeviceGetPciInfoExt(device, ctypes.byref(extended))
    return {
        "brand": pynvml.nvmlDeviceGetBrand(device),
        "architecture": pynvml.nvmlDeviceGetArchitecture(device),
        "cores": pynvml.nvmlDeviceGetNumGpuCores(device),
        "bus width": pynvml.nvmlDeviceGetMemoryBusWidth(device),
        "serial": name_of_error(lambda: pynvml.nvmlDeviceGetSerial(device)),
        "mig": name_of_error(lambda: pynvml.nvmlDeviceGetMigMode(device)),
        "mig device": name_of_error(lambda: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)),
        "vendor": [place.pciDeviceId & 0xFFFF, extended.pciDeviceId & 0xFFFF],
        "bus id": [place.busId, extended.busId],
        "driver": [pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetDriverBranch().branch],
        "cuda": pynvml.nvmlSystemGetCudaDriverVersion(),
        "processors": sum(
            bin(word).count("1") for word in pynvml.nvmlDeviceGetCpuAffinity(device, 4)
        ),
        "program": pynvml.nvmlSystemGetProcessName(os.getpid()),
        "field": pynvml.nvmlDeviceGetFieldValues(device, [83])[0].nvmlReturn,
    }


def two_devices() -> Any:
    first, second = devices()
    handle = ctypes.cast(first, ctypes.c_void_p).value, ctypes.cast(second, ctypes.c_void_p).value

    def number(found: Any) -> int:
        return handle.index(ctypes.cast(found, ctypes.c_void_p).value)

    uuid = pynvml.nvmlDeviceGetUUID(second)
    return {
        "handles": [
            number(pynvml.nvmlDeviceGetHandleByUUID(uuid)),
            number(pynvml.nvmlDeviceGetHandleByUUIDV(uuid.encode(), pynvml.NVML_UUID_TYPE_ASCII)),
            number(pynvml.nvmlDeviceGetHandleByPciBusId(pynvml.nvmlDeviceGetPciInfo(second).busId)),
            number(pynvml.nvmlDeviceGetHandleBySerial(pynvml.nvmlDeviceGetSerial(second))),
        ],
        "ancestors": [
            pynvml.nvmlDeviceGetTopologyCommonAncestor(first, other) for other in (first, second)
        ],
        "nearest": [
            number(found)
            for found in pynvml.nvmlDeviceGetTopologyNearestGpus(
                first, pynvml.NVML_TOPOLOGY_HOSTBRIDGE
            )
        ],
        "all": len(pynvml.nvmlSystemGetTopologyGpuSet(0)),
        "peers": [pynvml.nvmlDeviceGetP2PStatus(first, second, what) for what in (0, 1, 2)],
        "beyond": [
            name_of_error(lambda: pynvml.nvmlDeviceGetHandleByIndex(2)),
            name_of_error(lambda: pynvml.nvmlDeviceGetHandleByUUID("GPU-none")),
            name_of_error(lambda: pynvml.nvmlDeviceGetName(pynvml.c_nvmlDevice_t())),
        ],
    }


def before_and_after_use() -> Any:
    ask = pynvml.nvmlSystemGetDriverVersion
    # The bindings look before the library does; once it is open they leave it to the library.
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    still_open = name_of_error(ask)
    pynvml.nvmlShutdown()
    return [still_open, name_of_error(ask), name_of_error(pynvml.nvmlShutdown)]


# ---- processes ----------------------------------------------------------------------------------


def allocate(size: int) -> None:
    """Without PyTorch, which does not use CUDA in the fork of a process that does."""
    gpu = simgpu.active()
    assert gpu is not None
    runtime = next(path for path in gpu.libraries.paths if "cudart" in path.name)
    assert (
        ctypes.CDLL(str(runtime)).cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(size))
        == 0
    )


def seen_by_a_child(program: Callable[[], None] = lambda: None) -> list[Any]:
    """The processes on the first device as a forked child sees them, after it did something."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            program()
            device = devices()[0]
            found = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
            used = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2).used
            who = [{os.getpid(): "child", os.getppid(): "parent"}[p.pid] for p in found]
            with os.fdopen(writer, "w") as pipe:
                json.dump([who, [p.usedGpuMemory for p in found], used], pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer: list[Any] = json.load(pipe)
    # It has ended, and nobody has asked for its status.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    left = [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(devices()[0])]
    assert left in ([], [os.getpid()]), left
    os.waitpid(child, 0)
    return answer


def a_family_of_processes() -> Any:
    nobody = seen_by_a_child()
    child_alone = seen_by_a_child(lambda: allocate(10 * MIB))
    kept = hold(100 * MIB)
    parent = seen_by_a_child()
    both = seen_by_a_child(lambda: allocate(10 * MIB))
    del kept
    import torch

    torch.cuda.empty_cache()
    return {
        "nobody": nobody,
        "child": child_alone,
        "parent": parent,
        "both": both,
        "after": seen_by_a_child(),
    }


# ---- programs that others wrote -----------------------------------------------------------------


def nvitop_shows() -> Any:
    from nvitop.cli import main as nvitop

    kept = hold(GIB, "cuda:1")
    printed = io.StringIO()
    sys.argv = ["nvitop", "--once", "--ascii"]
    with redirect_stdout(printed):
        nvitop()
    del kept
    return [printed.getvalue(), os.getpid()]


def nvitop_collects() -> Any:
    from nvitop import Device

    kept = hold(GIB, "cuda:1")
    first, second = Device.all()
    processes = second.processes()
    del kept
    return {
        "used": [first.memory_used(), second.memory_used()],
        "total": first.memory_total(),
        "processes": [[pid, process.gpu_memory()] for pid, process in processes.items()],
        "snapshot": second.as_snapshot().memory_used,
    }


def gpustat_shows() -> Any:
    import gpustat

    kept = hold(GIB, "cuda:1")
    printed = io.StringIO()
    found = gpustat.GPUStatCollection.new_query()
    found.print_formatted(printed, no_color=True, show_pid=True)
    del kept
    return {
        "printed": printed.getvalue(),
        "used": [gpu.memory_used for gpu in found],
        "processes": [[p["pid"], p["gpu_memory_usage"]] for p in found[1].processes or []],
    }


SCENARIOS: dict[str, tuple[str, Callable[[], Any]]] = {
    "every question h100": ("h100", every_question),
    "every question rtx4090": ("rtx4090", every_question),
    "identity h100": ("h100", identity),
    "identity rtx4090": ("rtx4090", identity),
    "two devices": ("h100 x2", two_devices),
    "before and after use": ("h100", before_and_after_use),
    "a family of processes": ("h100", a_family_of_processes),
}
TOOLS: dict[str, dict[str, Callable[[], Any]]] = {
    "nvitop": {"nvitop shows": nvitop_shows, "nvitop collects": nvitop_collects},
    "gpustat": {"gpustat shows": gpustat_shows},
}


def main() -> None:
    simgpu.activate("h100")
    import torch  # noqa: F401

    scenarios = dict(SCENARIOS)
    for tool, programs in TOOLS.items():
        if find_spec(tool) is not None:
            scenarios |= {name: ("h100 x2", program) for name, program in programs.items()}
    json.dump({name: in_child(*scenario) for name, scenario in scenarios.items()}, sys.stdout)


if __name__ == "__main__":
    main()
