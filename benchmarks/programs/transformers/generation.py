"""Text that is generated with transformers."""

import torch
from tiny import llama, llama_config, sentences, tokenizer
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration, pipeline


def _ask(model, **options):
    words = tokenizer()
    words.padding_side = "left"
    batch = words(sentences(4, shortest=10, longest=30), padding=True, return_tensors="pt")
    model = model.to("cuda", torch.bfloat16).eval()
    with torch.inference_mode():
        model.generate(
            input_ids=batch["input_ids"].to("cuda"),
            attention_mask=batch["attention_mask"].to("cuda"),
            max_new_tokens=16,
            **options,
        )


def greedy():
    """The most probable token, time after time."""
    _ask(llama(), do_sample=False)


def sampled():
    """Tokens that are drawn."""
    _ask(llama(), do_sample=True, top_k=20, top_p=0.9, temperature=0.7)


def beams():
    """Search with four beams."""
    _ask(llama(), do_sample=False, num_beams=4)


def static_cache():
    """A cache of keys and values that is made at once."""
    _ask(llama(), do_sample=False, cache_implementation="static", disable_compile=True)


def assisted():
    """A smaller model that proposes tokens."""
    assistant = LlamaForCausalLM(llama_config(num_hidden_layers=1)).to("cuda", torch.bfloat16)
    model = llama().to("cuda", torch.bfloat16).eval()
    tokens = torch.arange(5, 25, device="cuda")[None]
    model.generate(tokens, assistant_model=assistant.eval(), max_new_tokens=16, do_sample=False)


def sequence_to_sequence():
    """Answers of T5."""
    config = T5Config(
        vocab_size=512, d_model=256, d_kv=64, d_ff=512, num_layers=2, decoder_start_token_id=0
    )
    _ask(T5ForConditionalGeneration(config), do_sample=False)


def text_pipeline():
    """A pipeline over texts."""
    made = pipeline(
        "text-generation", model=llama(), tokenizer=tokenizer(), device="cuda", dtype=torch.bfloat16
    )
    made(sentences(2, 10, 20), max_new_tokens=8, do_sample=False)
