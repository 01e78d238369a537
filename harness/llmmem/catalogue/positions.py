"""How many tokens a model has positions for, from its config alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.catalogue.models import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["positions"]

# Architectures that look positions up in a table, with the key of the config that has its rows.
# Others compute positions (rotary, relative), and their configs' numbers bound nothing.
_ROWS: Mapping[str, str] = {
    "albert": "max_position_embeddings",
    "bart": "max_position_embeddings",
    "bert": "max_position_embeddings",
    "camembert": "max_position_embeddings",
    "distilbert": "max_position_embeddings",
    "electra": "max_position_embeddings",
    "gpt2": "n_positions",
    "gpt_bigcode": "n_positions",
    "gpt_neo": "max_position_embeddings",
    "gptj": "n_positions",
    "mbart": "max_position_embeddings",
    "opt": "max_position_embeddings",
    "roberta": "max_position_embeddings",
    "xlm-roberta": "max_position_embeddings",
}
_PADDING_FIRST = ("camembert", "roberta", "xlm-roberta")  # rows up to the padding's are taken


def positions(model: str) -> int | None:
    """The positions of a model of the catalogue, or of a local config.

    ``None`` where they are not bounded, or where that is not known here.

    Args:
        model: As in a setup.
    """
    config = _config(model)
    model_type = config.get("model_type")
    rows = config.get(_ROWS.get(str(model_type), ""))
    if not isinstance(rows, int):
        return None
    padding = config.get("pad_token_id", 1) if model_type in _PADDING_FIRST else None
    taken = padding + 1 if isinstance(padding, int) else 0
    return rows - taken if rows > taken else None


def _config(model: str) -> Mapping[str, object]:
    entry = find_model(model)
    path = entry.path if entry else Path(model)
    try:
        file = path / "config.json" if path.is_dir() else path
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it may be on the hub; building it reports broken configs
        return {}
    return document if isinstance(document, dict) else {}
