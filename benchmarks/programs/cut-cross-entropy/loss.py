"""Cross entropy that never makes the logits: Apple's cut-cross-entropy."""

import torch
from cut_cross_entropy import linear_cross_entropy
from tiny import VOCABULARY, llama


def _train(**options):
    model = llama().to("cuda", torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 128, device="cuda").reshape(4, 128) % VOCABULARY
        hidden = model.model(tokens).last_hidden_state
        linear_cross_entropy(hidden, model.lm_head.weight, tokens, shift=1, **options).backward()
        optimizer.step()
        optimizer.zero_grad()


def cut_cross_entropy():
    """The kernels of Triton."""
    _train()


def compiled_by_torch():
    """The reference that torch.compile makes."""
    _train(impl="torch_compile")
