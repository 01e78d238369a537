"""Tensor and sequence parallel layers (parallelize_module).

llmmem exec --device sim:h100x2 -- torchrun --nproc-per-node 2 tensor_parallel.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)


class Block(torch.nn.Module):
    """A feed-forward block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block applied to x, of shape (rows, tokens, width)."""
        return self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


mesh = init_device_mesh("cuda", (int(os.environ["WORLD_SIZE"]),))
torch.manual_seed(0)
model = torch.nn.Sequential(*(Block(256) for _ in range(2))).cuda()
for block in model:
    plan = {"norm": SequenceParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(block, mesh, plan)
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
for _ in range(3):
    model(torch.randn(4, 64, 256, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
whole = model[0].up.weight.full_tensor()
assert whole.shape == (1024, 256)
dist.destroy_process_group()
