"""Trainers as they are made for a GPU: what is asked of each, without training it."""

from __future__ import annotations

import tempfile


def _data(rows=16):
    import torch

    ids = [torch.arange(100 + 10 * (row % 8)) for row in range(rows)]
    return [{"input_ids": row, "labels": row} for row in ids]


def _padded(rows):
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, labels = ([row[name] for row in rows] for name in ("input_ids", "labels"))
    mask = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def _model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config)


def trainer_of(model, optimizers=(None, None), output_dir=None, callbacks=None, **arguments):
    """A Trainer of the model; `arguments` are those of `TrainingArguments`."""
    from transformers import Trainer, TrainingArguments

    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir or tempfile.mkdtemp(), **{**defaults, **arguments}),
        train_dataset=_data(),
        data_collator=_padded,
        optimizers=optimizers,
        callbacks=callbacks,
    )


def full(**more):
    import torch

    return trainer_of(_model().to(torch.bfloat16), **more)


def lora(**more):
    import peft

    config = peft.LoraConfig(r=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(_model(), config)
    return trainer_of(model, gradient_checkpointing=True, **more)


def mixed(**more):
    return trainer_of(
        _model(),
        bf16=True,
        max_steps=2,  # all of the rows, once
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        max_grad_norm=1.0,
        **more,
    )


def scaled(**more):
    """With the scaling of float16, and an optimizer of one's own."""
    import torch

    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return trainer_of(
        model, optimizers=(optimizer, None), fp16=True, label_smoothing_factor=0.1, **more
    )


def one_step(**more):
    """Ends before an optimizer's second step."""
    return trainer_of(_model(), max_steps=1, torch_empty_cache_steps=1, **more)


def qlora(**more):
    """Loaded on the GPU, as a quantized model is."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    with tempfile.TemporaryDirectory() as directory:
        _model().to(torch.bfloat16).save_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(
            directory, quantization_config=quantized, dtype=torch.bfloat16, device_map={"": 0}
        )
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = peft.LoraConfig(r=8, target_modules="all-linear")
    return trainer_of(peft.get_peft_model(model, config), optim="paged_adamw_8bit", **more)


def unequal(**more):
    """So many steps that the longest rows come only later."""
    import torch

    trainer = trainer_of(_model(), max_steps=12, per_device_train_batch_size=2, **more)
    lengths = [40] * 20 + [300] * 2 + [60] * 2
    trainer.train_dataset = [
        {"input_ids": row, "labels": row} for row in map(torch.arange, lengths)
    ]
    return trainer


def many_steps(**more):
    """More than an estimate takes."""
    trainer = trainer_of(_model(), max_steps=12, bf16=True, logging_steps=4, **more)
    trainer.train_dataset = [trainer.train_dataset[0]] * 48
    return trainer


TRAINERS = {
    make.__name__: make
    for make in (full, lora, qlora, mixed, scaled, one_step, unequal, many_steps)
}
