"""Full fine-tuning of Mistral-7B with the Hugging Face Trainer, as in a published benchmark.

The benchmark of foundation-model-stack/fms-acceleration (scenario "full-finetuning", one A100-80GB,
torch 2.4.1, transformers 4.48.1) has for 4 sequences of 4096 tokens in a batch 72,434,837,504 bytes
of allocated memory at the peak, and for 8 of them 72,435,230,720. This repeats it with the versions
that are installed:

    llmmem exec --device sim:a100-80gb -- python benchmarks/published_full_fine_tuning.py 4
"""

import sys
import tempfile

import torch
from transformers import MistralConfig, MistralForCausalLM, Trainer, TrainingArguments

SEQUENCE_LENGTH = 4096
VOCABULARY = 32001  # the model's and a token for padding


class RandomTokens(torch.utils.data.Dataset):
    """Sequences of random tokens: what they are makes no difference to memory."""

    def __init__(self, sequences):
        self.tokens = torch.randint(VOCABULARY, (sequences, SEQUENCE_LENGTH))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def main(batch_size):
    """Two steps, and the peak as PyTorch's allocator counts it."""
    config = MistralConfig(vocab_size=VOCABULARY, sliding_window=4096, use_cache=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):  # a 7B model is too large for the memory of many hosts
        model = MistralForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=batch_size,
            gradient_checkpointing=True,
            optim="adamw_torch",
            max_steps=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=RandomTokens(4 * batch_size)).train()
    print(f"peak allocated: {torch.cuda.max_memory_allocated()} bytes")


if __name__ == "__main__":
    main(int(sys.argv[1]))
