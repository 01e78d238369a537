"""What a trace costs and leaves alone: host memory, the network, operators that are not asked twice."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import torch

from llmmem.catalogue.gpus import find_gpu
from llmmem.estimation.trace import trace
from llmmem.estimation.tracing.meta_cache import MetaCache
from llmmem.setups import Setup
from llmmem.units import GIB

aten = torch.ops.aten

# Memory of the libraries themselves is taken by a first trace of a small model.
HOST_MEMORY = """
import socket
from dataclasses import replace
from pathlib import Path

class NoSocket:
    def __init__(self, *args, **kwargs):
        raise AssertionError("a trace asked for a socket")

socket.socket = NoSocket
socket.getaddrinfo = NoSocket

from llmmem.catalogue.gpus import find_gpu
from llmmem.estimation.trace import trace
from llmmem.setups import Setup

def peak_kib(**keys):
    result = trace(Setup(**keys), replace(find_gpu("h100"), total_bytes=1 << 45))
    assert result.outcome == "ok", result.message
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

before = peak_kib(model="EleutherAI/pythia-70m", method="qlora", seq_len=128)
for method in ("full", "qlora"):
    print(peak_kib(model="meta-llama/Llama-3.1-405B", method=method, steps=1) - before)
"""


def test_405b_takes_less_than_1_gib_of_host_memory_and_no_network() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOST_MEMORY], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for added in done.stdout.split():
        assert int(added) * 1024 < GIB


def test_remembered_outputs_are_laid_out_as_the_operator_does() -> None:
    compute = MetaCache()
    tall = torch.empty(8, 4, dtype=torch.bfloat16, device="meta").t()
    for func, args in (
        (aten.mul.Tensor, (tall, 2)),
        (aten.mul.Tensor, (tall, torch.empty(4, 8, device="meta"))),
        (aten.eq.Scalar, (tall, 1)),
        (aten.cat.default, ([tall, tall], 1)),
        (aten.sum.dim_IntList, (tall, [0])),
        (aten.add.Tensor, (torch.empty(3, dtype=torch.int64, device="meta"), 1)),
        (aten.add.Tensor, (torch.empty(3, dtype=torch.int64, device="meta"), 1.0)),
    ):
        expected = func(*args)
        first, second = compute(func, args, {}), compute(func, args, {})
        for out in (first, second):
            assert (out.shape, out.stride(), out.dtype) == (
                expected.shape,
                expected.stride(),
                expected.dtype,
            )
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata


def test_an_operator_that_gives_its_input_again_is_asked_every_time() -> None:
    compute = MetaCache()
    for _ in range(2):
        tensor = torch.empty(8, 4, device="meta")
        view = compute(aten._unsafe_view.default, (tensor, [32]), {})
        assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata


class Counting:
    """An operator that counts how often it is run."""

    def __init__(self, func: Any) -> None:
        self._schema = func._schema
        self._func = func
        self.runs = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self._func(*args, **kwargs)


def test_a_tensor_without_dimensions_is_remembered_beside_its_own_dtype_only() -> None:
    vector = torch.empty(8, device="meta")
    for dtype, runs in ((torch.float32, 1), (torch.float64, 3)):
        add, compute = Counting(aten.add.Tensor), MetaCache()
        for _ in range(3):
            out = compute(add, (vector, torch.empty((), dtype=dtype, device="meta")), {})
            assert (out.shape, out.dtype) == (vector.shape, torch.float32)
        assert add.runs == runs


def test_a_trace_collects_garbage_once_and_leaves_the_collector_as_it_was() -> None:
    setup = Setup(model="EleutherAI/pythia-70m", method="lora", seq_len=128)
    collected: list[int] = []

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            collected.append(about["generation"])

    trace(setup, find_gpu("h100"))  # what it imports is collected too
    gc.collect()
    gc.callbacks.append(note)
    try:
        trace(setup, find_gpu("h100"))
        assert collected == [0]
        assert gc.isenabled()
        gc.disable()
        trace(setup, find_gpu("h100"))
        assert collected == [0]
        assert not gc.isenabled()
    finally:
        gc.callbacks.remove(note)
        gc.enable()


def test_a_plain_lora_estimate_does_without_bitsandbytes_and_gives_the_same() -> None:
    program = (
        "import sys\n"
        "from llmmem import Setup, estimate\n"
        "from llmmem.execution.estimate_process import estimate_alone\n"
        "setup = Setup(model='EleutherAI/pythia-70m', method='lora', seq_len=128)\n"
        "alone = estimate_alone(setup, 'h100')\n"
        "assert sys.modules['bitsandbytes'] is None\n"
        "del sys.modules['bitsandbytes']\n"
        "import bitsandbytes\n"
        "assert estimate(setup, 'h100') == alone\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
