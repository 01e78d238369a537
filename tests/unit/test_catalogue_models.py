from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llmmem.catalogue.models import find_model, models, nearest_models


@pytest.mark.parametrize("entry", models(), ids=lambda entry: entry.id)
def test_the_model_of_each_config_has_exactly_the_parameters_listed(entry):
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(entry.path)
    with torch.device("meta"):
        model = getattr(transformers, entry.auto_class).from_config(config)
    assert config.model_type == entry.model_type
    assert sum(p.numel() for p in model.parameters()) == entry.unique_parameters
    every_use = (p.numel() for _, p in model.named_parameters(remove_duplicate=False))
    assert sum(every_use) == entry.parameters


def test_each_model_is_listed_once_and_has_a_config_of_its_own():
    ids = [entry.id for entry in models()]
    paths = {entry.path for entry in models()}
    assert len(set(ids)) == len(ids) == len(paths) == 88
    assert set(paths) == set(models()[0].path.parent.iterdir())


def test_the_count_listed_is_the_one_that_was_published():
    # Published without the head, or with one more head than there is.
    otherwise = {
        "google-bert/bert-base-uncased",
        "google-bert/bert-large-uncased",
        "microsoft/deberta-v3-base",
        "google/flan-t5-xl",
    }
    published = [entry for entry in models() if entry.published is not None]
    assert len(published) > 75
    differing = {
        entry.id
        for entry in published
        if entry.published not in (entry.parameters, entry.unique_parameters)
    }
    assert differing == otherwise


def test_no_config_asks_for_code_or_quantization_of_its_own():
    for entry in models():
        config = json.loads(entry.path.read_text())
        assert not {"auto_map", "quantization_config", "_name_or_path"} & set(config)


def test_a_model_is_found_by_its_whole_id_only():
    entry = find_model("meta-llama/Llama-3.2-1B")
    assert entry is not None
    assert entry.unique_parameters == 1_235_814_400
    assert find_model("Llama-3.2-1B") is None
    assert find_model("meta-llama/llama-3.2-1b") is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("llama/llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("mistral/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1"),
    ],
)
def test_the_nearest_id_is_found_whatever_its_owner_and_case(name, nearest):
    assert nearest_models(name)[0] == nearest


def test_nothing_is_near_to_a_name_like_no_other():
    assert nearest_models("zzzz") == ()


def test_the_catalogue_is_read_without_torch_and_transformers():
    code = (
        "import sys; from llmmem.catalogue.models import models; models(); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
