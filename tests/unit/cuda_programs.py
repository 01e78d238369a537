"""Training steps as they are written for a GPU."""

from __future__ import annotations

import torch


def _llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        use_cache=False,
        **changes,
    )
    return LlamaForCausalLM(config)


def plain():
    model = _llama(tie_word_embeddings=True).to(torch.bfloat16).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        ids = torch.randint(4096, (4, 256), device="cuda")
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def loss_scaling():
    model = _llama().to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(3):
        ids = torch.randint(4096, (4, 256)).to("cuda", non_blocking=True)
        mask = torch.ones(4, 256, dtype=torch.long).cuda()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)


def lora():
    import peft

    with torch.device("cuda"):
        model = _llama()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    targets = ["q_proj", "v_proj", "up_proj"]
    config = peft.LoraConfig(r=8, lora_dropout=0.1, target_modules=targets)
    model = peft.get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    rows = torch.randint(4096, (8, 256))
    for batch in torch.utils.data.DataLoader(rows, batch_size=4, pin_memory=True):
        ids = batch.to(0)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


PROGRAMS = {program.__name__: program for program in (plain, loss_scaling, lora)}
