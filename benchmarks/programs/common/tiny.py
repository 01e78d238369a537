"""What the programs share: small models with random weights, a tokenizer and rows, made here.

It imports a library only where it is needed: programs of other libraries start without it.
"""

import random

WORDS = [
    *("the", "a", "model", "memory", "of", "on", "in", "and", "to", "is", "was", "fits", "card"),
    *("step", "token", "gradient", "weight", "small", "large", "fast", "slow", "reads", "writes"),
    *("sees", "takes", "gives", "learns", "trains", "yes", "no", "why", "how", "what", "?", "."),
    *(",", ":", "!", "user", "assistant", "system"),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s> ' + message['role'] + ' : ' + message['content'] + ' </s> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s> assistant : ' }}{% endif %}"
)
VOCABULARY = 512


def tokenizer():
    """A tokenizer of whole words, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=512,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def llama_config(**changes):
    """The configuration of a Llama with two layers."""
    from transformers import LlamaConfig

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**settings | changes)


def llama(**changes):
    """A Llama with two layers and random weights."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(**changes))


def sentence(words, seed=0):
    """So many words, the same ones for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def sentences(count, shortest=64, longest=64):
    """Sentences of equal lengths, or of lengths that vary."""
    lengths = random.Random(0)
    return [sentence(lengths.randint(shortest, longest), seed) for seed in range(count)]
