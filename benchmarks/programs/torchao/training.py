"""Low-precision training and quantization with torchao."""

import torch
from tiny import VOCABULARY, llama
from torchao.float8 import convert_to_float8_training
from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8, CPUOffloadOptimizer
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    PerGroup,
    quantize_,
)
from torchao.quantization.qat import QATConfig


def _train(model, optimizer):
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _bf16():
    return llama().to("cuda", torch.bfloat16)


def adamw_8bit():
    """AdamW with state in 8 bits."""
    model = _bf16()
    _train(model, AdamW8bit(model.parameters(), lr=1e-4))


def adamw_4bit():
    """AdamW with state in 4 bits."""
    model = _bf16()
    _train(model, AdamW4bit(model.parameters(), lr=1e-4))


def adamw_fp8():
    """AdamW with state in 8-bit floats."""
    model = _bf16()
    _train(model, AdamWFp8(model.parameters(), lr=1e-4))


def optimizer_on_host():
    """The optimizer's state and its step are on the host."""
    model = _bf16()
    _train(model, CPUOffloadOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-4))


def quantization_aware_training():
    """QAT: 8-bit activations and 4-bit weights are imitated, then made."""
    model = _bf16()
    base = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)
    )
    quantize_(model, QATConfig(base, step="prepare"))
    _train(model, torch.optim.AdamW(model.parameters(), lr=1e-4))
    quantize_(model, QATConfig(base, step="convert"))


def float8_training():
    """Products of matrices in 8-bit floats."""
    model = _bf16()
    convert_to_float8_training(model, module_filter_fn=lambda _, name: name != "lm_head")
    _train(model, torch.optim.AdamW(model.parameters(), lr=1e-4))


def _infer(config):
    model = _bf16().eval()
    quantize_(model, config)
    tokens = torch.arange(4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
    with torch.no_grad():
        model(input_ids=tokens)


def int8_weights():
    """Inference with 8-bit weights."""
    _infer(Int8WeightOnlyConfig())


def int8_weights_and_activations():
    """Inference with 8-bit weights and activations."""
    _infer(Int8DynamicActivationInt8WeightConfig())


def float8_weights_and_activations():
    """Inference in 8-bit floats."""
    _infer(Float8DynamicActivationFloat8WeightConfig())
