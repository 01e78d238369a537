"""Optimizers of pytorch_optimizer."""

import pytorch_optimizer
import torch
from tiny import VOCABULARY, llama


def _train(name, **options):
    model = llama().to("cuda", torch.bfloat16)
    optimizer = pytorch_optimizer.load_optimizer(name)(model.parameters(), **options)
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def lion():
    """Lion."""
    _train("lion", lr=1e-4)


def came():
    """CAME: factored second moments with confidence."""
    _train("came", lr=1e-4)


def shampoo():
    """Scalable Shampoo: it decomposes matrices."""
    _train("scalableshampoo", lr=1e-3, preconditioning_compute_steps=1)


def adan():
    """Adan."""
    _train("adan", lr=1e-4)
