"""accelerate's own loop, with its gathered metrics and objects.

llmmem exec --device sim:h100x2 -- accelerate launch --multi_gpu --num_processes 2 accelerate_ddp.py
"""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
config = LlamaConfig(
    vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
model = LlamaForCausalLM(config)
rows = [{"input_ids": torch.randint(0, 512, (48,))} for _ in range(15)]
loader = DataLoader(rows, batch_size=2, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
seen = 0
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch, labels=batch["input_ids"]).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seen += len(accelerator.gather_for_metrics(batch["input_ids"]))
assert seen == len(rows), seen  # the rows that even out the last batch are left out again
ranks = gather_object([accelerator.process_index])
assert ranks == list(range(accelerator.num_processes))
(name,) = broadcast_object_list([f"run of rank {accelerator.process_index}"])
assert name == "run of rank 0"
accelerator.end_training()
