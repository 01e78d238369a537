"""Liger's kernels in models and on their own."""

import torch
from liger_kernel.transformers import (
    AutoLigerKernelForCausalLM,
    LigerFusedLinearCrossEntropyLoss,
    LigerRMSNorm,
    apply_liger_kernel_to_qwen2,
)
from tiny import VOCABULARY, llama
from transformers import Qwen2Config, Qwen2ForCausalLM


def _train(model):
    model = model.to("cuda", torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def patched_qwen2():
    """A Qwen2 whose norms, rotations, activations and loss are Liger's."""
    apply_liger_kernel_to_qwen2()
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    _train(Qwen2ForCausalLM(config))


def loaded_llama():
    """A model loaded by Liger's own class."""
    llama().save_pretrained("saved")
    _train(AutoLigerKernelForCausalLM.from_pretrained("saved"))


def single_kernels():
    """A norm, and a loss that is fused with the output layer."""
    norm = LigerRMSNorm(256).to("cuda", torch.bfloat16)
    head = torch.nn.Linear(256, 4096, bias=False).to("cuda", torch.bfloat16)
    loss_of = LigerFusedLinearCrossEntropyLoss()
    hidden = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.arange(512, device="cuda")
    loss_of(head.weight, norm(hidden), labels).backward()
