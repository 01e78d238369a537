"""A pipeline of as many stages as ranks, by the 1F1B schedule; a stage learns its shapes from the one before.

llmmem exec --device sim:h100x2 -- torchrun --nproc-per-node 2 pipeline_1f1b.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

rank, stages = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl")

layers = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(2))).cuda()
stage = PipelineStage(layers, rank, stages, torch.device("cuda", rank))
schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=torch.nn.functional.mse_loss)
optimizer = torch.optim.AdamW(layers.parameters())
for _ in range(2):
    batch = torch.randn(16, 256, device="cuda")
    if rank == 0:
        schedule.step(batch)
    elif rank == stages - 1:
        losses: list[torch.Tensor] = []
        schedule.step(target=batch, losses=losses)
        assert len(losses) == 4
    else:
        schedule.step()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
