"""Outputs of operators on the meta device, remembered by what they depend on.

Most meta kernels are written in Python, and a model asks them the same questions in every layer.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OutputMemo"]

#: Shape, strides and dtype of a tensor that owns its storage from the start.
_Layout: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype]


class OutputMemo:
    """Runs operators, and lays out anew what an operator has already given for alike inputs.

    The layout of an output depends on the operator, on the layouts of its inputs, on its other
    arguments and on the default dtype. Only new tensors are laid out like that: operators that
    change their inputs or give views of them are always run, also those that give a view without
    saying so, and so are those that see a tensor on the host, a complex one, or one without
    dimensions (which may stand for a number, and then counts for less in the type of the output).
    """

    def __init__(self) -> None:
        self._layouts: dict[Any, _Layout | None] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func(*args, **kwargs)`` gives."""
        if not _gives_one_new_tensor(func):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            key = _key(func, args, kwargs)
            layout = None if key is None else self._layouts.get(key)
            if layout is not None:
                shape, strides, dtype = layout
                return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        out = func(*args, **kwargs)
        if key is not None and key not in self._layouts:
            self._layouts[key] = _layout(out, (*args, *kwargs.values()))
        return out


@cache
def _gives_one_new_tensor(func: Any) -> bool:
    """Whether the operator says that it changes nothing and gives a tensor that is no view."""
    schema = func._schema
    return (
        not schema.is_mutable
        and [str(given.type) for given in schema.returns] == ["Tensor"]
        and schema.returns[0].alias_info is None
    )


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All that the output's layout depends on; None where that is not known."""
    parts = [func, torch.get_default_dtype()]
    if not (_describe(args, parts) and _describe(kwargs.values(), parts)):
        return None
    return (*parts, *kwargs)


def _describe(values: Iterable[Any], parts: list[Any]) -> bool:
    """Add what the output's layout may depend on to the parts; whether all of it is known."""
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_meta or value.is_complex() or not value.dim():
                return False
            parts += (value.shape, value.stride(), value.dtype)
        elif isinstance(value, list | tuple):
            parts.append(len(value))
            if not _describe(value, parts):
                return False
        elif value is None or isinstance(value, _PLAIN):
            parts += (type(value), value)  # 1, 1.0 and True are equal
        else:
            return False
    return True


_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _layout(out: Tensor, inputs: Iterable[Any]) -> _Layout | None:
    """How to lay out such an output anew; None if it is not all that its storage is for."""
    storage = out.untyped_storage()
    if not out.is_meta or out.is_complex() or out.layout is not torch.strided:
        return None
    if any(storage._cdata == tensor.untyped_storage()._cdata for tensor in _tensors(inputs)):
        return None
    layout = out.shape, out.stride(), out.dtype
    alike = torch.empty_strided(layout[0], layout[1], dtype=out.dtype, device="meta")
    is_alike = storage.nbytes() == alike.untyped_storage().nbytes() and not out.storage_offset()
    return layout if is_alike else None


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
