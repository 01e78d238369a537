"""Programs with Triton kernels and compiled models for the simulated GPU, each in a process of its own.

Run as a script: imports once, forks for every scenario, and prints one JSON document. Compiled code
is kept in the directory that is the only argument.
"""
# ruff: noqa: E402 - the simulated GPU comes before anything imports torch

from __future__ import annotations

import ctypes
import json
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simgpu_scenarios import in_child

from llmmem import simgpu

CACHE = Path(sys.argv[1])
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(CACHE / "inductor")
os.environ["TRITON_CACHE_DIR"] = str(CACHE / "triton")
os.environ["TORCHINDUCTOR_AUTOTUNE_REMOTE_CACHE"] = "1"
gpu = simgpu.activate("h100")

import torch
import torch._inductor.compile_fx
import transformers.models.llama.modeling_llama as llama
import triton
import triton.language as tl
from torch._inductor import config as inductor

MIB = 2**20

# ---- kernels ------------------------------------------------------------------------------------


@triton.jit
def rms_norm(x, y, weight, columns, eps, BLOCK: tl.constexpr):  # noqa: N803
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / columns + eps)
    scaled = values * scale * tl.load(weight + at, mask=inside)
    tl.store(y + row * columns + at, scaled.to(tl.bfloat16), mask=inside)


@triton.autotune(
    # The first needs 768 KiB of shared memory, which no card has.
    configs=[
        triton.Config({"BLOCK": 256}, num_warps=8, num_stages=6),
        triton.Config({"BLOCK": 64}, num_warps=4, num_stages=2),
        triton.Config({"BLOCK": 32}, num_warps=4, num_stages=2),
    ],
    key=["size"],
    restore_value=["c"],
)
@triton.jit
def matmul(a, b, c, size, BLOCK: tl.constexpr):  # noqa: N803
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, size, BLOCK):
        left = tl.load(a + rows[:, None] * size + (start + inner)[None, :])
        right = tl.load(b + (start + inner)[:, None] * size + columns[None, :])
        total += tl.dot(left, right)
    tl.store(c + rows[:, None] * size + columns[None, :], total.to(tl.bfloat16))


def a_kernel() -> Any:
    gpu = simgpu.active()
    assert gpu is not None
    x = torch.randn(64, 1000, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(1000, device="cuda", dtype=torch.bfloat16)
    mask = torch.zeros(16, device="cuda", dtype=torch.bool)
    beside = torch.full((16,), 7, device="cuda")
    before = torch.cuda.memory_allocated()
    y = torch.empty_like(x)
    kernel = rms_norm[(64,)](x, y, weight, 1000, 1e-6, BLOCK=1024)
    known = bool(mask.all()), bool((beside == 7).all())
    rms_norm[(1,)](x, mask, weight, 16, 1e-6, BLOCK=1024)
    return {
        "known": known,
        "after a launch": (bool(mask.all()), bool((beside == 7).all())),
        "added": torch.cuda.max_memory_allocated() - before,
        "output": y.untyped_storage().nbytes(),
        "registers": kernel.n_regs,
        "threads": kernel.n_max_threads,
        "process": gpu.peak_process_bytes(),
        "reserved": torch.cuda.memory_reserved() + gpu.context_bytes,
    }


def an_autotuned_kernel() -> Any:
    a, b, c = (torch.empty(512, 512, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    gpu = simgpu.active()
    assert gpu is not None
    before = gpu.notes
    matmul[(8, 8)](a, b, c, 512)
    return {
        "block": matmul.best_config.kwargs["BLOCK"],
        "peak": torch.cuda.max_memory_allocated(),
        "notes": gpu.notes[len(before) :],
    }


def memory_from_the_driver() -> Any:
    gpu = simgpu.active()
    assert gpu is not None
    torch.empty(1, device="cuda")
    before = gpu.process_bytes()
    driver = ctypes.CDLL("libcuda.so.1")
    address = ctypes.c_uint64()
    assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(64 * MIB)) == 0
    free, total = torch.cuda.mem_get_info()
    held = gpu.process_bytes()
    assert driver.cuMemFree_v2(address) == 0
    return {
        "held": held - before,
        "free": total - held - free,
        "after": gpu.process_bytes() - before,
    }


def a_llama_with_ligers_kernels() -> Any:
    """Peaks without and with them; None where they are not installed."""
    if find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    vocabulary = 32000
    plain = train(vocab_size=vocabulary)
    apply_liger_kernel_to_llama()
    return [plain[-1], train(vocab_size=vocabulary)[-1]]


# ---- compiled programs --------------------------------------------------------------------------


def train(vocab_size: int = 1000, compiled: bool = False) -> list[int]:
    """The peak of each of three steps."""
    config = llama.LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        attn_implementation="sdpa",
    )
    model = llama.LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    step = torch.compile(model, fullgraph=True) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, vocab_size, (2, 512), device="cuda")
    peaks = []
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        loss = step(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        peaks.append(torch.cuda.max_memory_allocated())
    return peaks


def a_compiled_llama() -> Any:
    from torch._dynamo.utils import counters

    return {
        "peaks": train(compiled=True),
        "from the cache": counters["inductor"]["fxgraph_cache_hit"],
        "notes": gpu.notes,
    }


def an_eager_llama() -> Any:
    return {"peaks": train(), "notes": gpu.notes}


def products_of_odd_sizes() -> Any:
    """What max-autotune and padding would both try out."""
    x = torch.randn(1000, 999, device="cuda", dtype=torch.bfloat16)
    multiply = torch.compile(lambda x, y: x @ y, mode="max-autotune-no-cudagraphs")
    y = torch.empty(999, 1001, device="cuda", dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    product = multiply(x, y)
    added = torch.cuda.max_memory_allocated() - before
    return {"added": added, "product": product.untyped_storage().nbytes()}


def a_graph_of_kernels() -> Any:
    warnings.simplefilter("error")
    f = torch.compile(lambda x: torch.softmax(x * 2, -1) + 1, mode="reduce-overhead")
    x = torch.randn(1024, 1024, device="cuda")
    held = []
    for _ in range(5):
        f(x)
        held.append([torch.cuda.memory_allocated(), torch.cuda.memory_reserved()])
    return held


def another_card() -> Any:
    torch.compile(lambda x: x.sin() + 1)(torch.empty(100, device="cuda"))
    return {"threads": inductor.compile_threads, "remote": inductor.autotune_remote_cache}


SCENARIOS = {
    "a kernel": ("h100", a_kernel),
    "an autotuned kernel": ("h100", an_autotuned_kernel),
    "memory from the driver": ("h100", memory_from_the_driver),
    "a llama with liger's kernels": ("h100", a_llama_with_ligers_kernels),
    "a compiled llama": ("h100", a_compiled_llama),
    "the same again": ("h100", a_compiled_llama),
    "an eager llama": ("h100", an_eager_llama),
    "products of odd sizes": ("h100", products_of_odd_sizes),
    "a graph of kernels": ("h100", a_graph_of_kernels),
    "another card": ("l4", another_card),
}


def main() -> None:
    outcomes = {name: in_child(*scenario) for name, scenario in SCENARIOS.items()}
    outcomes["caches"] = {
        "value": {
            base.name: sorted(path.name for path in base.iterdir()) for base in CACHE.iterdir()
        }
    }
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
