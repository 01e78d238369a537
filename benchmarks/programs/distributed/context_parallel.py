"""Attention over a sequence that the ranks share (context_parallel).

llmmem exec --device sim:h100x2 -- torchrun --nproc-per-node 2 context_parallel.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
mesh = init_device_mesh("cuda", (int(os.environ["WORLD_SIZE"]),), mesh_dim_names=("cp",))

projection = torch.nn.Linear(256, 3 * 256, dtype=torch.bfloat16, device="cuda")
optimizer = torch.optim.AdamW(projection.parameters())
for _ in range(2):
    x = torch.randn(2, 512, 256, dtype=torch.bfloat16, device="cuda")
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        context_parallel(mesh, buffers=[x], buffer_seq_dims=[1]),
    ):
        heads = projection(x).unflatten(2, (3, 4, 64)).permute(2, 0, 3, 1, 4)
        out = scaled_dot_product_attention(*heads, is_causal=True)
        assert out.shape[2] == 512 // dist.get_world_size()
        out.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
