"""The Hugging Face Trainer, with what is often switched on."""

from datasets import Dataset
from tiny import VOCABULARY, llama, sentences, tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

SETTINGS = {
    "output_dir": "out",
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "save_strategy": "no",
}


def _rows(count=16, length=64):
    return [[(row + place) % VOCABULARY for place in range(length)] for row in range(count)]


def _causal(**settings):
    rows = _rows()
    Trainer(
        model=llama(),
        args=TrainingArguments(**SETTINGS | settings),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
    ).train()


def float32():
    """Full precision."""
    _causal()


def float16():
    """Mixed precision with a scaler of gradients."""
    _causal(fp16=True)


def checkpointing_and_accumulation():
    """Gradient checkpointing, and two batches for each step."""
    _causal(bf16=True, gradient_checkpointing=True, gradient_accumulation_steps=2)


def liger():
    """Liger's kernels."""
    _causal(bf16=True, use_liger_kernel=True)


def compiled():
    """A compiled model."""
    _causal(bf16=True, torch_compile=True)


def neftune():
    """Noise on the embeddings."""
    _causal(bf16=True, neftune_noise_alpha=5)


def unequal_rows():
    """Language modelling of texts of different lengths."""
    words = tokenizer()
    texts = Dataset.from_dict({"text": sentences(16, shortest=10, longest=100)})
    Trainer(
        model=llama(),
        args=TrainingArguments(**SETTINGS, bf16=True),
        train_dataset=texts.map(lambda row: words(row["text"]), remove_columns="text"),
        data_collator=DataCollatorForLanguageModeling(words, mlm=False),
    ).train()


def evaluation():
    """Training with evaluation between the steps, and a checkpoint at the end."""
    rows = Dataset.from_dict({"input_ids": _rows(), "labels": _rows()})
    settings = SETTINGS | {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    trainer = Trainer(
        model=llama(),
        args=TrainingArguments(**settings, bf16=True, save_steps=4),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    trainer.evaluate()


def classification():
    """BERT as a classifier."""
    words = tokenizer()
    texts = Dataset.from_dict(
        {
            "text": sentences(16, shortest=10, longest=60),
            "label": [row % 2 for row in range(16)],
        }
    )
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
    )
    Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(**SETTINGS, bf16=True),
        train_dataset=texts.map(lambda row: words(row["text"]), remove_columns="text"),
        data_collator=DataCollatorWithPadding(words),
    ).train()


def sequence_to_sequence():
    """T5 on pairs of texts."""
    words = tokenizer()
    pairs = Dataset.from_dict(
        {
            "input_ids": words(sentences(16, shortest=20, longest=40))["input_ids"],
            "labels": words(sentences(16, shortest=10, longest=20))["input_ids"],
        }
    )
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=256,
        d_kv=64,
        d_ff=512,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    Trainer(
        model=model,
        args=TrainingArguments(**SETTINGS, bf16=True),
        train_dataset=pairs,
        data_collator=DataCollatorForSeq2Seq(words, model=model),
    ).train()
