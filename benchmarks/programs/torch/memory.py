"""Techniques of PyTorch's own that trade memory."""

from functools import partial

import torch
from tiny import VOCABULARY, llama
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)


class _Block(nn.Module):
    def __init__(self, width=256, heads=4):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden):
        batch, length, width = hidden.shape
        split = self.inputs(self.norms[0](hidden)).view(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.outputs(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.mlp(self.norms[1](hidden))


def _train(forward, model, batches=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(batches):
        hidden = torch.randn(8, 128, 256, device="cuda", dtype=torch.bfloat16)
        forward(hidden).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _blocks(count=4):
    return nn.Sequential(*(_Block() for _ in range(count))).to("cuda", torch.bfloat16)


def plain():
    """Transformer blocks in bfloat16."""
    model = _blocks()
    _train(model, model)


def checkpointed():
    """Each block is computed again in the backward pass."""
    model = _blocks()

    def forward(hidden):
        for block in model:
            hidden = checkpoint(block, hidden, use_reentrant=False)
        return hidden

    _train(forward, model)


def checkpointed_sequence():
    """A sequence of blocks in two segments."""
    model = _blocks()

    def forward(hidden):
        return checkpoint_sequential(model, 2, hidden.requires_grad_(), use_reentrant=False)

    _train(forward, model)


def _selective(saved):
    model = _blocks()

    def policy(context, operator, *args, **kwargs):
        keep = operator in saved
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    def forward(hidden):
        for block in model:
            hidden = checkpoint(
                block,
                hidden,
                use_reentrant=False,
                context_fn=partial(create_selective_checkpoint_contexts, policy),
            )
        return hidden

    _train(forward, model)


def selective_checkpointing_of_matmuls():
    """Selective checkpointing: products of matrices are kept."""
    _selective({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})


def selective_checkpointing_of_attention():
    """Selective checkpointing: attention and products of matrices are kept."""
    _selective(
        {
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
            torch.ops.aten._scaled_dot_product_flash_attention.default,
            torch.ops.aten._scaled_dot_product_efficient_attention.default,
            torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        }
    )


def activations_on_host():
    """Activations are kept in pinned memory of the host."""
    model = _blocks()

    def forward(hidden):
        with torch.autograd.graph.save_on_cpu(pin_memory=True):
            return model(hidden)

    _train(forward, model)


def pinned_loader():
    """A loader with pinned batches that are copied beside the computation."""
    model = _blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = torch.utils.data.TensorDataset(torch.zeros(32, 128, 256, dtype=torch.bfloat16))
    for (hidden,) in torch.utils.data.DataLoader(rows, batch_size=8, pin_memory=True):
        model(hidden.to("cuda", non_blocking=True)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def optimizer_in_backward():
    """Each weight is stepped as soon as its gradient is there."""
    model = _blocks()
    optimizers = {
        weight: torch.optim.AdamW([weight], lr=1e-4, foreach=False) for weight in model.parameters()
    }

    def step(weight):
        optimizers[weight].step()
        optimizers[weight].zero_grad()

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        hidden = torch.randn(8, 128, 256, device="cuda", dtype=torch.bfloat16)
        model(hidden).float().square().mean().backward()


def moved_between_host_and_device():
    """A model that goes to the host and comes back."""
    model = _blocks()
    for _ in range(2):
        with torch.no_grad():
            model(torch.zeros(8, 128, 256, device="cuda", dtype=torch.bfloat16))
        model.cpu()
        torch.cuda.empty_cache()
        model.cuda()


def amp_with_scaler():
    """Autocast to float16 with a scaler, gradients clipped."""
    model = llama().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(input_ids=tokens, labels=tokens).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
