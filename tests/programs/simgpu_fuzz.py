"""Random programs for the simulated GPU, which hold its account to its invariants as they go.

Run as a script: imports once, forks for every program of every seed, and prints one JSON document:
for each what went wrong, or what it met with. The same seed is the same program.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

DEVICES = 2
MIB = 2**20
PAGE = 2 * MIB
POOL_STEP = 32 * MIB

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY = 0, 1, 2


def round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def library(name: str) -> ctypes.CDLL:
    gpu = simgpu.active()
    assert gpu is not None
    return ctypes.CDLL(str(next(path for path in gpu.libraries.paths if name in path.name)))


# ---- programs of PyTorch ------------------------------------------------------------------------


@dataclass
class Held:
    """What the program holds beside PyTorch's allocator: pointers, with device and bytes."""

    device: dict[int, tuple[int, int]] = field(default_factory=dict)
    managed: dict[int, tuple[int, int]] = field(default_factory=dict)
    pool: dict[int, tuple[int, int]] = field(default_factory=dict)

    def total(self, kind: str, device: int, unit: int) -> int:
        pointers = getattr(self, kind)
        return sum(round_up(size, unit) for on, size in pointers.values() if on == device)


class Program:
    """A random program, and what must be true of the account after each of its steps."""

    def __init__(self, seed: int) -> None:
        import pynvml
        import torch

        self.random = random.Random(seed)
        self.torch = torch
        self.nvml = pynvml
        pynvml.nvmlInit()
        gpu = simgpu.active()
        assert gpu is not None
        self.gpu = gpu
        self.runtime = library("cudart")
        self.tensors: list[torch.Tensor] = []
        self.pinned: list[torch.Tensor] = []
        self.held = Held()
        self.streams = {
            device: [torch.cuda.Stream(device) for _ in range(2)] for device in range(DEVICES)
        }
        # For the whole program: PyTorch itself fails when the size to split is changed on the way.
        self.settings = self.random.choice(
            [
                "",
                ",max_split_size_mb:128",
                ",roundup_power2_divisions:4",
                ",garbage_collection_threshold:0.5",
            ]
        )
        self.highest = [0] * DEVICES
        self.ooms = 0
        torch.manual_seed(seed)
        self.start()

    def start(self) -> None:
        """Begin to use the devices."""
        self.use_expandable_segments(False)
        for device in range(DEVICES):
            self.torch.ones(1, device=f"cuda:{device}")

    def steps(self) -> list[tuple[int, Callable[[], None]]]:
        """What a program can do, and how often it does."""
        return [
            (8, self.allocate),
            (6, self.free),
            (6, self.compute),
            (2, self.train),
            (2, self.copy),
            (1, self.capture),
            (1, self.allocate_far_too_much),
            (1, self.fill_up),
            (1, self.empty_cache),
            (1, self.change_settings),
            (1, self.reset_peak),
            (3, self.allocate_directly),
            (3, self.free_directly),
            (1, self.free_wrongly),
        ]

    def run(self, steps: int) -> None:
        weights, programs = zip(*self.steps(), strict=True)
        for _ in range(steps):
            step = self.random.choices(programs, weights)[0]
            device = self.random.randrange(DEVICES)
            stream = self.random.choice([None, *self.streams[device]])
            with self.torch.cuda.device(device), self.torch.cuda.stream(stream):
                try:
                    step()
                except self.torch.OutOfMemoryError:
                    self.ooms += 1
            self.check(step.__name__)
        self.end()

    # Steps.

    def size(self) -> int:
        """Bytes, over all classes of size that the caching allocator tells apart."""
        return int(2 ** self.random.uniform(0, 31))

    def some_tensor(self) -> torch.Tensor:
        cuda = [tensor for tensor in self.tensors if tensor.is_floating_point()]
        if cuda:
            return self.random.choice(cuda)
        return self.torch.ones(self.random.randrange(1, 5000), device="cuda")

    def allocate(self) -> None:
        self.tensors.append(self.torch.empty(self.size(), dtype=self.torch.uint8, device="cuda"))

    def free(self) -> None:
        for _ in range(self.random.randrange(1, 6)):
            if self.tensors:
                tensor = self.tensors.pop(self.random.randrange(len(self.tensors)))
                if self.random.random() < 0.3:
                    tensor.record_stream(self.torch.cuda.current_stream(tensor.device))

    def compute(self) -> None:
        torch, x = self.torch, self.some_tensor()
        with torch.cuda.device(x.device):
            rows = self.random.randrange(1, 600)
            square = torch.randn(rows, rows, device="cuda")
            results: list[Callable[[], Any]] = [
                lambda: square @ square,
                lambda: square.bfloat16() @ square.bfloat16(),
                square.sort,
                lambda: square.flatten().cumsum(0),
                (square > 0).nonzero,
                square.unique,
                lambda: square.softmax(-1),
                lambda: torch.cat([x.flatten(), square.flatten()]),
                lambda: x.to(self.random.choice([torch.float16, torch.float64])),
                x.sum,
                lambda: square[torch.randperm(rows, device="cuda")],
                lambda: torch.nn.functional.conv1d(square[None], square[:, :, None]),
                lambda: torch._foreach_norm([x, square]),
            ]
            result = self.random.choice(results)()
            if isinstance(result, torch.Tensor) and self.random.random() < 0.3:
                self.tensors.append(result)

    def train(self) -> None:
        torch = self.torch
        width = 8 * self.random.randrange(1, 40)
        model = torch.nn.Sequential(
            torch.nn.Embedding(500, width),
            torch.nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True),
            torch.nn.Linear(width, self.random.randrange(1, 100)),
        ).to("cuda", self.random.choice([torch.float32, torch.bfloat16]))
        kinds = (torch.optim.SGD, torch.optim.AdamW)
        optimizer = self.random.choice(kinds)(model.parameters(), lr=1e-3)
        tokens = torch.randint(0, 500, (2, self.random.randrange(2, 300)), device="cuda")
        model(tokens).float().sum().backward()
        optimizer.step()
        if self.random.random() < 0.3:
            self.tensors += [parameter.detach() for parameter in model.parameters()]

    def copy(self) -> None:
        torch, x = self.torch, self.some_tensor()
        small = x.flatten()[: self.random.randrange(1, 3 * MIB)]
        other = f"cuda:{self.random.randrange(DEVICES)}"
        if self.random.random() < 0.5:
            self.tensors.append(small.to(other, non_blocking=self.random.random() < 0.5))
            return
        on_host = small.cpu()
        if self.random.random() < 0.5:
            self.pinned = [*self.pinned[-3:], on_host.pin_memory()]
            on_host = self.pinned[-1]
        self.tensors.append(on_host.to(other, non_blocking=True))
        torch.cuda.synchronize()

    def capture(self) -> None:
        """A graph has a pool of its own, and lives as long as its result or shorter."""
        torch, graph = self.torch, self.torch.cuda.CUDAGraph()
        x = torch.ones(self.random.randrange(1, 3 * MIB), device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = (x * 2).relu()
        graph.replay()
        if self.random.random() < 0.3:
            self.tensors.append(result)

    def allocate_far_too_much(self) -> None:
        self.torch.empty(2**36, dtype=self.torch.uint8, device="cuda")

    def fill_up(self) -> None:
        """Until the card is full: the last allocations go through the allocator's own retries."""
        torch = self.torch
        filling = []
        try:
            for _ in range(30):
                size = self.random.randrange(200, 1500) * MIB
                filling.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        finally:
            self.tensors += filling[: self.random.randrange(3)]

    def empty_cache(self) -> None:
        self.torch.cuda.empty_cache()

    def change_settings(self) -> None:
        self.use_expandable_segments(self.random.random() < 0.5)
        fraction = self.random.choice([0.5, 0.9, 1.0])
        self.torch.cuda.set_per_process_memory_fraction(fraction)

    def use_expandable_segments(self, expandable: bool) -> None:
        settings = f"expandable_segments:{expandable}{self.settings}"
        self.torch._C._accelerator_setAllocatorSettings(settings)

    def reset_peak(self) -> None:
        device = self.torch.cuda.current_device()
        self.gpu.reset_peak(device)
        self.highest[device] = 0

    def allocate_directly(self) -> None:
        device = self.torch.cuda.current_device()
        kind = self.random.choice(["device", "managed", "pool"])
        pointer, size = ctypes.c_void_p(), ctypes.c_size_t(self.size())
        arguments = [ctypes.byref(pointer), size]
        if kind == "device":
            status = self.runtime.cudaMalloc(*arguments)
        elif kind == "managed":
            status = self.runtime.cudaMallocManaged(*arguments, ctypes.c_uint(1))
        else:
            status = self.runtime.cudaMallocAsync(*arguments, None)
        if status == SUCCESS:
            assert pointer.value, f"{kind}: no pointer"
            getattr(self.held, kind)[pointer.value] = device, size.value
        else:
            assert (status, pointer.value) == (OUT_OF_MEMORY, None), f"{kind}: {status}"
            self.runtime.cudaGetLastError()
            self.ooms += 1

    def free_directly(self) -> None:
        kind = self.random.choice(["device", "managed", "pool"])
        pointers = getattr(self.held, kind)
        if pointers:
            pointer = self.random.choice(list(pointers))
            del pointers[pointer]
            self.release(kind, pointer)

    def release(self, kind: str, pointer: int) -> None:
        if kind == "pool":
            status = self.runtime.cudaFreeAsync(ctypes.c_void_p(pointer), None)
        else:
            status = self.runtime.cudaFree(ctypes.c_void_p(pointer))
        assert status == SUCCESS, f"cudaFree of {kind}: {status}"

    def free_wrongly(self) -> None:
        """Pointers that are nobody's, inside of something, or PyTorch's but not where it starts."""
        wrong = [8, 2**60, id(self)]
        wrong += [pointer + 256 for pointer in self.held.device]
        for pointer in wrong:
            status = self.runtime.cudaFree(ctypes.c_void_p(pointer))
            assert status == INVALID_VALUE, f"free of {pointer:#x}: {status}"
        self.runtime.cudaGetLastError()

    # What must be true.

    def check(self, step: str) -> None:
        for device in range(DEVICES):
            seen, expected = self.figures(device)
            assert seen == expected, f"after {step}, device {device}: {seen} is not {expected}"
            peak = self.gpu.peak_process_bytes(device)
            self.highest[device] = max(self.highest[device], expected["process"])
            assert peak >= self.highest[device], f"after {step}: peak {peak} of {self.highest}"

    def pytorch_holds(self, device: int) -> tuple[int, int]:
        """Bytes that PyTorch's allocator has taken from the device, and bytes in use."""
        segments = [s for s in self.torch.cuda.memory_snapshot() if s["device"] == device]
        blocks = [block for segment in segments for block in segment["blocks"]]
        in_use = (block["size"] for block in blocks if block["state"] == "active_allocated")
        return sum(segment["total_size"] for segment in segments), sum(in_use)

    def pool_holds(self, device: int) -> int:
        """Bytes that the runtime's own pool has taken from the device."""
        return round_up(self.held.total("pool", device, 512), POOL_STEP)

    def figures(self, device: int) -> tuple[dict[str, int], dict[str, int]]:
        """What the account says in its many ways, and what it must say."""
        torch, total = self.torch, self.gpu.gpu.total_bytes
        free, of = torch.cuda.mem_get_info(device)
        handle = self.nvml.nvmlDeviceGetHandleByIndex(device)
        memory = self.nvml.nvmlDeviceGetMemoryInfo(handle, version=self.nvml.nvmlMemory_v2)
        own = [
            process.usedGpuMemory
            for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            if process.pid == os.getpid()
        ]
        reserved, allocated = self.pytorch_holds(device)
        mapped = self.gpu.context_bytes + reserved + self.pool_holds(device)
        mapped += self.held.total("device", device, PAGE)
        # Managed memory gives way to device memory.
        managed = min(self.held.total("managed", device, PAGE), total - mapped)
        process = mapped + managed
        seen = {
            "process": self.gpu.process_bytes(device),
            "reserved": torch.cuda.memory_reserved(device),
            "allocated": torch.cuda.memory_allocated(device),
            "free": free,
            "total": of,
            "NVML used": memory.used,
            "NVML process": sum(own),
        }
        expected = {
            "process": process,
            "reserved": reserved,
            "allocated": allocated,
            "free": total - process,
            "total": total,
            "NVML used": process,
            "NVML process": process,
        }
        return seen, expected

    def end(self) -> None:
        """Everything goes: the contexts are left."""
        self.tensors.clear()
        self.pinned.clear()
        for kind in ("device", "managed", "pool"):
            pointers = getattr(self.held, kind)
            while pointers:
                self.release(kind, pointers.popitem()[0])
        gc.collect()
        for device in range(DEVICES):
            self.torch.cuda.synchronize(device)
        self.torch._C._cuda_clearCublasWorkspaces()
        self.torch.cuda.empty_cache()
        self.check("the end")
        left = [self.gpu.process_bytes(device) for device in range(DEVICES)]
        assert left == [self.gpu.context_bytes] * DEVICES, f"left at the end: {left}"


class PoolProgram(Program):
    """The same with ``backend:cudaMallocAsync``: PyTorch's memory comes from the runtime's pool."""

    def steps(self) -> list[tuple[int, Callable[[], None]]]:
        return [(weight, step) for weight, step in super().steps() if step != self.capture]

    def use_expandable_segments(self, expandable: bool) -> None:
        """They belong to the native allocator."""

    def pytorch_holds(self, device: int) -> tuple[int, int]:
        """One pool for both: PyTorch's figures are those of all that the pool holds."""
        reserved = self.torch.cuda.memory_reserved(device)
        allocated = self.torch.cuda.memory_allocated(device)
        direct = self.held.total("pool", device, 512)
        assert reserved % POOL_STEP == 0, f"the pool holds {reserved}"
        assert reserved >= allocated >= direct, f"pool: {reserved}, {allocated}, {direct}"
        return reserved, allocated

    def pool_holds(self, device: int) -> int:
        return 0


def torch_program(seed: int) -> int:
    """Returns how often memory ran out."""
    import torch

    kind = Program if torch.cuda.get_allocator_backend() == "native" else PoolProgram
    program = kind(seed)
    program.run(120)
    return program.ooms


# ---- programs of the driver's memory management -------------------------------------------------


class Properties(ctypes.Structure):
    """CUmemAllocationProp: pinned memory of a device."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location", ctypes.c_int),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


@dataclass
class Physical:
    """Memory of the model: bytes, handles that the program holds, and mappings."""

    size: int
    handles: int = 1
    mappings: int = 0


class DriverProgram:
    """Addresses and physical memory apart, used rightly and wrongly, beside a model of them.

    Sizes of the model are pages.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        gpu = simgpu.active()
        assert gpu is not None
        self.gpu = gpu
        self.driver = library("cuda.so.1")
        self.ranges: dict[int, int] = {}
        self.physical: dict[int, Physical] = {}
        self.mappings: dict[int, tuple[int, int]] = {}
        self.refused = 0

    def run(self, steps: int) -> None:
        programs = [self.reserve, self.create, self.map, self.map, self.unmap, self.unmap]
        programs += [self.release, self.give_back_addresses, self.retain]
        self.driver.cuMemGetInfo_v2(*(ctypes.byref(ctypes.c_size_t()) for _ in range(2)))
        for _ in range(steps):
            step = self.random.choice(programs)
            step()
            self.check(step.__name__)
        self.end()

    def call(self, name: str, is_possible: bool, *arguments: Any) -> bool:
        """Whether the driver does it, which it must if and only if it is possible."""
        status = getattr(self.driver, name)(*arguments)
        expected = SUCCESS if is_possible else INVALID_VALUE
        assert status == expected, f"{name}{arguments}: {status}, not {expected}"
        self.refused += not is_possible
        return is_possible

    # Steps.

    def reserve(self) -> None:
        pages, pointer = self.random.randrange(1, 20), ctypes.c_uint64()
        size = ctypes.c_size_t(pages * PAGE)
        nothing = [ctypes.c_size_t(0), ctypes.c_uint64(0), ctypes.c_uint64(0)]
        self.call("cuMemAddressReserve", True, ctypes.byref(pointer), size, *nothing)
        assert not any(
            pointer.value < start + length * PAGE and start < pointer.value + pages * PAGE
            for start, length in self.ranges.items()
        )
        self.ranges[pointer.value] = pages

    def give_back_addresses(self) -> None:
        if not self.ranges:
            return
        start = self.random.choice(list(self.ranges))
        pages = self.random.choice([self.ranges[start], self.ranges[start], 1])
        is_possible = pages == self.ranges[start] and not self.mapped_in(start, pages)
        arguments = ctypes.c_uint64(start), ctypes.c_size_t(pages * PAGE)
        if self.call("cuMemAddressFree", is_possible, *arguments):
            del self.ranges[start]

    def create(self) -> None:
        pages, handle = self.random.randrange(1, 8), ctypes.c_uint64()
        properties = Properties(type=1, location_type=1, location=0)
        size = ctypes.c_size_t(pages * PAGE - self.random.choice([0, 0, 0, 4096]))
        arguments = ctypes.byref(handle), size, ctypes.byref(properties), ctypes.c_uint64(0)
        if self.call("cuMemCreate", size.value % PAGE == 0, *arguments):
            assert handle.value not in self.physical
            self.physical[handle.value] = Physical(pages)

    def release(self) -> None:
        handle = self.some_handle()
        memory = self.physical.get(handle)
        is_held = memory is not None and memory.handles > 0
        if self.call("cuMemRelease", is_held, ctypes.c_uint64(handle)) and memory:
            memory.handles -= 1
            self.forget_unused(handle)

    def retain(self) -> None:
        """A handle of what is mapped somewhere."""
        start = self.some_address()
        at = next((m for m, (n, _) in self.mappings.items() if m <= start < m + n * PAGE), None)
        handle = ctypes.c_uint64()
        arguments = ctypes.byref(handle), ctypes.c_void_p(start)
        if self.call("cuMemRetainAllocationHandle", at is not None, *arguments) and at:
            assert handle.value == self.mappings[at][1]
            self.physical[handle.value].handles += 1

    def map(self) -> None:
        handle, start = self.some_handle(), self.some_address()
        memory = self.physical.get(handle)
        pages = memory.size if memory else 1
        is_reserved = any(
            at <= start and start + pages * PAGE <= at + length * PAGE
            for at, length in self.ranges.items()
        )
        is_held = memory is not None and memory.handles > 0
        is_possible = is_held and is_reserved and not self.mapped_in(start, pages)
        arguments = ctypes.c_uint64(start), ctypes.c_size_t(pages * PAGE), ctypes.c_size_t(0)
        more = ctypes.c_uint64(handle), ctypes.c_uint64(0)
        if self.call("cuMemMap", is_possible, *arguments, *more) and memory:
            self.mappings[start] = pages, handle
            memory.mappings += 1

    def unmap(self) -> None:
        """One or several mappings, or what is not a number of whole mappings."""
        start = self.random.choice([*self.mappings, self.some_address()])
        pages = self.random.choice([self.mappings.get(start, (1, 0))[0], 1, 3, 8])
        inside, at = [], start
        while at in self.mappings and at < start + pages * PAGE:
            inside.append(at)
            at += self.mappings[at][0] * PAGE
        is_possible = bool(inside) and at == start + pages * PAGE
        arguments = ctypes.c_uint64(start), ctypes.c_size_t(pages * PAGE)
        if self.call("cuMemUnmap", is_possible, *arguments):
            for mapping in inside:
                handle = self.mappings.pop(mapping)[1]
                self.physical[handle].mappings -= 1
                self.forget_unused(handle)

    # The model.

    def some_handle(self) -> int:
        return self.random.choice([*self.physical, *self.physical, 0, 12345678])

    def some_address(self) -> int:
        if not self.ranges:
            return PAGE
        start = self.random.choice(list(self.ranges))
        return start + PAGE * self.random.randrange(self.ranges[start])

    def mapped_in(self, start: int, pages: int) -> bool:
        return any(
            at < start + pages * PAGE and start < at + length * PAGE
            for at, (length, _) in self.mappings.items()
        )

    def forget_unused(self, handle: int) -> None:
        memory = self.physical[handle]
        if not memory.handles and not memory.mappings:
            del self.physical[handle]

    def check(self, step: str) -> None:
        pages = sum(memory.size for memory in self.physical.values())
        held = self.gpu.process_bytes() - self.gpu.context_bytes
        assert held == pages * PAGE, f"after {step}: {held} bytes are not {pages} pages"

    def end(self) -> None:
        """Unmapping and releasing in any order gives everything back."""
        for start, (pages, handle) in self.mappings.items():
            self.driver.cuMemUnmap(ctypes.c_uint64(start), ctypes.c_size_t(pages * PAGE))
            self.physical[handle].mappings -= 1
        for handle, memory in self.physical.items():
            for _ in range(memory.handles):
                self.driver.cuMemRelease(ctypes.c_uint64(handle))
        left = self.gpu.process_bytes() - self.gpu.context_bytes
        assert left == 0, f"left at the end: {left}"


def driver_program(seed: int) -> int:
    """Returns how many calls were refused."""
    program = DriverProgram(seed)
    program.run(1500)
    return program.refused


# ---- running them -------------------------------------------------------------------------------

PROGRAMS: dict[str, Callable[[int], int]] = {"torch": torch_program, "driver": driver_program}


def in_child(kind: str, seed: int) -> dict[str, Any]:
    """The program of a seed in a process of its own: what went wrong, or what it met with."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer: dict[str, Any] = {"seed": seed, "kind": kind}
        try:
            answer["met"] = PROGRAMS[kind](seed)
        except BaseException:
            answer["error"] = traceback.format_exc()
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"seed": seed, "kind": kind, "error": f"status {status}"}


def main() -> None:
    simgpu.activate("t4", count=DEVICES)
    import torch
    import torch._dynamo  # what every optimizer imports at its first step

    assert not torch.cuda.is_initialized()
    seeds = [int(text) for text in sys.argv[1:]]
    json.dump([in_child(kind, seed) for seed in seeds for kind in PROGRAMS], sys.stdout)


if __name__ == "__main__":
    main()
