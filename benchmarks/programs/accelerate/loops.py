"""Training loops with Accelerate."""

import torch
from accelerate import Accelerator, cpu_offload, dispatch_model
from tiny import VOCABULARY, llama
from torch.utils.data import DataLoader, TensorDataset
from transformers import get_linear_schedule_with_warmup


def _loader(batches=8):
    tokens = torch.arange(batches * 4 * 64).reshape(-1, 64) % VOCABULARY
    return DataLoader(TensorDataset(tokens), batch_size=4)


def _train(accelerator):
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, 8)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, _loader(), schedule)
    model.train()
    for (tokens,) in loader:
        with accelerator.accumulate(model):
            loss = model(input_ids=tokens, labels=tokens).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def plain():
    """A loop in float32."""
    _train(Accelerator())


def bf16():
    """A loop under autocast."""
    _train(Accelerator(mixed_precision="bf16"))


def fp16():
    """A loop under autocast with a scaler of gradients."""
    _train(Accelerator(mixed_precision="fp16"))


def accumulation():
    """A loop with one step for every four batches."""
    _train(Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4))


def cpu_offloaded_inference():
    """Inference with weights that stay on the host."""
    model = cpu_offload(llama().eval(), execution_device=torch.device("cuda"))
    with torch.no_grad():
        for (tokens,) in _loader(2):
            model(tokens.to("cuda"))


def dispatched_inference():
    """Inference with one layer on the GPU and one on the host."""
    model = llama().eval()
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "cpu"}
    places |= {"model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
    model = dispatch_model(model, device_map=places)
    with torch.no_grad():
        for (tokens,) in _loader(2):
            model(tokens.to("cuda"))
