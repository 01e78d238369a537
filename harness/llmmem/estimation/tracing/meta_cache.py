"""A cache of the outputs of operators on the meta device.

Most meta kernels are written in Python, and every layer of a model calls them with the same layouts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from llmmem.estimation.tracing.tensors import META, tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Layout", "MetaCache", "key_of", "laid_out", "layout_of"]

#: Shape, strides and dtype of a tensor that starts at the beginning of its own storage.
Layout: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype]
#: Layouts by all that they depend on; None for outputs that are more than a layout.
_Layouts: TypeAlias = dict[Any, Layout | None]
#: Stands for the first argument, which an operator has written to and returns.
_FIRST_ARGUMENT: Layout = (torch.Size(), (), torch.uint8)


class MetaCache:
    """Runs operators, and builds their outputs from cached layouts when the inputs are alike.

    The layout of an output depends on the operator, the layouts of its inputs, its other arguments
    and the default dtype. The cache holds operators that return one new tensor, and operators that
    write to their first argument, keep its layout and return it. Operators that return a view are
    always run, whether or not their schema says so. So are calls with a tensor on the host, a
    complex tensor, or a tensor that may stand for a number (`_may_be_number`).
    """

    def __init__(self) -> None:
        # By operator and arguments; None for an operator that is always run. The key of an operator
        # is its id, which is faster than its hash; `_operators` keeps the ids valid.
        self._layouts: dict[int, _Layouts | None] = {}
        self._operators: list[Any] = []

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return ``func(*args, **kwargs)``, without calling ``func`` if its layout is cached.

        Raises:
            RuntimeError: The operator gets tensors of the host and of the device.
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
        is_cacheable = _returns_one_new_tensor(func) or _writes_to_first_argument(func)
        layouts: _Layouts | None = {} if is_cacheable else None
        self._layouts[id(func)] = layouts
        return layouts


def laid_out(layout: Layout) -> Tensor:
    """A new tensor of the meta device with the layout."""
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=dtype, device=META)


def _check_devices(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that all tensors with dimensions are on one device, which meta kernels may not do.

    CUDA kernels accept tensors of the host only if they have no dimensions. `aten.index` also
    accepts indices of the host.
    """
    if func is torch.ops.aten.index.Tensor:
        return
    inputs = [tensor for tensor in tensors_in((*args, *kwargs.values())) if tensor.dim()]
    if len({tensor.device.type for tensor in inputs}) > 1:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but some are on the host"
        )


def _returns_one_new_tensor(func: Any) -> bool:
    """Whether the schema has no written arguments and returns one tensor that is not a view."""
    schema = func._schema
    return (
        not schema.is_mutable
        and [str(given.type) for given in schema.returns] == ["Tensor"]
        and schema.returns[0].alias_info is None
    )


def _writes_to_first_argument(func: Any) -> bool:
    """Whether the operator writes to its first argument only, keeps its layout and returns it."""
    arguments, returns = func._schema.arguments, func._schema.returns
    written = [argument for argument in arguments if argument.is_write]
    return (
        torch.Tag.inplace_view not in func.tags
        and written == arguments[:1]
        and [str(given.type) for given in returns] == ["Tensor"]
        and returns[0].alias_info is not None
    )


def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A key of all arguments that the layout of the output depends on; None if one is unknown."""
    parts: list[Any] = [torch.get_default_dtype()]
    if not _describe(args, parts):
        return None
    if kwargs:
        parts += kwargs
        if not _describe(kwargs.values(), parts):
            return None
    return tuple(parts)


def _describe(values: Iterable[Any], parts: list[Any]) -> bool:
    """Append to `parts` what the output's layout may depend on.

    Returns:
        Whether the parts are complete.
    """
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
    """The layout of a new output; None if the layout alone does not determine the output."""
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
    """Whether a tensor has no dimensions, and no tensor with dimensions has its dtype.

    Such a tensor may stand for a Python number, which PyTorch marks in C++ and which has a lower
    priority in type promotion. Next to a tensor of the same dtype this makes no difference.
    """
    dtypes = {tensor.dtype for tensor in tensors if tensor.dim()}
    return any(not tensor.dim() and tensor.dtype not in dtypes for tensor in tensors)
