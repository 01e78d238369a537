"""Attention on simulated GPUs: which kernel PyTorch takes, and what cuDNN's takes of memory.

Run as a script with the names of cards: imports once, forks for each, and prints one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from typing import TYPE_CHECKING, Any

from llmmem import simgpu
from llmmem.catalogue.gpus import find_gpu

if TYPE_CHECKING:
    import torch

BACKENDS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
CASES = 400


def random_case(choose: random.Random) -> tuple[Any, ...]:
    """Arguments of an attention: query, key, value, mask, dropout, is_causal."""
    import torch

    key_heads = choose.choice([1, 2])
    heads = key_heads * choose.choice([1, 1, 2, 4])
    queries = choose.choice([1, 2, 7, 64, 100])
    keys = choose.choice([queries, queries, 1, 2, 77])
    dim = choose.choice([4, 8, 12, 32, 64, 80, 128, 160, 192, 200, 224, 232, 256, 264])
    value_dim = choose.choice([dim, dim, dim, 64, 128])
    dtype = choose.choice([torch.bfloat16, torch.float16, torch.float32])
    needs_gradient = choose.random() < 0.6
    is_causal = choose.random() < 0.5

    def empty(*shape: int, requires_grad: bool = needs_gradient) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda", requires_grad=requires_grad)

    mask = None
    if not is_causal:
        boolean = torch.empty(1, 1, queries, keys, dtype=torch.bool, device="cuda")
        learned = empty(2, heads, queries, keys, requires_grad=True)
        constant = empty(2, 1, queries, keys, requires_grad=False)
        mask = choose.choice([None, None, boolean, constant, learned])
    return (
        empty(2, heads, queries, dim),
        empty(2, key_heads, keys, dim),
        empty(2, key_heads, keys, value_dim),
        mask,
        choose.choice([0.0, 0.0, 0.1, 0.125]),
        is_causal,
    )


def choices(card: str) -> list[str]:
    """Where PyTorch and the estimate choose another kernel."""
    import torch

    from llmmem.estimation.fake_cuda.attention import choose_backend

    choose = random.Random(1)
    differing = []
    for _ in range(CASES):
        query, key, value, mask, dropout, is_causal = random_case(choose)
        chosen = torch._fused_sdp_choice(
            query, key, value, mask, dropout, is_causal, enable_gqa=query.shape[1] != key.shape[1]
        )
        expected = choose_backend(query, key, value, mask, dropout, is_causal, find_gpu(card))
        if BACKENDS[chosen] != expected:
            differing.append(f"{BACKENDS[chosen]}, not {expected}: {query.shape}, {key.shape}")
    return differing


def pass_of_cudnn(
    heads: int, key_heads: int, dim: int, mask: torch.Tensor | None = None, dropout: float = 0.0
) -> dict[str, Any]:
    """What a forward and a backward pass hold and add at most, in bytes."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    shapes = [(2, h, 1000, dim) for h in (heads, key_heads, key_heads)]
    q, k, v = (
        torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes
    )
    before = requested()
    out = attention(q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=heads != key_heads)
    saved = requested() - before
    gradient = torch.ones_like(out)
    held = requested()
    torch.cuda.reset_peak_memory_stats()
    out.backward(gradient)
    return {
        "kernel": type(out.grad_fn).__name__,
        "saved": saved,
        "backward": requested("peak") - held,
    }


def requested(when: str = "current") -> int:
    """Bytes that were asked for: without the rest of the blocks that they were given."""
    import torch

    stats: dict[str, int] = torch.cuda.memory_stats()
    return stats[f"requested_bytes.all.{when}"]


def passes_of_cudnn() -> dict[str, Any]:
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    before = gpu.notes
    mask = torch.zeros(2, 1, 1000, 1000, device="cuda", dtype=torch.bfloat16)
    seen = {
        "plain": pass_of_cudnn(8, 8, 64),
        "masked": pass_of_cudnn(8, 8, 64, mask),
        "dropout": pass_of_cudnn(8, 8, 64, dropout=0.125),
        "large": pass_of_cudnn(8, 8, 256),
    }
    between = gpu.notes
    seen["grouped"] = pass_of_cudnn(8, 2, 128)
    return {**seen, "notes": [before, between, gpu.notes]}


def in_child(card: str) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            simgpu.activate(card)
            answer: dict[str, Any] = {"choices": choices(card)}
            if card in ("h100", "b200"):
                answer["passes"] = passes_of_cudnn()
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"error": f"ended with status {status}"}


def main() -> None:
    simgpu.activate("h100")
    import torch

    assert not torch.cuda.is_initialized()
    json.dump({card: in_child(card) for card in sys.argv[1:]}, sys.stdout)


if __name__ == "__main__":
    main()
