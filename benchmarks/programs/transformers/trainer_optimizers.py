"""The Hugging Face Trainer with each family of optimizers that it knows."""

from datasets import Dataset
from tiny import VOCABULARY, llama
from transformers import Trainer, TrainingArguments


def _train(optim, **settings):
    rows = [[(row + place) % VOCABULARY for place in range(64)] for row in range(16)]
    arguments = TrainingArguments(
        output_dir="out",
        max_steps=4,
        per_device_train_batch_size=4,
        bf16=True,
        optim=optim,
        report_to="none",
        save_strategy="no",
        **settings,
    )
    Trainer(
        model=llama(),
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
    ).train()


def adamw():
    """AdamW with a loop over parameters in groups."""
    _train("adamw_torch")


def adamw_fused():
    """AdamW in one kernel."""
    _train("adamw_torch_fused")


def adamw_8bit_of_torchao():
    """AdamW of torchao in 8 bits."""
    _train("adamw_torch_8bit")


def adamw_4bit_of_torchao():
    """AdamW of torchao in 4 bits."""
    _train("adamw_torch_4bit")


def adamw_8bit():
    """8-bit AdamW of bitsandbytes."""
    _train("adamw_bnb_8bit")


def paged_adamw():
    """AdamW of bitsandbytes with paged state."""
    _train("paged_adamw_32bit")


def paged_adamw_8bit():
    """8-bit AdamW of bitsandbytes with paged state."""
    _train("paged_adamw_8bit")


def ademamix():
    """AdEMAMix of bitsandbytes."""
    _train("ademamix")


def lion():
    """Lion of bitsandbytes."""
    _train("lion_32bit")


def lion_8bit():
    """8-bit Lion of bitsandbytes."""
    _train("lion_8bit")


def rmsprop():
    """RMSprop."""
    _train("rmsprop")


def rmsprop_8bit():
    """8-bit RMSprop of bitsandbytes."""
    _train("rmsprop_bnb_8bit")


def sgd():
    """Plain SGD."""
    _train("sgd")


def adagrad():
    """Adagrad."""
    _train("adagrad")


def adafactor():
    """Adafactor: factored second moments."""
    _train("adafactor")


def galore():
    """GaLore: AdamW on low-rank gradients."""
    _train("galore_adamw", optim_target_modules=["attn", "mlp"])


def galore_adafactor():
    """GaLore with Adafactor."""
    _train("galore_adafactor", optim_target_modules=["attn", "mlp"])


def galore_layerwise():
    """GaLore that steps within the backward pass."""
    _train("galore_adamw_layerwise", optim_target_modules=["attn", "mlp"])


def apollo():
    """APOLLO: AdamW scaled by a random low-rank projection."""
    _train("apollo_adamw", optim_target_modules=["attn", "mlp"])


def lomo():
    """LOMO: gradients that are used at once."""
    _train("lomo")


def adalomo():
    """AdaLomo."""
    _train("adalomo")


def grokadamw():
    """GrokAdamW."""
    _train("grokadamw")


def schedule_free_adamw():
    """Schedule-free AdamW."""
    _train("schedule_free_adamw", lr_scheduler_type="constant")


def schedule_free_sgd():
    """Schedule-free SGD."""
    _train("schedule_free_sgd", lr_scheduler_type="constant")


def stable_adamw():
    """StableAdamW."""
    _train("stable_adamw")
