"""Programs for the simulated GPU, each in a process of its own; tests look at what they return.

Run as a script: imports once, forks for every scenario, and prints one JSON document.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmmem import simgpu
from llmmem.catalogue.gpus import find_gpu

if TYPE_CHECKING:
    from collections.abc import Callable

TRACES = Path(__file__).parents[1] / "data" / "allocator"
MIB = 2**20

SCENARIOS: dict[str, tuple[str, Callable[[], Any]]] = {}


def scenario(gpu: str, name: str | None = None) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(program: Callable[[], Any]) -> Callable[[], Any]:
        SCENARIOS[name or program.__name__] = (gpu, program)
        return program

    return register


# ---- accounting ---------------------------------------------------------------------------------


@scenario("h100")
def tensors_and_workspaces() -> Any:
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    untouched = gpu.process_bytes()
    x = torch.empty(1000, 1000, device="cuda")
    one = torch.cuda.memory_allocated()
    y, z = x @ x, x @ x
    del x
    reserved = torch.cuda.memory_reserved()
    free, total = torch.cuda.mem_get_info()
    held = gpu.process_bytes()
    gpu.reset_peak()
    big = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    del big, y, z
    torch.cuda.empty_cache()
    return {
        "untouched": untouched,
        "one tensor": one,
        "after two matmuls": torch.cuda.max_memory_allocated() - 64 * MIB + 4_000_256,
        "beside reserved": held - reserved,
        "free + held": free + held,
        "total": total,
        "peak above": gpu.peak_process_bytes() - held,
        "context": gpu.context_bytes,
        "name": torch.cuda.get_device_name(),
        "properties": [
            getattr(torch.cuda.get_device_properties(0), key)
            for key in ("major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
        ],
    }


@scenario("t4")
def workspace_of_an_older_card() -> Any:
    import torch

    x = torch.empty(128, 128, device="cuda")
    before = torch.cuda.memory_allocated()
    y = x @ x
    return torch.cuda.memory_allocated() - before - y.nbytes


@scenario("rtx4090")
def out_of_memory() -> Any:
    import torch

    kept = torch.empty(8 * 1024 * MIB, dtype=torch.uint8, device="cuda")
    try:
        torch.empty(20 * 1024 * MIB, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        message = str(error)
    again = torch.empty(8 * 1024 * MIB, dtype=torch.uint8, device="cuda")
    return {
        "message": message,
        "allocated": torch.cuda.memory_allocated(),
        "kept": kept.nbytes + again.nbytes,
    }


@scenario("h100")
def what_nvml_reports() -> Any:
    import pynvml
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
    torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
    older = pynvml.nvmlDeviceGetComputeRunningProcesses_v2(device)
    first, second = (
        pynvml.nvmlDeviceGetMemoryInfo(device),
        pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2),
    )
    refused = []
    for ask in (
        pynvml.nvmlDeviceGetTotalEnergyConsumption,
        pynvml.nvmlDeviceGetFanSpeed,
        pynvml.nvmlDeviceGetPowerUsage,
    ):
        try:
            ask(device)
        except pynvml.NVMLError as error:
            refused.append(type(error).__name__)
    by_uuid = pynvml.nvmlDeviceGetHandleByUUID(pynvml.nvmlDeviceGetUUID(device))
    by_place = pynvml.nvmlDeviceGetHandleByPciBusId(pynvml.nvmlDeviceGetPciInfo(device).busId)
    return {
        "before": len(before),
        "own": [p.pid == os.getpid() for p in (*processes, *older)],
        "used": [p.usedGpuMemory for p in (*processes, *older)],
        "process bytes": gpu.process_bytes(),
        "v1": [first.total, first.free, first.used],
        "v2": [second.total, second.reserved, second.free, second.used],
        "names": [pynvml.nvmlDeviceGetName(h) for h in (device, by_uuid, by_place)],
        "capability": pynvml.nvmlDeviceGetCudaComputeCapability(device),
        "utilization": pynvml.nvmlDeviceGetUtilizationRates(device).gpu,
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "refused": refused,
        "torch": torch.cuda.device_memory_used(),
    }


@scenario("h100")
def a_managed_allocation() -> Any:
    """What paged optimizers hold: seen by NVML only, and in nobody's way."""
    import bitsandbytes as bnb
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    weight = torch.nn.Parameter(torch.zeros(4096, 4096, device="cuda"))
    optimizer = bnb.optim.PagedAdamW32bit([weight])
    weight.grad = torch.zeros_like(weight)
    before, reserved = gpu.process_bytes(), torch.cuda.memory_reserved()
    optimizer.step()
    return {
        "states": 2 * weight.nbytes,
        "process": gpu.process_bytes() - before,
        "reserved": torch.cuda.memory_reserved() - reserved,
    }


@scenario("h100")
def a_stream_ordered_pool() -> Any:
    """The runtime's own pool, used directly."""
    import ctypes

    import torch

    gpu = simgpu.active()
    assert gpu is not None
    torch.cuda.init()
    library = ctypes.CDLL(str(next(p for p in gpu.libraries.paths if "cudart" in p.name)))
    pointer = ctypes.c_void_p()
    torch.cuda.synchronize()
    before = gpu.process_bytes()
    assert library.cudaMallocAsync(ctypes.byref(pointer), ctypes.c_size_t(MIB), None) == 0
    held = gpu.process_bytes() - before
    assert library.cudaFreeAsync(pointer, None) == 0
    return {"held": held, "after": gpu.process_bytes() - before}


@scenario("h100")
def two_streams_pinned_memory_and_events() -> Any:
    import torch

    pinned = torch.empty(1000).pin_memory()
    stream = torch.cuda.Stream()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        start.record()
        x = pinned.to("cuda", non_blocking=True)
        end.record()
    x.record_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    return [
        pinned.is_pinned(),
        torch.empty(1).is_pinned(),
        start.elapsed_time(end) >= 0,
        end.query(),
    ]


@scenario("h100")
def a_captured_graph() -> Any:
    import torch

    x = torch.zeros(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2 + 1
    graph.replay()
    return y.shape[0]


@scenario("h100")
def memory_history() -> Any:
    import torch

    torch.cuda.memory._record_memory_history(stacks="python")
    x = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
    events = torch.cuda.memory._snapshot()["device_traces"][0]
    return [
        [event["action"], event["size"], Path(event["frames"][0]["filename"]).name]
        for event in events
        if event["action"] == "alloc"
    ] + [x.nbytes]


def replay(name: str) -> Any:
    """Run a recorded trace through PyTorch's allocator: where it first differs, or None."""
    import torch

    trace = json.loads((TRACES / f"{name}.json").read_text())
    if trace["alloc_conf"]:
        # The other name is deprecated where this one exists.
        newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
        (newer or torch.cuda.memory._set_allocator_settings)(trace["alloc_conf"])
    if trace["fraction"] is not None:
        torch.cuda.set_per_process_memory_fraction(trace["fraction"])
    held = {}
    for position, (operation, *rest) in enumerate(trace["ops"]):
        if operation == "empty_cache":
            torch.cuda.empty_cache()
        elif operation == "free":
            del held[rest[0]]
        else:
            try:
                held[rest[0]] = torch.empty(rest[1], dtype=torch.uint8, device="cuda")
                outcome = "alloc"
            except torch.OutOfMemoryError:
                outcome = "oom"
            if outcome != operation:
                return [position, operation, outcome]
        stats = torch.cuda.memory_stats()
        seen = [
            torch.cuda.memory_allocated(),
            torch.cuda.memory_reserved(),
            stats["requested_bytes.all.current"],
            stats["num_alloc_retries"],
        ]
        if seen != rest[-4:]:
            return [position, operation, seen, rest]
    peaks = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]
    recorded = [trace["peak_allocated"], trace["peak_reserved"]]
    return None if peaks == recorded else ["peaks", peaks, recorded]


for trace_path in sorted(TRACES.glob("*.json")):
    total = json.loads(trace_path.read_text())["device_total"]
    card = next(name for name in ("t4", "h100") if find_gpu(name).total_bytes == total)
    # The traces were recorded where the whole card was PyTorch's: no context.
    SCENARIOS[f"replay {trace_path.stem}"] = (
        f"{card} without context",
        lambda name=trace_path.stem: replay(name),
    )


# ---- programs -----------------------------------------------------------------------------------


def tiny_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16)


def train(optimizer_class: Any, **arguments: Any) -> Any:
    import torch

    model = tiny_llama().train()
    optimizer = optimizer_class(model.parameters(), **arguments)
    for _ in range(2):
        ids = torch.randint(0, 1000, (2, 2048), device="cuda")
        loss = model(ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        "finite": [x == x and abs(x) < 1e30 for x in (loss.item(), norm.item())],
        "state": len(optimizer.state) == len(list(model.parameters())),
        "peak": torch.cuda.max_memory_allocated(),
    }


def register_training(gpu: str) -> None:
    def foreach() -> Any:
        import torch

        return train(torch.optim.AdamW)

    def fused() -> Any:
        import torch

        return train(torch.optim.AdamW, fused=True)

    scenario(gpu, f"train {gpu} foreach")(foreach)
    scenario(gpu, f"train {gpu} fused")(fused)


for trained_on in ("t4", "a100-80gb", "l4", "rtx4090", "h100"):
    register_training(trained_on)


@scenario("rtx4090")
def bitsandbytes_layers_and_optimizers() -> Any:
    import bitsandbytes as bnb
    import torch

    x = torch.randn(16, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    four = bnb.nn.Linear4bit(1024, 1024, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    four = four.to("cuda")
    four(x).sum().backward()
    eight = bnb.nn.Linear8bitLt(1024, 1024, bias=False, has_fp16_weights=False, threshold=6.0).to(
        "cuda"
    )
    product = eight(x.half())
    return {
        "four bit": [str(four.weight.dtype), four.weight.nbytes, four.weight.quant_state.nested],
        "eight bit": [str(eight.weight.dtype), eight.weight.nbytes, list(product.shape)],
        "optimizers": [train(kind) for kind in (bnb.optim.AdamW8bit, bnb.optim.PagedAdamW8bit)],
    }


@scenario("a100-80gb")
def attention_backends() -> Any:
    """The memory that a forward and backward pass adds tells which backend was taken."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    def saved(heads: int, key_heads: int, mask: Any = None) -> int:
        shapes = [(1, h, 1024, 64) for h in (heads, key_heads, key_heads)]
        q, k, v = (
            torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes
        )
        before = torch.cuda.memory_allocated()
        out = attention(q, k, v, attn_mask=mask, enable_gqa=heads != key_heads)
        held = torch.cuda.memory_allocated() - before
        out.sum().backward()
        return held

    mask = torch.ones(1, 1, 1024, 1024, dtype=torch.bool, device="cuda")
    return {"flash": saved(8, 8), "grouped": saved(8, 2), "masked": saved(8, 8, mask)}


@scenario("l4")
def kernels_that_ask_for_their_architecture() -> Any:
    """CUB's, which fail on a card that is said to run code the wheel does not have."""
    import torch

    x = torch.randn(4, 10_000, device="cuda")
    embedding = torch.nn.Embedding(1000, 64, device="cuda")
    embedding(torch.randint(0, 1000, (4, 2048), device="cuda")).sum().backward()
    x.sort()
    x.cumsum(-1)
    x.unique()
    return [
        list(x.topk(5).indices.shape),
        list((torch.ones(4, 100_000, device="cuda") > 0).nonzero().shape),
        list(embedding.weight.grad.shape),
    ]


@scenario("rtx4090")
def convolutions() -> Any:
    import torch

    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).to("cuda")
    x = torch.randn(2, 3, 32, 32, device="cuda", requires_grad=True)
    layer(x).sum().backward()
    half = torch.nn.Conv1d(16, 16, 4, groups=16).to("cuda", torch.float16)
    half(torch.randn(2, 16, 32, device="cuda", dtype=torch.float16)).sum().backward()
    refused = ""
    try:
        torch.nn.LSTM(8, 8).to("cuda")(torch.randn(2, 2, 8, device="cuda"))
    except RuntimeError as error:
        refused = str(error)
    return {"gradient": list(x.grad.shape), "recurrent": refused}


# ---- what a program reads back ------------------------------------------------------------------


@scenario("h100")
def values_from_the_host() -> Any:
    import torch

    sent = torch.tensor([3, 5]).cuda()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).cuda()
    noise = torch.randn(1000, device="cuda").softmax(-1)
    del noise
    overwritten = torch.tensor([3.0, 5.0]).cuda()
    overwritten.normal_()
    return {
        "sent": sent.tolist(),
        "clone": sent.clone().tolist(),
        "arithmetic": [
            (sent + 1).tolist(),
            (3 - sent).tolist(),
            (sent * 2).tolist(),
            (sent // 2).tolist(),
        ],
        "compared": [(sent == 3).tolist(), (sent > 3).tolist(), (mask[:, 2] == 1).tolist()],
        "reduced": [
            mask.sum().item(),
            mask.sum(-1).tolist(),
            mask.all().item(),
            mask.any(0).tolist(),
        ],
        "selected": [
            torch.randn(2, 3, device="cuda")[mask.bool()].shape[0],
            mask.cumsum(-1).tolist(),
        ],
        "created": [
            torch.full((2,), 7, device="cuda").tolist(),
            torch.arange(2, 8, 3, device="cuda").tolist(),
        ],
        "overwritten": overwritten.tolist(),
        "expanded": torch.repeat_interleave(sent, sent).shape[0],
    }


@scenario("h100")
def values_beside_what_is_written() -> Any:
    """Kernels that are not understood leave alone what they do not write to."""
    import torch

    numbers = torch.randn(2000, device="cuda")
    answers = torch.empty(2000, dtype=torch.bool, device="cuda")
    beside = torch.ones(2, dtype=torch.long, device="cuda")
    ids = torch.tensor([[3, 5]]).cuda()
    torch.isneginf(numbers, out=answers)
    torch.cat([ids, ids])
    torch.nn.functional.embedding(ids, torch.randn(10, 8, device="cuda"))
    torch.sort(ids)
    return [beside.data_ptr() - answers.data_ptr(), beside.tolist(), ids.tolist()]


@scenario("h100")
def checks_on_what_was_computed() -> Any:
    import torch

    answers = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(100, 100, device="cuda", dtype=dtype)
        answers[str(dtype)] = [
            x.isnan().any().item(),
            x.isinf().any().item(),
            x.isfinite().all().item(),
            torch.isnan(x @ x).any().item(),
        ]
    ids = torch.randint(0, 1000, (2, 16), device="cuda")
    logits = torch.randn(2, 1000, device="cuda")
    return {
        "checks": answers,
        "mask": torch.ones(2, 16, dtype=torch.long, device="cuda").all().item(),
        "end of sequence": [(ids == 2).any().item(), (ids == 2).all().item()],
        "indices": [
            int(x.max())
            for x in (
                logits.argmax(-1),
                logits.sort().indices,
                logits.topk(5).indices,
                torch.multinomial(logits.softmax(-1), 3),
            )
        ],
    }


@scenario("h100")
def generation() -> Any:
    import torch

    model = tiny_llama().eval()
    ids = torch.randint(3, 1000, (2, 16)).to("cuda")
    return [
        model.generate(ids, max_new_tokens=10, **how).shape[1]
        for how in (
            {},
            {"do_sample": True, "top_k": 5, "top_p": 0.9},
            {"repetition_penalty": 1.2},
            {"no_repeat_ngram_size": 3},
            {"min_new_tokens": 3},
        )
    ]


@scenario("rtx4090")
def gradient_scaling() -> Any:
    import torch

    def scaled(loss_of: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
        model = torch.nn.Linear(8, 8).to("cuda")
        optimizer = torch.optim.AdamW(model.parameters())
        scaler = torch.amp.GradScaler()
        scales = []
        for _ in range(2):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = loss_of(model(torch.randn(4, 8, device="cuda")))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return [len(optimizer.state), *scales]

    return {"mean": scaled(lambda output: output.float().mean()), "sum": scaled(torch.Tensor.sum)}


# ---- several devices ----------------------------------------------------------------------------


@scenario("h100 x2")
def a_second_device() -> Any:
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    torch.empty(1, device="cuda:0")
    before = gpu.process_bytes(1)
    torch.empty(1, device="cuda:1")
    return [torch.cuda.device_count(), before, gpu.process_bytes(1), gpu.process_bytes(0)]


# ---- running them -------------------------------------------------------------------------------


def activate(description: str) -> None:
    name, *rest = description.split()
    gpu = find_gpu(name)
    if rest == ["without", "context"]:
        gpu = dataclasses.replace(gpu, context_bytes=0)
    counts = [int(word[1:]) for word in rest if word.startswith("x")]
    simgpu.activate(gpu, count=counts[0] if counts else 1)


def in_child(description: str, program: Callable[[], Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            activate(description)
            answer = {"value": program()}
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
    parent = simgpu.activate("h100")
    import torch

    # With PyTorch 2.6, importing transformers counts the GPUs, once and for all.
    several = [name for name, (gpus, _) in SCENARIOS.items() if " x" in gpus]
    outcomes = {name: in_child(*SCENARIOS[name]) for name in several}

    import torch._dynamo  # what every optimizer imports at its first step
    import transformers.models.llama.modeling_llama  # noqa: F401

    assert not torch.cuda.is_initialized()
    outcomes |= {name: in_child(*SCENARIOS[name]) for name in SCENARIOS if name not in several}
    outcomes["the parent"] = {"value": parent.process_bytes()}
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
