"""Programs of test_simgpu_threads.py: what several threads and forks at once do to the libraries."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = ctypes.c_size_t


def library(gpu: simgpu.SimulatedGpu, name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(next(path for path in gpu.libraries.paths if name in path.name)))


@contextmanager
def in_the_background(work: Callable[[], None]) -> Iterator[None]:
    """Repeat the work in a thread of its own for as long as the block runs."""
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def forks_while_memory_is_freed() -> int:
    gpu = simgpu.activate("h100")
    runtime = library(gpu, "cudart")
    pointer = ctypes.c_void_p()

    def use_memory() -> None:
        runtime.cudaMalloc(ctypes.byref(pointer), SIZE(4096))
        runtime.cudaMemset(pointer, 1, SIZE(4096))
        runtime.cudaFree(pointer)

    ended = 0
    with in_the_background(use_memory):
        for _ in range(100):
            child = os.fork()
            if not child:
                os._exit(0)
            ended += os.waitpid(child, 0)[1] == 0
    return ended


def launches_while_kernels_are_loaded() -> list[int]:
    gpu = simgpu.activate("h100")
    core = ctypes.CDLL(str(gpu.libraries.core))

    def register(function: int) -> None:
        core.sim_register_loaded_kernel(ctypes.c_void_p(function), b"kernel", None)

    register(64)
    results = set()
    with in_the_background(
        lambda: results.update(core.sim_launch(ctypes.c_void_p(64), None) for _ in range(100))
    ):
        for function in range(128, 100_128):
            register(function)
    return sorted(results)


PROGRAMS: dict[str, Callable[[], Any]] = {
    program.__name__: program
    for program in (forks_while_memory_is_freed, launches_while_kernels_are_loaded)
}

if __name__ == "__main__":
    json.dump(PROGRAMS[sys.argv[1]](), sys.stdout)
