"""A mask that a program has indexed with is still known afterwards: TRL's loss does so twice."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json
from llmmem import simgpu
simgpu.activate("rtx4090")
import torch
labels = torch.ones(4, 65, dtype=torch.long)
labels[:, :10] = -100
shifted = labels.cuda()[:, 1:]
mask = shifted != -100
hidden = torch.randn(4, 64, 8, device="cuda", requires_grad=True)
chosen = hidden[mask]
placed = torch.zeros(4, 64, device="cuda").masked_scatter(mask, chosen.sum(-1))
placed.sum().backward()
print(json.dumps([len(chosen), len(shifted[mask]), mask.sum().item(), list(hidden.grad.shape)]))
"""


def test_a_mask_selects_the_same_elements_again_and_in_the_backward_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [220, 220, 220, [4, 64, 8]]
