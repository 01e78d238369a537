"""DistributedDataParallel over a small Llama, with a sampler, clipped gradients and a logged loss.

llmmem exec --device sim:h100x2 -- torchrun --nproc-per-node 2 ddp.py
"""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from transformers import LlamaConfig, LlamaForCausalLM

rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl")

config = LlamaConfig(
    vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
model = LlamaForCausalLM(config).cuda()
replica = DistributedDataParallel(model, device_ids=[rank])
optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-4)
rows = TensorDataset(torch.randint(0, 512, (16, 64)))
sampler = DistributedSampler(rows)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for (row,) in DataLoader(rows, batch_size=4, sampler=sampler):
        ids = row.cuda()
        loss = replica(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(replica.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens = torch.tensor(ids.numel(), device="cuda")
        dist.all_reduce(tokens)
        assert tokens.item() == ids.numel() * dist.get_world_size()
dist.destroy_process_group()
