"""Fine-tune a small Llama with the Hugging Face Trainer: an ordinary script for a GPU.

To run it on a machine without a GPU and see how much memory it takes:

    llmmem exec --device sim:rtx4090 -- python examples/hf_trainer.py
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

SEQUENCE_LENGTH = 1024


class RandomTokens(torch.utils.data.Dataset):
    """Sequences of random tokens; their values do not affect memory."""

    def __init__(self, sequences, vocabulary):
        self.tokens = torch.randint(vocabulary, (sequences, SEQUENCE_LENGTH))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def main():
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=SEQUENCE_LENGTH,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            gradient_checkpointing=True,
            bf16=True,
            max_steps=3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=RandomTokens(64, config.vocab_size)
        )
        trainer.train()
    print(f"peak allocated: {torch.cuda.max_memory_allocated()} bytes")


if __name__ == "__main__":
    main()
