"""Data-parallel training as one of its ranks sees it: rank 0, in one process, on one device.

PyTorch's own `fully_shard` (FSDP2) and `DistributedDataParallel` run unmodified over its ``fake`` process
group: a job of any size in which only this rank exists. Collectives return at once and send nothing, so the
memory is that of one rank, except for buffers that NCCL would allocate itself.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor
    from torch._C._distributed_c10d import GradBucket
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.futures import Future

    from llmmem.setups import Setup

__all__ = [
    "create_shards",
    "fully_shard_layers",
    "is_of_shards",
    "local",
    "notes",
    "on_gathering",
    "rank_zero",
    "replicate",
    "unwrapped",
]


@contextmanager
def rank_zero(setup: Setup, device: torch.device) -> Iterator[DeviceMesh | None]:
    """While inside, this process is rank 0 of the setup's job; yields the one-dimensional mesh of ranks.

    Without `Setup.parallel`, this does nothing and yields ``None``.
    """
    if setup.parallel is None:
        yield None
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    # The import registers the backend.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    size = setup.parallel["world_size"]
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        assert dist.group.WORLD is not None
        # Not `init_device_mesh`, which requires a multiple of the number of GPUs of this machine.
        yield DeviceMesh.from_group(dist.group.WORLD, device.type)
    finally:
        dist.destroy_process_group()


def fully_shard_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model without storage over the mesh with FSDP2: each layer, then the rest.

    Layers are the modules that transformers checkpoints: decoder layers, encoder layers, blocks.
    Parameters are gathered in bfloat16 (float16 stays float16) and freed after the forward pass of their
    layer; gradients are reduced in float32.

    Afterwards, buffers are on the device, and parameters still have no storage.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    halves = {parameter.dtype for parameter in model.parameters()} & {torch.float16}
    policy = MixedPrecisionPolicy(
        param_dtype=halves.pop() if halves else torch.bfloat16, reduce_dtype=torch.float32
    )
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for module in (*reversed(layers), model):  # inner ones first
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


@torch.no_grad()
def create_shards(
    model: nn.Module, device: torch.device, initialise: Callable[[Tensor, str], None]
) -> None:
    """Allocate this rank's shard of every parameter on the device.

    Args:
        model: A model after `fully_shard_layers`.
        device: The device of the shards.
        initialise: Fills a tensor in place, given the name of its parameter.
    """
    # `to_empty` would discard the values of the buffers too.
    model._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor
    )
    for name, parameter in model.named_parameters():
        initialise(local(parameter), name)


def on_gathering(model: nn.Module, tell: Callable[[Iterable[Tensor]], None]) -> None:
    """Call `tell` with the gathered parameters whenever an FSDP2 module is about to run.

    Args:
        model: A model after `fully_shard_layers`.
        tell: Called with the full parameters.
    """
    from torch.distributed.fsdp import FSDPModule

    def gathered(module: nn.Module, _: object) -> None:
        tell(parameter for parameter in module.parameters() if not _is_shard(parameter))

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.register_forward_pre_hook(gathered)


def replicate(
    model: nn.Module, device: torch.device, on_bucket: Callable[[Tensor], None]
) -> nn.Module:
    """The model under `DistributedDataParallel`, with its default buckets.

    Args:
        model: The whole model, on the device.
        device: The device of the model.
        on_bucket: Called with each bucket of gradients instead of reducing it.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
    from torch.nn.parallel import DistributedDataParallel

    def reduce(bucket: GradBucket) -> Future[Tensor]:
        on_bucket(bucket.buffer())
        return noop_hook(None, bucket)

    replica = DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )
    # DDP needs a result that the all-reduce of the fake group does not return. (The hook is a lambda
    # because DDP rejects functions whose annotations are strings.)
    replica.register_comm_hook(None, lambda _, bucket: reduce(bucket))
    return replica


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of `DistributedDataParallel`; any other model itself."""
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel):
        return cast("nn.Module", model.module)
    return model


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds: its shard, or all of it."""
    return cast("DTensor", tensor).to_local() if _is_shard(tensor) else tensor


def is_of_shards(error: Exception) -> bool:
    """Whether an operator failed because it does not support sharded tensors."""
    return "DTensor" in str(error) or "sharding strategy" in str(error)


def notes(setup: Setup) -> Iterator[str]:
    """Notes about the figures of a rank."""
    if setup.parallel is None:
        return
    yield (
        f"rank 0 of {setup.parallel['world_size']}, over PyTorch's fake process group: "
        "the buffers that NCCL allocates itself are not included"
    )


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")
