"""The offline catalogue of models: configs with exact parameter counts, and no weights."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

__all__ = ["ModelEntry", "find_model", "models", "nearest_models"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ModelEntry:
    """A model of the catalogue.

    Attributes:
        id: Its id on the Hugging Face hub.
        model_type: transformers' name of the architecture.
        auto_class: transformers' class that the counts are of, such as ``AutoModelForCausalLM``.
        parameters: Elements of all parameters, a tied one counted each time it is used.
        unique_parameters: The same with tied parameters counted once: what takes memory.
        published: The count that its publisher or the hub gives, where one is known. It can differ
            in what it counts (without the head, or a tied head counted twice).
        path: The config.json.
    """

    id: str
    model_type: str
    auto_class: str
    parameters: int
    unique_parameters: int
    published: int | None
    path: Path


@cache
def models() -> tuple[ModelEntry, ...]:
    """All models of the catalogue, family by family."""
    with (_HERE / "models.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            ModelEntry(
                id=row["id"],
                model_type=row["model_type"],
                auto_class=row["auto_class"],
                parameters=int(row["parameters"]),
                unique_parameters=int(row["unique_parameters"]),
                published=int(row["published"]) if row["published"] else None,
                path=_HERE / "models" / row["file"],
            )
            for row in csv.DictReader(file)
        )


def find_model(model_id: str) -> ModelEntry | None:
    """The model with exactly this id, or ``None``."""
    return next((entry for entry in models() if entry.id == model_id), None)


def nearest_models(name: str, count: int = 3) -> tuple[str, ...]:
    """Ids of the catalogue that are written much like `name`, nearest first.

    Owners are left out of the comparison: ``Llama-3.2-1B`` finds ``meta-llama/Llama-3.2-1B``.
    """
    ids = {_bare(entry.id): entry.id for entry in models()}
    return tuple(ids[match] for match in get_close_matches(_bare(name), ids, n=count, cutoff=0.5))


def _bare(model_id: str) -> str:
    return model_id.rpartition("/")[2].lower()
