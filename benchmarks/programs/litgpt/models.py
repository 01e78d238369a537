"""LitGPT's own models, trained and asked."""

import torch
from litgpt import GPT, Config, lora
from litgpt.generate.base import generate
from litgpt.utils import chunked_cross_entropy

SIZES = {
    "block_size": 256,
    "padded_vocab_size": 512,
    "n_layer": 2,
    "n_head": 4,
    "n_query_groups": 2,
    "n_embd": 256,
    "intermediate_size": 512,
}


def _train(model):
    optimizer = torch.optim.AdamW(
        (weight for weight in model.parameters() if weight.requires_grad), lr=1e-4
    )
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 128, device="cuda").reshape(4, 128) % 512
        logits = model(tokens)
        chunked_cross_entropy(logits[:, :-1], tokens[:, 1:], chunk_size=64).backward()
        optimizer.step()
        optimizer.zero_grad()


def pretraining():
    """A whole model in bfloat16."""
    _train(GPT(Config.from_name("pythia-14m", **SIZES)).to("cuda", torch.bfloat16))


def low_rank_adapters():
    """LoRA as LitGPT makes it."""
    config = lora.Config.from_name(
        "pythia-14m", **SIZES, lora_r=8, lora_query=True, lora_value=True
    )
    model = lora.GPT(config)
    lora.mark_only_lora_as_trainable(model)
    _train(model.to("cuda", torch.bfloat16))


def generation():
    """Tokens drawn one by one with a cache of keys and values."""
    with torch.device("cuda"):
        model = GPT(Config.from_name("pythia-14m", **SIZES)).eval()
        model.set_kv_cache(batch_size=1)
    with torch.inference_mode():
        generate(model, torch.arange(16, device="cuda"), max_returned_tokens=32, top_k=10)
