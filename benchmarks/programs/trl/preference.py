"""Preference tuning with TRL: DPO, KTO and reward models."""

from datasets import Dataset
from peft import LoraConfig
from tiny import llama, llama_config, sentence, tokenizer
from transformers import LlamaForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
)

SETTINGS = {
    "output_dir": "out",
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "bf16": True,
    "report_to": "none",
    "save_strategy": "no",
}
LORA = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def _pairs():
    return Dataset.from_dict(
        {
            "prompt": [sentence(12, seed) for seed in range(16)],
            "chosen": [" " + sentence(24, seed) for seed in range(16)],
            "rejected": [" " + sentence(18, seed + 1) for seed in range(16)],
        }
    )


def dpo():
    """DPO of a whole model, with a reference model."""
    DPOTrainer(
        model=llama(),
        ref_model=llama(),
        args=DPOConfig(**SETTINGS),
        train_dataset=_pairs(),
        processing_class=tokenizer(),
    ).train()


def dpo_lora():
    """DPO of an adapter: the reference is the model without it."""
    DPOTrainer(
        model=llama(),
        args=DPOConfig(**SETTINGS),
        train_dataset=_pairs(),
        processing_class=tokenizer(),
        peft_config=LORA,
    ).train()


def kto():
    """KTO of single answers, each good or bad."""
    rows = Dataset.from_dict(
        {
            "prompt": [sentence(12, seed) for seed in range(16)],
            "completion": [" " + sentence(20, seed) for seed in range(16)],
            "label": [seed % 2 == 0 for seed in range(16)],
        }
    )
    KTOTrainer(
        model=llama(),
        ref_model=llama(),
        args=KTOConfig(**SETTINGS),
        train_dataset=rows,
        processing_class=tokenizer(),
    ).train()


def reward():
    """A reward model of chosen and rejected answers."""
    RewardTrainer(
        model=LlamaForSequenceClassification(llama_config(num_labels=1)),
        args=RewardConfig(**SETTINGS),
        train_dataset=_pairs(),
        processing_class=tokenizer(),
    ).train()
