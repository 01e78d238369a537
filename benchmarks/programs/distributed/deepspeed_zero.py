"""DeepSpeed's engine: ZeRO of a stage, with the optimizer, or parameters too, in host memory if asked for.

llmmem exec --device sim:h100x2 -- torchrun --nproc-per-node 2 deepspeed_zero.py 3 offload
"""

import os
import sys

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

stage, offload = int(sys.argv[1]), "offload" in sys.argv[2:]
rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
deepspeed.init_distributed("nccl")

zero: dict = {"stage": stage}
if offload:
    zero["offload_optimizer"] = {"device": "cpu"}
if offload and stage == 3:
    zero["offload_param"] = {"device": "cpu"}
settings = {
    "train_micro_batch_size_per_gpu": 2,
    "bf16": {"enabled": True},
    "gradient_clipping": 1.0,
    "zero_optimization": zero,
    "zero_force_ds_cpu_optimizer": False,
}
config = LlamaConfig(
    vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
with deepspeed.zero.Init(config_dict_or_path=settings, enabled=stage == 3):
    model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
for _ in range(3):
    ids = torch.randint(0, 512, (2, 64), device="cuda")
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
engine.destroy()
torch.distributed.destroy_process_group()
