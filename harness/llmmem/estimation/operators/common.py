"""What the operator families share: the entries of their tables, and helpers of their handlers.

A handler runs its operator on the meta device, and allocates the outputs and the temporary blocks in
the order of the CUDA code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from packaging.specifiers import SpecifierSet
from torch import Tensor

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Handler

__all__ = [
    "Arguments",
    "Entry",
    "Keywords",
    "bind",
    "contiguous_copy",
    "is_dense",
    "is_on_device",
    "nbytes_of",
]

Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """Operators of ATen and the handler that runs in their place.

    Attributes:
        operators: Names separated by spaces, without ``aten::``. A name without an overload stands
            for all overloads of the operator.
        handler: Runs each of these operators.
        releases: The releases of PyTorch that have all of these operators, as a version specifier
            such as ``">=2.8"``; empty for every supported release. In other releases operators may
            be missing.
    """

    operators: str
    handler: Handler
    releases: str = ""

    def is_required_by(self, release: str) -> bool:
        """Whether a release of PyTorch must have all operators of the entry."""
        return SpecifierSet(self.releases).contains(release, prereleases=True)


def bind(func: Any, args: Arguments, kwargs: Keywords, name: str, default: Any = None) -> Any:
    """The value of an operator's argument, by the argument's name in the schema."""
    if name in kwargs:
        return kwargs[name]
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if position < len(args):
                return args[position]
            return argument.default_value if argument.has_default_value() else default
    return default


def nbytes_of(tensor: Tensor) -> int:
    """Bytes of the tensor's elements."""
    return tensor.numel() * tensor.element_size()


def is_on_device(value: Any) -> bool:
    """Whether the value is a tensor on the device, for which the meta device stands."""
    return isinstance(value, Tensor) and value.is_meta


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in any order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def contiguous_copy(tensor: Tensor) -> int:
    """Bytes that ``tensor.contiguous()`` allocates; 0 if the tensor is contiguous."""
    return 0 if tensor.is_contiguous() else nbytes_of(tensor)
