"""Fine-tune a small Llama with LoRA and TRL's SFTTrainer: an ordinary script for a GPU.

To run it on a machine without a GPU and see how much memory it takes:

    pip install trl
    llmmem exec --device sim:rtx4090 -- python examples/trl_sft.py
"""

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

SENTENCE = "how much memory does a step of fine tuning take on this card"


def build_tokenizer():
    words = ["<unk>", "<pad>", "</s>", *dict.fromkeys(SENTENCE.split())]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


def main():
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    texts = Dataset.from_dict({"text": [" ".join([SENTENCE] * 78)] * 16})
    with tempfile.TemporaryDirectory() as directory:
        arguments = SFTConfig(
            output_dir=directory,
            max_length=1024,
            per_device_train_batch_size=4,
            gradient_checkpointing=True,
            bf16=True,
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=texts,
            processing_class=build_tokenizer(),
            peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.train()
    print(f"peak allocated: {torch.cuda.max_memory_allocated()} bytes")


if __name__ == "__main__":
    main()
