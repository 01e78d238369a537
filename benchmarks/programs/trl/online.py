"""Reinforcement learning with TRL: the model answers, and is trained on rewards."""

from datasets import Dataset
from peft import LoraConfig
from tiny import llama, sentence, tokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

SETTINGS = {
    "output_dir": "out",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 16,
    "bf16": True,
    "report_to": "none",
    "save_strategy": "no",
}


def _prompts():
    return Dataset.from_dict({"prompt": [sentence(12, seed) for seed in range(8)]})


def _length(completions, **_):
    return [float(len(completion)) for completion in completions]


def grpo():
    """GRPO of a whole model."""
    GRPOTrainer(
        model=llama(),
        reward_funcs=_length,
        args=GRPOConfig(**SETTINGS),
        train_dataset=_prompts(),
        processing_class=tokenizer(),
    ).train()


def grpo_lora_with_reference():
    """GRPO of an adapter, with a penalty on the distance to the model without it."""
    GRPOTrainer(
        model=llama(),
        reward_funcs=_length,
        args=GRPOConfig(beta=0.04, **SETTINGS),
        train_dataset=_prompts(),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=8, task_type="CAUSAL_LM"),
    ).train()


def rloo():
    """RLOO of an adapter: each answer against the mean of the others."""
    RLOOTrainer(
        model=llama(),
        reward_funcs=_length,
        args=RLOOConfig(**SETTINGS),
        train_dataset=_prompts(),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=8, task_type="CAUSAL_LM"),
    ).train()
