"""What is known of the values on the device: those that came from the host, and what follows.

Tensors of the meta device have no values. Ids, masks, labels and indices decide which way a program
goes and how much it picks, so where whole numbers and booleans come from the host, or are made of
constants, what operators do with them is done on the host as well.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["KnownValues"]

#: Elements of a tensor, at most: larger ones are not known.
MOST = 2**20
KINDS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

aten = torch.ops.aten


class KnownValues:
    """Values of tensors of the meta device, kept on the host for each storage as a whole.

    It is true while there is something to follow.

    Attributes:
        begins_on_device: Whether what is made of constants on the device is followed while nothing
            has come from the host.
    """

    def __init__(self) -> None:
        self.begins_on_device = False
        self._flat: dict[int, Tensor] = {}

    def __bool__(self) -> bool:
        return self.begins_on_device or bool(self._flat)

    def of(self, tensor: Tensor) -> Tensor | None:
        """The tensor's values, on the host; ``None`` if they are not known. Not to be changed."""
        flat = self._flat.get(tensor.untyped_storage()._cdata)
        if flat is None or flat.dtype is not tensor.dtype:
            return None
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def learn(self, tensor: Tensor, values: Tensor) -> None:
        """From now on the tensor has these values; nothing is learnt of a part of a storage."""
        storage = tensor.untyped_storage()
        count = storage.nbytes() // tensor.element_size()
        self.forget(storage._cdata)
        if tensor.dtype in KINDS and 0 < count <= MOST and tensor.numel() == count:
            flat = torch.empty(count, dtype=tensor.dtype)
            flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(values)
            self._flat[storage._cdata] = flat

    def forget(self, key: int) -> None:
        """Nothing is known any more of a storage, by its ``_cdata``."""
        self._flat.pop(key, None)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Do on the host what the operator has done on the meta device."""
        if func._schema.is_mutable:
            self._follow_write(func, args, kwargs)
        elif _is_followed(func):
            self._follow_new(func, args, kwargs, out)

    def _follow_new(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        outs = [out] if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else []
        new = [item for item in outs if self._is_to_learn(item)]
        if not new or len(new) < len(outs):
            return
        try:
            given, named = self._on_host(args), self._on_host(kwargs)
        except _UnknownError:
            return
        found = func(*given, **named)
        for item, values in zip(outs, [found] if isinstance(found, Tensor) else found, strict=True):
            self.learn(item, values)

    def _is_to_learn(self, out: Any) -> bool:
        if not isinstance(out, Tensor) or not out.is_meta:
            return False
        is_small = out.dtype in KINDS and out.numel() <= MOST
        # What is there already is what a view was taken of.
        return is_small and out.untyped_storage()._cdata not in self._flat

    def _follow_write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        target = args[0] if args else None
        if not isinstance(target, Tensor) or not target.is_meta or target.dtype not in KINDS:
            return
        is_whole = func in (aten.copy_.default, aten.fill_.Scalar, aten.zero_.default)
        try:
            others, named = self._on_host(args[1:]), self._on_host(kwargs)
            values = self.of(target)
            if values is not None and _is_followed(func):
                func(values, *others, **named)
            elif is_whole and target.numel() <= MOST:
                self.learn(target, func(torch.empty(target.shape, dtype=target.dtype), *others))
            else:
                self.forget(target.untyped_storage()._cdata)
        except _UnknownError:
            self.forget(target.untyped_storage()._cdata)

    def _on_host(self, value: Any) -> Any:
        """An argument, or a nest of them, with known values for tensors of the meta device."""
        if isinstance(value, Tensor):
            known = self.of(value) if value.is_meta else value
            if known is None:
                raise _UnknownError
            return known
        if isinstance(value, dict):
            return {name: self._on_host(item) for name, item in value.items()}
        if isinstance(value, tuple | list):
            return [self._on_host(item) for item in value]
        return torch.device("cpu") if isinstance(value, torch.device) else value


class _UnknownError(Exception):
    """The values of an argument are not known."""


@cache
def _is_followed(func: Any) -> bool:
    """Whether the values of what the operator gives follow from those of its arguments."""
    return (
        torch.Tag.nondeterministic_seeded not in func.tags
        and func.namespace == "aten"
        and not func._schema.name.startswith(("aten::empty", "aten::new_empty"))
    )
