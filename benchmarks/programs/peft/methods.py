"""Adapters of PEFT in a loop of one's own."""

import peft
import torch
from tiny import VOCABULARY, llama


def _train(config, **changes):
    model = peft.get_peft_model(llama(**changes), config).to("cuda", torch.bfloat16)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def lora():
    """LoRA on all linear layers."""
    _train(peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def dora():
    """LoRA with decomposed magnitudes and dropout."""
    _train(peft.LoraConfig(r=8, use_dora=True, lora_dropout=0.1, task_type="CAUSAL_LM"))


def prefix_tuning():
    """Trained prefixes of keys and values."""
    _train(peft.PrefixTuningConfig(num_virtual_tokens=16, task_type="CAUSAL_LM"))


def prompt_tuning():
    """Trained embeddings before the text."""
    _train(peft.PromptTuningConfig(num_virtual_tokens=16, task_type="CAUSAL_LM"))


def ia3():
    """IA3: vectors that scale activations."""
    _train(peft.IA3Config(task_type="CAUSAL_LM"))


def vera():
    """VeRA: shared random matrices."""
    _train(peft.VeraConfig(r=64, task_type="CAUSAL_LM"), num_key_value_heads=4)


def oft():
    """OFT: orthogonal transformations."""
    _train(peft.OFTConfig(oft_block_size=32, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def merged_and_saved():
    """A LoRA adapter that is merged into the weights after training."""
    config = peft.LoraConfig(r=8, task_type="CAUSAL_LM")
    model = peft.get_peft_model(llama(), config).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(2):
        tokens = torch.arange(4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.merge_and_unload().save_pretrained("merged")
