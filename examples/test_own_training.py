"""An ordinary training test: only the marker is specific to pytest-llmmem."""

import pytest
import torch


@pytest.mark.max_vram("1GiB")
def test_one_training_step():
    model = torch.nn.Sequential(
        torch.nn.Linear(1024, 4096),
        torch.nn.GELU(),
        torch.nn.Linear(4096, 10),
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(256, 1024, device="cuda")
    labels = torch.randint(10, (256,), device="cuda")
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
