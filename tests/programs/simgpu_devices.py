"""Programs that use several simulated GPUs; a script like simgpu_scenarios.py."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from simgpu_scenarios import in_child

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
GIB = 2**30

# What CUDA_VISIBLE_DEVICES is set to; U3 stands for the UUID of device 3.
LISTS = (
    "1,3",
    "3,1",
    " 4, 5",
    "1gpu,3",
    "0,9,1",
    "",
    "-1",
    "2,2",
    "U3,U1",
    "U3,GPU-none,U1",
    "GPU-73696d05",
    "GPU-7369",
)


def devices_of_nvml() -> list[Any]:
    import pynvml

    pynvml.nvmlInit()
    return [
        pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
    ]


def uuids() -> list[str]:
    import pynvml

    return [pynvml.nvmlDeviceGetUUID(device) for device in devices_of_nvml()]


def visible_through(chosen: str) -> Callable[[], Any]:
    """Which devices PyTorch finds, and which NVML sees grow when the last is used."""

    def program() -> Any:
        import torch

        gpu = simgpu.active()
        assert gpu is not None
        names = uuids()
        entries = [names[int(each[1:])] if each[:1] == "U" else each for each in chosen.split(",")]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(entries)
        found = torch.cuda.device_count()
        if not found:
            try:
                torch.empty(1, device="cuda")
            except RuntimeError as error:
                return [torch.cuda.is_available(), str(error)]
        properties = [torch.cuda.get_device_properties(i) for i in range(found)]
        torch.empty(MIB, dtype=torch.uint8, device=f"cuda:{found - 1}")
        return {
            "devices": [names.index(f"GPU-{each.uuid}") for each in properties],
            "buses": [each.pci_bus_id for each in properties],
            "held": gpu.process_bytes(found - 1),
            "by NVML": held_by_device(),
        }

    return program


def held_by_device() -> list[int]:
    import pynvml

    processes = map(pynvml.nvmlDeviceGetComputeRunningProcesses, devices_of_nvml())
    return [sum(process.usedGpuMemory for process in of_one) for of_one in processes]


def eight_devices() -> Any:
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    torch.empty(1, device="cuda:5")
    return {
        "uuids": len({str(each.uuid) for each in properties}),
        "buses": len({each.pci_bus_id for each in properties}),
        "memory": [each.total_memory for each in properties],
        "held": [gpu.process_bytes(i) for i in range(8)],
        "by NVML": held_by_device(),
    }


def a_model_on_two_devices() -> Any:
    """A layer on each; what each takes at its peak, and where gradients and states are."""
    import torch

    first = torch.nn.Linear(1024, 1024, device="cuda:0")
    second = torch.nn.Linear(1024, 4096, device="cuda:1")
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    for _ in range(2):
        second(first(torch.randn(64, 1024, device="cuda:0")).to("cuda:1")).sum().backward()
        optimizer.step()
    return {
        "gradients": [parameter.grad.device.index for parameter in parameters],
        "states": [optimizer.state[each]["exp_avg"].device.index for each in parameters],
        "allocated": [torch.cuda.memory_allocated(i) for i in range(2)],
        "peaks": [torch.cuda.max_memory_allocated(i) for i in range(2)],
    }


def a_device_map() -> Any:
    import torch
    from accelerate import dispatch_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=1000,
    )
    places = {
        "model.embed_tokens": 0,
        "model.layers.0": 0,
        "model.layers.1": 1,
        "model.norm": 1,
        "model.rotary_emb": 1,
        "lm_head": 1,
    }
    model = dispatch_model(LlamaForCausalLM(config), device_map=places)
    ids = torch.ones(1, 16, dtype=torch.long, device="cuda:0")
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    found = {name: each.grad.device.index for name, each in model.named_parameters()}
    return sorted(
        {(name.split(".")[2] if "layers" in name else name, i) for name, i in found.items()}
    )


def one_full_device() -> Any:
    import torch

    kept = torch.empty(GIB, dtype=torch.uint8, device="cuda:1")
    try:
        torch.empty(30 * GIB, dtype=torch.uint8, device="cuda:0")
    except torch.OutOfMemoryError as error:
        message = str(error)
    more = torch.empty(GIB, dtype=torch.uint8, device="cuda:1")
    held = [torch.cuda.memory_allocated(i) for i in range(2)]
    return [message.split(". ")[1], *held, kept.nbytes + more.nbytes]


def copies() -> Any:
    import torch

    gpu = simgpu.active()
    assert gpu is not None
    there = torch.tensor([1, 2, 3], device="cuda:0").to("cuda:1")
    big = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda:0").to("cuda:1")
    held = [gpu.process_bytes(i) - gpu.context_bytes for i in range(2)]
    values = there.to("cuda:0").tolist()
    del there, big
    torch.cuda.empty_cache()
    return {
        "values": values,
        "held": held,
        "reserved": [torch.cuda.max_memory_reserved(i) for i in range(2)],
        "afterwards": [gpu.process_bytes(i) - gpu.context_bytes for i in range(2)],
    }


def expandable_copies() -> Any:
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return copies()


def peers() -> Any:
    """What the runtime says of access from device 0 to device 1, and of asking twice."""
    import ctypes

    import torch

    torch.cuda.init()
    runtime = ctypes.CDLL(f"libcudart.so.{(torch.version.cuda or '').split('.')[0]}")
    gpu = simgpu.active()
    assert gpu is not None
    before = gpu.process_bytes(1)
    answers = [
        runtime.cudaDeviceDisablePeerAccess(1),
        runtime.cudaDeviceEnablePeerAccess(1, 0),
        runtime.cudaDeviceEnablePeerAccess(1, 0),
        runtime.cudaDeviceDisablePeerAccess(1),
        runtime.cudaDeviceEnablePeerAccess(0, 0) != 0,
        runtime.cudaDeviceEnablePeerAccess(7, 0),
    ]
    return {
        "can": torch.cuda.can_device_access_peer(0, 1),
        "answers": answers,
        "opened": [before, gpu.process_bytes(1)],
    }


def main() -> None:
    simgpu.activate("h100", count=8)
    import accelerate  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    assert not torch.cuda.is_initialized()
    programs: dict[str, tuple[str, Callable[[], Any]]] = {
        "eight devices": ("h100 x8", eight_devices),
        "a model on two devices": ("h100 x2", a_model_on_two_devices),
        "a device map": ("h100 x2", a_device_map),
        "one full device": ("rtx4090 x2", one_full_device),
        "copies h100": ("h100 x2", copies),
        "copies rtx4090": ("rtx4090 x2", copies),
        "expandable copies": ("h100 x2", expandable_copies),
        "peers h100": ("h100 x2", peers),
        "peers rtx4090": ("rtx4090 x2", peers),
    }
    programs |= {f"visible {chosen}": ("h100 x8", visible_through(chosen)) for chosen in LISTS}
    json.dump({name: in_child(*programs[name]) for name in programs}, sys.stdout)


if __name__ == "__main__":
    main()
