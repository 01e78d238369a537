"""Supervised fine-tuning with TRL's SFTTrainer."""

from datasets import Dataset
from peft import LoraConfig
from tiny import llama, sentence, sentences, tokenizer
from trl import SFTConfig, SFTTrainer


def _train(rows, **settings):
    peft_config = settings.pop("peft_config", None)
    arguments = SFTConfig(
        output_dir="out",
        max_steps=4,
        per_device_train_batch_size=4,
        bf16=True,
        report_to="none",
        save_strategy="no",
        **settings,
    )
    SFTTrainer(
        model=llama(),
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer(),
        peft_config=peft_config,
    ).train()


def equal_rows():
    """SFT of texts of one length."""
    _train({"text": sentences(16)})


def unequal_rows():
    """SFT of texts of different lengths, padded in each batch."""
    _train({"text": sentences(16, shortest=20, longest=120)})


def packing():
    """SFT with rows packed into blocks of 128 tokens."""
    _train({"text": sentences(64, shortest=20, longest=100)}, packing=True, max_length=128)


def padding_free():
    """SFT of unequal rows that are laid end to end, without padding."""
    _train(
        {"text": sentences(16, shortest=20, longest=100)},
        padding_free=True,
        max_length=None,
    )


def lora():
    """SFT of a LoRA adapter."""
    _train(
        {"text": sentences(16)},
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def prompt_completion():
    """SFT where only the completion has a loss."""
    _train(
        {
            "prompt": [sentence(20, seed) for seed in range(16)],
            "completion": [" " + sentence(30, seed) for seed in range(16)],
        }
    )


def chat_with_accumulation():
    """SFT of conversations, with accumulation of gradients and checkpointing."""
    _train(
        {
            "messages": [
                [
                    {"role": "user", "content": sentence(20, seed)},
                    {"role": "assistant", "content": sentence(30, seed)},
                ]
                for seed in range(16)
            ]
        },
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
    )


def chunked_loss():
    """SFT that never holds all logits."""
    _train({"text": sentences(16)}, loss_type="chunked_nll")


def activation_offloading():
    """SFT with activations kept on the host."""
    _train({"text": sentences(16)}, activation_offloading=True)
