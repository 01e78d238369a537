"""Upper bounds for the values of a model's config, checked before anything is built.

The bounds are far above any real model. Without them, one digit too many in a config could exhaust the
memory of the host or take forever: modules are created layer by layer, and labels are listed by name.
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

#: Patterns of keys, with the largest value for each; the first match counts.
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
    """Check the counts and sizes of a config, including nested configs.

    Raises:
        InputError: A value is negative or above its bound.
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
    """Integers by key, with dots between the keys of nested tables."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield name, number
