"""Linear attention of flash-linear-attention, in kernels of Triton."""

import torch
from fla.layers import GatedLinearAttention
from fla.models import GatedDeltaNetConfig, GLAConfig
from transformers import AutoModelForCausalLM


def _train(model):
    model = model.to("cuda", torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(3):
        tokens = torch.arange(step, step + 2 * 128, device="cuda").reshape(2, 128) % 512
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def gated_linear_attention():
    """A language model of gated linear attention."""
    config = GLAConfig(
        hidden_size=256, num_hidden_layers=2, num_heads=2, vocab_size=512, intermediate_size=512
    )
    _train(AutoModelForCausalLM.from_config(config))


def gated_delta_net():
    """A language model of gated delta networks."""
    config = GatedDeltaNetConfig(
        hidden_size=256,
        num_hidden_layers=2,
        num_heads=2,
        head_dim=64,
        vocab_size=512,
        intermediate_size=512,
    )
    _train(AutoModelForCausalLM.from_config(config))


def one_layer():
    """One layer, forward and backward."""
    layer = GatedLinearAttention(hidden_size=256, num_heads=2).to("cuda", torch.bfloat16)
    inputs = torch.randn(2, 128, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    layer(inputs)[0].sum().backward()
