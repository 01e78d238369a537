"""Programs of test_simgpu_calls.py: calls of CUDA's libraries with what they answer; a script."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from simgpu_scenarios import in_child

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = ctypes.c_size_t
UNTOUCHED = 0xA5A5A5A5A5A5A5A5
MEMORY_TYPE, DEVICE_POINTER = 2, 3  # CUpointer_attribute


def library(name: str) -> ctypes.CDLL:
    gpu = simgpu.active()
    assert gpu is not None
    return ctypes.CDLL(str(next(path for path in gpu.libraries.paths if name in path.name)))


def without_a_device() -> Any:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    driver = library("simgpu-cuda.so")
    first, second = SIZE(UNTOUCHED), SIZE(UNTOUCHED)
    context = ctypes.c_void_p(UNTOUCHED)
    return {
        "memory": driver.cuMemGetInfo_v2(ctypes.byref(first), ctypes.byref(second)),
        "context": [driver.cuCtxGetCurrent(ctypes.byref(context)), context.value],
        "device": driver.cuCtxGetDevice(ctypes.byref(ctypes.c_int())),
    }


def attributes_of_host_memory() -> Any:
    driver = library("simgpu-cuda.so")
    kind, pointer = ctypes.c_uint(0xA5A5A5A5), ctypes.c_uint64(UNTOUCHED)
    names = (ctypes.c_int * 2)(MEMORY_TYPE, DEVICE_POINTER)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(kind), ctypes.addressof(pointer))
    memory = ctypes.create_string_buffer(8)
    status = driver.cuPointerGetAttributes(
        2, names, values, ctypes.c_uint64(ctypes.addressof(memory))
    )
    return [status, kind.value, pointer.value]


def callbacks() -> Any:
    driver = library("simgpu-cuda.so")
    called: list[str] = []
    plain = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: called.append("plain"))
    of_stream = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(
        lambda _stream, status, _data: called.append(f"of a stream: {status}")
    )
    statuses = [
        driver.cuLaunchHostFunc(None, plain, None),
        driver.cuStreamAddCallback(None, of_stream, None, 0),
    ]
    return [statuses, called]


def dot_products() -> Any:
    blas = library("cublas.so")
    handle, x = ctypes.c_void_p(), ctypes.c_void_p()
    blas.cublasCreate_v2(ctypes.byref(handle))
    library("cudart").cudaMalloc(ctypes.byref(x), SIZE(64))
    single, double, half = ctypes.c_float(7), ctypes.c_double(7), ctypes.c_uint32(UNTOUCHED)
    blas.cublasSdot_v2(handle, 4, x, 1, x, 1, ctypes.byref(single))
    blas.cublasDdot_v2(handle, 4, x, 1, x, 1, ctypes.byref(double))
    to_half = (ctypes.byref(half), ctypes.c_int(2), ctypes.c_int(0))  # CUDA_R_16F, in CUDA_R_32F
    blas.cublasDotEx(handle, 4, x, 2, 1, x, 2, 1, *to_half)
    return [single.value, double.value, half.value]


def host_memory_of_the_driver() -> Any:
    """cuMemCreate of memory that is not the device's (CUmemAllocationProp)."""
    gpu = simgpu.active()
    assert gpu is not None
    driver = library("simgpu-cuda.so")
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)
    before = gpu.process_bytes()
    pinned, none, of_host = 1, 0, 3  # CU_MEM_LOCATION_TYPE_HOST_NUMA
    wanted = (ctypes.c_int * 16)(pinned, none, of_host, 0)
    status = driver.cuMemCreate(ctypes.byref(ctypes.c_uint64()), SIZE(2 << 20), wanted, SIZE(0))
    return [status, gpu.process_bytes() - before]


def in_place() -> Any:
    import torch

    x = torch.full((1000,), 3.0, device="cuda")
    x.exp_()
    x.uniform_()
    y = torch.full((1000,), 3, device="cuda")
    y.bitwise_left_shift_(torch.ones_like(y))
    return [sorted(set(x.tolist())), sorted(set(y.tolist()))]


def a_plan_made_twice() -> Any:
    gpu = simgpu.active()
    assert gpu is not None
    fourier = library("cufft")
    handle, size, length = ctypes.c_int(), SIZE(), ctypes.c_longlong(1 << 20)
    fourier.cufftCreate(ctypes.byref(handle))
    before = gpu.process_bytes()
    one, many, complex_32 = ctypes.c_longlong(1), ctypes.c_longlong(4), ctypes.c_int(4)
    layout = (None, one, length, complex_32)
    for _ in range(2):
        fourier.cufftXtMakePlanMany(
            handle, 1, ctypes.byref(length), *layout, *layout, many, ctypes.byref(size), complex_32
        )  # fmt: skip
    held = gpu.process_bytes() - before
    fourier.cufftDestroy(handle)
    return [held - size.value, gpu.process_bytes() - before]


def a_card_that_is_not_understood() -> Any:
    gpu = simgpu.active()
    assert gpu is not None
    core = ctypes.CDLL(str(gpu.libraries.core))
    status = core.sim_configure(b"total_bytes=1048576;fingers=5")
    total = SIZE()
    library("simgpu-cuda.so").cuDeviceTotalMem_v2(ctypes.byref(total), 0)
    return [status, total.value]


PROGRAMS: tuple[Callable[[], Any], ...] = (
    without_a_device,
    attributes_of_host_memory,
    callbacks,
    dot_products,
    host_memory_of_the_driver,
    in_place,
    a_plan_made_twice,
    a_card_that_is_not_understood,
)


def main() -> None:
    simgpu.activate("h100")
    import torch

    assert not torch.cuda.is_initialized()
    json.dump({program.__name__: in_child("h100", program) for program in PROGRAMS}, sys.stdout)


if __name__ == "__main__":
    main()
