"""Schedule-free optimizers."""

import schedulefree
import torch
from tiny import VOCABULARY, llama


def _train(model, optimizer):
    optimizer.train()
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.eval()


def adamw():
    """AdamW."""
    model = llama().cuda()
    _train(model, schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3, warmup_steps=1))


def radam():
    """RAdam."""
    model = llama().cuda()
    _train(model, schedulefree.RAdamScheduleFree(model.parameters(), lr=1e-3))
