"""Bounds of a model's config that no real model meets, checked before anything is built.

A model is laid out in the memory of the host, layer by layer, and labels are listed by name: a digit
too many in a config would take all the memory or time that there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmmem.errors import InputError
from llmmem.setups import MOST_LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_config"]

#: Patterns of keys, with the largest value that each may have; the first that fits counts.
_MOST: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"(^|_)(n_layers?|(num_)?layers|num_hidden_layers|depth)$"), 10_000),
    (re.compile(r"(^|_)(num_labels|num_classes)$"), MOST_LABELS),
    (re.compile(r"(^|_)(n_heads?|(num|n)_\w*(heads|experts))$"), 2**17),
    (
        re.compile(
            r"(^|_)(hidden_size|intermediate_size|vocab_size|embedding_size|position_embeddings|"
            r"n_positions|n_ctx|n_embd|n_inner|d_model|d_ff|d_kv|ffn_dim|head_dim|lora_rank)$"
        ),
        2**31,
    ),
)


def check_config(config: Mapping[str, object], model: str) -> None:
    """Check the counts and sizes of a config, those of the configs inside it too.

    Raises:
        InputError: One is negative, or larger than any model has it.
    """
    for name, value in _numbers(config):
        key = name.rpartition(".")[2]
        most = next((most for pattern, most in _MOST if pattern.search(key)), None)
        if most is not None and not 0 <= value <= most:
            raise InputError(
                f"invalid {name} {value} in the config of {model!r}: "
                f"expected a whole number from 0 to {most}"
            )


def _numbers(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers by their keys, with dots between the keys of nested tables."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield name, number
