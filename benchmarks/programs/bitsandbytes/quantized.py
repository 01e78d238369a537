"""Quantized training with bitsandbytes."""

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from tiny import VOCABULARY, llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def _train(model, optimizer):
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _quantized(config):
    llama().save_pretrained("saved")
    return AutoModelForCausalLM.from_pretrained(
        "saved", quantization_config=config, device_map={"": 0}, dtype=torch.bfloat16
    )


def qlora():
    """LoRA on a model loaded in 4-bit NormalFloat, with checkpointing and a paged optimizer."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = prepare_model_for_kbit_training(_quantized(config))
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, adapter)
    _train(model, bitsandbytes.optim.PagedAdamW8bit(model.parameters(), lr=1e-4))


def int8_lora():
    """LoRA on a model loaded in 8 bits."""
    model = prepare_model_for_kbit_training(_quantized(BitsAndBytesConfig(load_in_8bit=True)))
    model = get_peft_model(model, LoraConfig(r=8, task_type="CAUSAL_LM"))
    _train(model, torch.optim.AdamW(model.parameters(), lr=1e-4))


def adam_8bit():
    """8-bit Adam with embeddings in 32 bits."""
    model = llama().cuda()
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.register_parameters(model.parameters())
    manager.override_config(model.model.embed_tokens.weight, "optim_bits", 32)
    _train(model, bitsandbytes.optim.Adam8bit(model.parameters(), lr=1e-4))


def linear_layers():
    """Layers of bitsandbytes in a model of one's own."""
    model = torch.nn.Sequential(
        bitsandbytes.nn.LinearNF4(512, 1024, compute_dtype=torch.bfloat16),
        torch.nn.GELU(),
        bitsandbytes.nn.Linear8bitLt(1024, 512, has_fp16_weights=False, threshold=6.0),
        torch.nn.Linear(512, 10, dtype=torch.bfloat16),
    ).cuda()
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=1e-2)
    for _ in range(3):
        inputs = torch.randn(64, 512, device="cuda", dtype=torch.bfloat16)
        loss = model(inputs.requires_grad_()).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def quantized_generation():
    """Generation with a model loaded in 4-bit floats."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = _quantized(config)
    tokens = torch.arange(5, 25, device="cuda")[None]
    model.generate(tokens, max_new_tokens=16, do_sample=False)
