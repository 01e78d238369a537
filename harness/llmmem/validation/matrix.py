"""The accuracy matrix: the setups that estimates are validated against.

The matrix was written before estimates were corrected against it. Part of it, selected by a hash of
the setup, is *held out*: no estimate was changed because of it. Both parts are reported separately.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmmem.setups import Setup

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Case", "matrix"]

HELD_OUT_PERCENT = 40

_Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A setup of the matrix, and whether it was held out while estimates were developed."""

    setup: Setup
    is_held_out: bool


def matrix() -> tuple[Case, ...]:
    """All cases in a fixed order, without duplicates."""
    setups = dict.fromkeys(Setup.from_mapping(keys).key() for keys in _all_keys())
    return tuple(Case(_from_key(key), _is_held_out(key)) for key in setups)


def _from_key(key: str) -> Setup:
    import json

    return Setup.from_mapping(json.loads(key))


def _is_held_out(key: str) -> bool:
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


SMALL_DECODERS = (
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "google/gemma-2b",
    "google/gemma-2-2b",
    "google/gemma-3-1b-it",
    "microsoft/phi-2",
    "microsoft/Phi-3.5-mini-instruct",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "HuggingFaceTB/SmolLM2-360M",
    "HuggingFaceTB/SmolLM3-3B",
    "openai-community/gpt2",
    "openai-community/gpt2-large",
    "EleutherAI/pythia-160m",
    "EleutherAI/pythia-1.4b",
    "facebook/opt-125m",
    "facebook/opt-350m",
    "facebook/opt-1.3b",
    "bigscience/bloom-560m",
)
LARGE_DECODERS = (
    "meta-llama/Llama-2-13b-hf",
    "meta-llama/Llama-3.1-8B",
    "mistralai/Mistral-7B-v0.3",
    "google/gemma-2-9b",
    "google/gemma-7b",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-32B",
    "Qwen/Qwen3-8B",
    "EleutherAI/gpt-j-6b",
    "EleutherAI/gpt-neox-20b",
    "tiiuae/falcon-7b",
    "bigscience/bloom-7b1",
    "microsoft/phi-4",
)
EXPERTS = ("mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-30B-A3B", "openai/gpt-oss-20b")
ENCODERS = (
    "google-bert/bert-base-uncased",
    "google-bert/bert-large-uncased",
    "distilbert/distilbert-base-uncased",
    "FacebookAI/roberta-base",
    "microsoft/deberta-v3-base",
    "answerdotai/ModernBERT-base",
)
ENCODER_DECODERS = (
    "google-t5/t5-small",
    "google-t5/t5-base",
    "google/flan-t5-xl",
    "facebook/bart-large",
)
OPTIMIZERS = (
    "adamw_torch",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_bnb_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
)
ADAPTERS: tuple[_Keys, ...] = (
    {"peft_type": "LORA", "r": 64, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    {"peft_type": "LORA", "r": 16, "use_dora": True, "target_modules": "all-linear"},
    {"peft_type": "LORA", "r": 8, "lora_dropout": 0.1, "target_modules": "all-linear"},
    {"peft_type": "IA3"},
    {"peft_type": "VERA", "target_modules": ["q_proj", "o_proj"]},
    {"peft_type": "LOHA", "target_modules": ["q_proj", "v_proj"]},
    {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20},
)
# Of one model of each kind: what beside model, method and length decides memory.
OPTIONS: tuple[_Keys, ...] = (
    {"autocast": "bfloat16", "dtype": "float32"},
    {"autocast": "float16", "dtype": "float32", "method": "lora"},
    {"autocast": "bfloat16", "method": "qlora"},
    {"dtype": "float32"},
    {"dtype": "float16", "method": "lora"},
    {"gradient_accumulation_steps": 4},
    {"max_grad_norm": 1.0},
    {"gradient_checkpointing": True, "batch_size": 8},
    {"gradient_checkpointing": {"use_reentrant": True}, "method": "lora", "batch_size": 4},
    {"attention": "eager"},
    {"attention": "eager", "method": "lora", "gradient_checkpointing": True},
    {"seq_len": 8192, "gradient_checkpointing": True},
    {"seq_len": 16384, "method": "qlora", "gradient_checkpointing": True},
    {"seq_len": 128, "batch_size": 16},
    {"seq_len": 1000, "batch_size": 3, "method": "lora"},
    {"mode": "forward", "batch_size": 4},
    {"mode": "generate", "new_tokens": 64},
    {"mode": "generate", "new_tokens": 32, "kv_cache": "static", "batch_size": 4},
    {"mode": "generate", "new_tokens": 16, "quantization": "nf4"},
    {"quantization": "fp4", "adapter": ADAPTERS[0]},
    {"method": "qlora", "double_quant": False},
    {"method": "qlora", "kbit_prepare": False, "adapter_dtype": "bfloat16"},
    {"method": "int8-lora", "dtype": "float16"},
    {"allocator": "expandable_segments:True"},
    {"allocator": "expandable_segments:True", "method": "qlora", "gradient_checkpointing": True},
    {"allocator": "max_split_size_mb:64", "method": "lora"},
    {"steps": 1},
)
METHODS = ("full", "lora", "qlora", "int8-lora")


def _all_keys() -> Iterator[_Keys]:
    for position, model in enumerate(SMALL_DECODERS):
        # Short and long, small and large batches, in turn.
        seq_len, batch_size = ((2048, 1), (512, 4), (1024, 2), (128, 8))[position % 4]
        length = {"model": model, "seq_len": seq_len, "batch_size": batch_size}
        for method in METHODS:
            yield {**length, "method": method}
    for model in LARGE_DECODERS:
        yield {"model": model, "method": "lora", "gradient_checkpointing": True}
        yield {"model": model, "method": "qlora", "gradient_checkpointing": True, "batch_size": 2}
    yield {"model": "meta-llama/Llama-3.1-8B", "gradient_checkpointing": True}
    yield {"model": "meta-llama/Llama-3.1-70B", "method": "qlora", "gradient_checkpointing": True}
    for model in EXPERTS:
        targets = {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"]}
        yield {"model": model, "adapter": targets, "gradient_checkpointing": True}
        yield {"model": model, "method": "qlora", "seq_len": 512}
    for model in ENCODERS:
        yield {"model": model, "task": "masked-lm", "seq_len": 512, "batch_size": 8}
        yield {
            "model": model,
            "task": "sequence-classification",
            "method": "lora",
            "seq_len": 128,
            "batch_size": 16,
        }
    for model in ENCODER_DECODERS:
        for method in ("full", "lora"):
            yield {
                "model": model,
                "task": "seq2seq-lm",
                "method": method,
                "seq_len": 512,
                "batch_size": 2,
            }
    for optimizer in OPTIMIZERS:
        yield {"model": "Qwen/Qwen2.5-0.5B", "optimizer": optimizer, "seq_len": 1024}
        yield {
            "model": "meta-llama/Llama-3.2-1B",
            "method": "lora",
            "optimizer": optimizer,
            "seq_len": 512,
        }
    for adapter in ADAPTERS:
        yield {"model": "meta-llama/Llama-3.2-1B", "adapter": adapter, "seq_len": 1024}
    for options in OPTIONS:
        yield {"model": "meta-llama/Llama-3.2-1B", "seq_len": 1024, **options}
        yield {"model": "Qwen/Qwen2.5-0.5B", "seq_len": 512, **options}
