"""Does a fine-tuning step of BERT for classification fit?"""

import pytest

from llmmem import Setup


@pytest.mark.max_vram("4GB")
def test_bert_classification_fits(vram):
    setup = Setup(
        model="google-bert/bert-base-uncased",
        task="sequence-classification",
        batch_size=16,
        seq_len=128,
    )
    vram.run(setup)
