"""Trainers as they are made for a GPU."""

from __future__ import annotations

import tempfile

import torch


def _trainer(adapter=None, dtype=torch.bfloat16, **arguments):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if adapter is not None:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(**adapter))
    ids = torch.arange(256)
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=2,
        max_steps=3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    return Trainer(model=model, args=arguments, train_dataset=[row] * 16)


def full(**arguments):
    return _trainer(**arguments)


def lora(**arguments):
    return _trainer({"r": 8, "target_modules": ["q_proj", "v_proj"]}, **arguments)


def mixed_precision(**arguments):
    return _trainer(
        dtype=torch.float32,
        bf16=True,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        gradient_checkpointing=True,
        **arguments,
    )


TRAINERS = {make.__name__: make for make in (full, lora, mixed_precision)}
