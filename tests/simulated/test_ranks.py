"""Ranks on one machine carry small values to each other over the simulated NCCL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from llmmem.devices import parse_device
from llmmem.execution.program.run import run_program

SCENARIOS = Path(__file__).parents[1] / "programs" / "rank_scenarios.py"

ONE_PROCESS = """
import ctypes, json, os
from llmmem import simgpu
gpu = simgpu.activate("h100", count=4)
import torch, torch.distributed as dist
from torch.cuda import nccl

given = [torch.tensor([rank, 2 * rank]).to(f"cuda:{rank}") for rank in range(4)]
summed = [torch.zeros_like(each) for each in given]
nccl.all_reduce(given, summed)
parts = [torch.zeros(1, dtype=torch.long, device=each.device) for each in given]
wide = [torch.cat([each, each]) for each in given]
nccl.reduce_scatter(wide, parts, op=2)  # the highest
nccl.broadcast(given, 0)
seen = {
    "summed": [each.tolist() for each in summed],
    "parts": [each.item() for each in parts],
    "broadcast": [each.tolist() for each in given],
}

# Narrow floats, which C has no types for: products are exact in float32, so that only rounding can differ.
core = ctypes.CDLL(str(gpu.libraries.core))
for number, dtype, codes in (
    (6, torch.float16, torch.int16),
    (9, torch.bfloat16, torch.int16),
    (10, torch.float8_e4m3fn, torch.uint8),
    (11, torch.float8_e5m2, torch.uint8),
):
    a, b = (torch.randint(0, 256 ** codes.itemsize, (20000,)).to(codes).view(dtype) for _ in range(2))
    if dtype == torch.bfloat16:  # where it has as wide a range as float32, not beyond that
        a, b = (torch.randn(20000).to(dtype) for _ in range(2))
    out = torch.zeros_like(a)
    inputs = (ctypes.c_void_p * 2)(a.data_ptr(), b.data_ptr())
    count, to = ctypes.c_size_t(len(a)), ctypes.c_void_p(out.data_ptr())
    core.sim_reduce(number, 1, inputs, ctypes.c_size_t(0), 2, count, to)
    expected = a.float() * b.float()
    if dtype.itemsize == 1:  # NCCL's conversion takes the largest number for all above
        expected = expected.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
    assert torch.equal(out.float().nan_to_num(1e30), expected.to(dtype).float().nan_to_num(1e30)), dtype

os.environ["LLMMEM_ABSENT_RANKS"] = "alike"
torch.cuda.set_device(0)
dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=3)
tensor = torch.tensor([2, 3]).cuda()
dist.all_reduce(tensor)
gathered = torch.zeros(6, dtype=torch.long, device="cuda")
dist.all_gather_into_tensor(gathered, torch.tensor([5, 6]).cuda())
seen["alike"] = [tensor.tolist(), gathered.tolist()]
dist.destroy_process_group()
print(json.dumps(seen))
"""


def test_ranks_receive_what_others_send_and_the_report_shows_each(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ("torchrun", "--standalone", "--nproc-per-node", "2", str(SCENARIOS))
    with log.open("w") as stdout:
        result = run_program(command, parse_device("sim:h100x2"), stdout=stdout)
    done = log.read_text()
    assert result.outcome == "ok", done
    assert done.count("rank 0: ") == 11
    assert done.count("rank 1: ") == 10  # the last scenario is its end
    assert [(process.rank, process.index) for process in result.processes] == [(0, 0), (1, 1)]
    assert [name.rpartition(" [")[2] for name in result.named_peaks()] == ["GPU 0]", "GPU 1]"]
    assert all("[rank " in name for name in result.named_peaks())


def test_one_process_may_have_all_ranks_or_one_of_which_the_others_are_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS],
        env={**os.environ, "LLMMEM_ABSENT_RANKS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "summed": [[6, 12]] * 4,
        "parts": [3, 6, 3, 6],
        "broadcast": [[0, 0]] * 4,
        "alike": [[6, 9], [5, 6, 5, 6, 5, 6]],
    }
