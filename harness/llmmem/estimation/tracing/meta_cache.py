"""Outputs of operators on the meta device, remembered by what they depend on.

Most meta kernels are written in Python, and a model asks them the same questions in every layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Layout", "MetaCache", "key_of", "laid_out", "layout_of", "tensors_in"]

META = torch.device("meta")
#: Shape, strides and dtype of a tensor that owns its storage from the start.
Layout: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype]
#: By all that the layout depends on; None where it is not all.
_Layouts: TypeAlias = dict[Any, Layout | None]
#: Stands for what an operator has written to: it is given back.
_FIRST_ARGUMENT: Layout = (torch.Size(), (), torch.uint8)


class MetaCache:
    """Runs operators, and lays out anew what an operator has already given for alike inputs.

    The layout of an output depends on the operator, on the layouts of its inputs, on its other
    arguments and on the default dtype. Only new tensors are laid out like that, and tensors that an
    operator writes to and leaves as they lie are given back. Operators that give views are always
    run, also those that give one without saying so, and so are those that see a tensor on the host,
    a complex one, or one that may stand for a number (`_may_be_number`).
    """

    def __init__(self) -> None:
        # By operator, and by its arguments; None for an operator that is always run. An operator
        # is told by its id, which takes less than its hash does, and is kept so that it stays.
        self._layouts: dict[int, _Layouts | None] = {}
        self._operators: list[Any] = []

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func(*args, **kwargs)`` gives; functions that modes see are not called.

        Raises:
            RuntimeError: Tensors of the host and of the device meet, as they cannot on a GPU.
        """
        layouts = self._layouts[id(func)] if id(func) in self._layouts else self._begin(func)
        if layouts is None:
            return func(*args, **kwargs)
        key = key_of(args, kwargs)
        layout = layouts.get(key)
        if layout is not None:
            return args[0] if layout is _FIRST_ARGUMENT else laid_out(layout)
        out = func(*args, **kwargs)
        if key is None:
            if not func._schema.is_mutable:
                _check_devices(func, args, kwargs)
        elif key not in layouts:
            inputs = list(tensors_in((*args, *kwargs.values())))
            if func._schema.is_mutable:
                layouts[key] = _FIRST_ARGUMENT
            elif _is_view_of_any(out, inputs):
                self._layouts[id(func)] = None
            else:
                layouts[key] = layout_of(out, inputs)
        return out

    def _begin(self, func: Any) -> _Layouts | None:
        self._operators.append(func)
        is_remembered = _gives_one_new_tensor(func) or _writes_to_first_argument(func)
        layouts: _Layouts | None = {} if is_remembered else None
        self._layouts[id(func)] = layouts
        return layouts


def laid_out(layout: Layout) -> Tensor:
    """A new tensor of the meta device."""
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=dtype, device=META)


def _check_devices(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Meta kernels may not look where their inputs are; CUDA's take numbers from the host alone.

    Indices may lie on either (`aten.index`).
    """
    if func is torch.ops.aten.index.Tensor:
        return
    inputs = [tensor for tensor in tensors_in((*args, *kwargs.values())) if tensor.dim()]
    if len({tensor.device.type for tensor in inputs}) > 1:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but some are on the host"
        )


def _gives_one_new_tensor(func: Any) -> bool:
    """Whether the operator says that it changes nothing and gives a tensor that is no view."""
    schema = func._schema
    return (
        not schema.is_mutable
        and [str(given.type) for given in schema.returns] == ["Tensor"]
        and schema.returns[0].alias_info is None
    )


def _writes_to_first_argument(func: Any) -> bool:
    """Whether the operator writes to its first argument alone, leaves it as it lies and gives it."""
    arguments, returns = func._schema.arguments, func._schema.returns
    written = [argument for argument in arguments if argument.is_write]
    return (
        torch.Tag.inplace_view not in func.tags
        and written == arguments[:1]
        and [str(given.type) for given in returns] == ["Tensor"]
        and returns[0].alias_info is not None
    )


def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All that the output's layout depends on; None where that is not known."""
    parts: list[Any] = [torch.get_default_dtype()]
    if not _describe(args, parts):
        return None
    if kwargs:
        parts += kwargs
        if not _describe(kwargs.values(), parts):
            return None
    return tuple(parts)


def _describe(values: Iterable[Any], parts: list[Any]) -> bool:
    """Add what the output's layout may depend on to the parts; whether all of it is known."""
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_meta:
                return False
            parts += (value.shape, value.stride(), value.dtype)
        elif value is None:
            parts.append(None)
        elif isinstance(value, _PLAIN):
            parts += (type(value), value)  # 1, 1.0 and True are equal
        elif isinstance(value, list | tuple):
            parts.append(len(value))
            if not _describe(value, parts):
                return False
        else:
            return False
    return True


_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _is_view_of_any(out: Tensor, inputs: Iterable[Tensor]) -> bool:
    storage = out.untyped_storage()._cdata
    return any(storage == tensor.untyped_storage()._cdata for tensor in inputs)


def layout_of(out: Tensor, inputs: Iterable[Tensor]) -> Layout | None:
    """How to lay out such an output anew; None if it is not all that its storage is for."""
    inputs = list(inputs)
    if not out.is_meta or out.layout is not torch.strided or _may_be_number(inputs):
        return None
    if any(tensor.is_complex() for tensor in (out, *inputs)):
        return None
    layout = out.shape, out.stride(), out.dtype
    alike = torch.empty_strided(layout[0], layout[1], dtype=out.dtype, device=META)
    nbytes = out.untyped_storage().nbytes()
    is_alike = nbytes == alike.untyped_storage().nbytes() and not out.storage_offset()
    return layout if is_alike else None


def _may_be_number(tensors: list[Tensor]) -> bool:
    """Whether one is without dimensions, and none with dimensions has its dtype.

    Such a tensor may stand for a number of the program (PyTorch marks those out of Python's sight),
    which counts for less in the type of the output; beside its own dtype that makes no difference.
    """
    dtypes = {tensor.dtype for tensor in tensors if tensor.dim()}
    return any(not tensor.dim() and tensor.dtype not in dtypes for tensor in tensors)


def tensors_in(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among the values and in their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
