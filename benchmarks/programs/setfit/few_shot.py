"""Few-shot classification with SetFit."""

from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from setfit import SetFitHead, SetFitModel, Trainer, TrainingArguments
from tiny import VOCABULARY, sentences, tokenizer
from transformers import BertConfig, BertModel


def _body():
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    )
    BertModel(config).save_pretrained("encoder")
    tokenizer().save_pretrained("encoder")
    words = models.Transformer("encoder", max_seq_length=64)
    pooling = models.Pooling(words.get_word_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[words, pooling], device="cuda")


def contrastive_body_and_torch_head():
    """A body tuned on pairs, then a head of PyTorch."""
    model = SetFitModel(_body(), SetFitHead(in_features=128, out_features=2, device="cuda"))
    rows = Dataset.from_dict({"text": sentences(8, shortest=8, longest=20), "label": [0, 1] * 4})
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="out",
            batch_size=4,
            num_iterations=2,
            num_epochs=1,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=rows,
    ).train()
