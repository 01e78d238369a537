"""Embeddings and rankers with Sentence Transformers."""

from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
    models,
)
from tiny import VOCABULARY, sentences, tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertModel

SETTINGS = {
    "output_dir": "out",
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "bf16": True,
    "report_to": "none",
    "save_strategy": "no",
}


def _config(**changes):
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        **changes,
    )


def _model():
    BertModel(_config()).save_pretrained("encoder")
    tokenizer().save_pretrained("encoder")
    words = models.Transformer("encoder", max_seq_length=128)
    return SentenceTransformer(
        modules=[words, models.Pooling(words.get_word_embedding_dimension(), "mean")]
    )


def _pairs():
    return Dataset.from_dict(
        {
            "anchor": sentences(32, shortest=8, longest=30),
            "positive": sentences(32, shortest=10, longest=60),
        }
    )


def _train(model, loss, rows):
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**SETTINGS),
        train_dataset=rows,
        loss=loss,
    ).train()


def negatives_of_the_batch():
    """Pairs against the other rows of the batch."""
    model = _model()
    _train(model, losses.MultipleNegativesRankingLoss(model), _pairs())


def cached_negatives():
    """Large batches in small pieces, by cached gradients."""
    model = _model()
    _train(model, losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4), _pairs())


def cosine_similarity():
    """Pairs with a score."""
    model = _model()
    rows = _pairs().add_column("score", [0.5] * 32)
    _train(model, losses.CosineSimilarityLoss(model), rows)


def cross_encoder():
    """A ranker that reads both texts."""
    BertForSequenceClassification(_config(num_labels=1)).save_pretrained("ranker")
    tokenizer().save_pretrained("ranker")
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model = CrossEncoder("ranker", num_labels=1)
    CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**SETTINGS),
        train_dataset=_pairs().add_column("label", [1.0, 0.0] * 16),
        loss=BinaryCrossEntropyLoss(model),
    ).train()


def encoding():
    """Embeddings of texts of different lengths."""
    model = _model().to("cuda")
    vectors = model.encode(sentences(40, shortest=5, longest=100), convert_to_tensor=True)
    model.similarity(vectors, vectors)
