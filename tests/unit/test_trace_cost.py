"""What a trace costs and leaves alone: host memory, the network, operators that are not asked twice."""

from __future__ import annotations

import subprocess
import sys

import torch

from llmmem.estimation.memo import OutputMemo
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
    compute = OutputMemo()
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
    compute = OutputMemo()
    for _ in range(2):
        tensor = torch.empty(8, 4, device="meta")
        view = compute(aten._unsafe_view.default, (tensor, [32]), {})
        assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def test_a_plain_lora_estimate_does_without_bitsandbytes_and_gives_the_same() -> None:
    program = (
        "import sys\n"
        "from llmmem import Setup, estimate\n"
        "from llmmem.estimation.alone import estimate_alone\n"
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
