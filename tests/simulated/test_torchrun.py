"""Jobs of several processes, each with a simulated GPU of its own, over NCCL."""

from __future__ import annotations

import json
import os
import subprocess
import sys

JOB = """
import json, os, sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

rank = int(os.environ.get("LOCAL_RANK", 0))
torch.cuda.set_device(rank)
if sys.argv[1] == "fake":
    from torch.testing._internal.distributed.fake_pg import FakeStore
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
else:
    dist.init_process_group("nccl")

gathered = [torch.zeros(2, dtype=torch.long, device="cuda") for _ in range(2)]
dist.all_gather(gathered, torch.tensor([3, 5], device="cuda"))
values = [each.tolist() for each in gathered]

model = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000) for _ in range(4))).cuda()
for layer in (*model, model):
    fully_shard(layer)
optimizer = torch.optim.AdamW(model.parameters())
torch.cuda.reset_peak_memory_stats()
for _ in range(2):
    model(torch.randn(8, 1000, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
sharded = torch.cuda.max_memory_allocated()

if sys.argv[1] == "nccl":
    replica = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Linear(1000, 1000).cuda(), device_ids=[rank]
    )
    replica(torch.randn(8, 1000, device="cuda")).sum().backward()
seen = {"world": dist.get_world_size(), "sharded": sharded, "gathered": values}
dist.destroy_process_group()
if rank == 0:
    print(json.dumps(seen))
"""


GPUS = """
import json
from llmmem import simgpu
print(json.dumps(simgpu.activate("h100", count=2).environment()))
"""


def run(*command: str) -> dict[str, object]:
    found = subprocess.run([sys.executable, "-c", GPUS], capture_output=True, text=True, check=True)
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **json.loads(found.stdout)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_rank_of_a_real_job_takes_what_the_fake_process_group_says(tmp_path) -> None:
    job = tmp_path / "job.py"
    job.write_text(JOB)
    real = run(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(job), "nccl"
    )
    fake = run(str(job), "fake")
    assert real == fake == {"world": 2, "sharded": fake["sharded"], "gathered": [[3, 5], [3, 5]]}
