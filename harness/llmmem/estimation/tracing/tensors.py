"""Names for dtypes and devices, and a walk over the tensors among an operator's arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

__all__ = ["HALF", "META", "tensors_in"]

META = torch.device("meta")
#: The floating-point types of 16 bits.
HALF = (torch.float16, torch.bfloat16)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the values and in their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
