"""Operators that give the program values of the device, and operators that overwrite a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.operators.common import (
    Arguments,
    Entry,
    Keywords,
    is_dense,
    is_on_device,
    nbytes_of,
)
from llmmem.estimation.tracing.host_values import KNOWN, UNKNOWN, is_same

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]

aten = torch.ops.aten

# A program does not look at single values of a floating-point tensor of so many elements.
LARGE = 4096


def _read_scalar(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    (tensor,) = args
    if not is_on_device(tensor):
        return func(*args, **kwargs)
    return _read(tracer, func, tensor).item()


def _read(tracer: Tracer, func: Any, tensor: Tensor) -> Tensor:
    """The values of a tensor on the device, with zero for those that are not known.

    A program may branch on integers and booleans, so reading unknown ones is recorded as a guess.
    """
    found = tracer.host_values.look_up(tensor)
    is_sure = found is not None and found.mark == KNOWN
    if not (is_sure or tensor.is_floating_point() or tensor.is_complex()) and tensor.numel():
        tracer.note_guess(func)
    if found is None:
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return found.values


def _to_copy(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A copy to the host holds the values that the program reads; see `_staging`."""
    (tensor,) = args
    device = kwargs.get("device")
    is_read = device is not None and torch.device(device).type == "cpu"
    if not (is_on_device(tensor) and is_read):
        return tracer.run(func, args, kwargs)
    dtype = kwargs.get("dtype") or tensor.dtype
    # A dense tensor and its copy have the same strides.
    is_alike = dtype is tensor.dtype and is_dense(tensor)
    with tracer.scratch(_staging(tensor, is_alike=is_alike)):
        return _on_host(tracer, func, tensor, dtype)


def _on_host(tracer: Tracer, func: Any, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the host, with the strides of the tensor if that is dense."""
    host = torch.empty_like(tensor, dtype=dtype, device="cpu")
    return host.copy_(_read(tracer, func, tensor))


def _staging(source: Tensor, *, is_alike: bool) -> int:
    """Bytes of the contiguous copy that a tensor takes on its way to a host tensor of other strides.

    Source: ``aten/src/ATen/native/cuda/Copy.cu``, ``copy_requires_temporaries``.
    """
    return 0 if is_alike or source.is_contiguous() else nbytes_of(source)


def _copy(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    target, source = args[:2]
    if is_on_device(source) and not is_on_device(target):
        is_alike = (
            target.dtype is source.dtype and target.stride() == source.stride() and is_dense(source)
        )
        with tracer.scratch(_staging(source, is_alike=is_alike)):
            return target.copy_(_read(tracer, func, source))
    return tracer.run(func, args, kwargs)


def _equal(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Two tensors are equal if their values are known to be, or if they are the same tensor.

    Source: ``aten/src/ATen/native/cuda/Equal.cpp``, ``cuda_equal``.
    """
    left, right = args
    if not (is_on_device(left) and is_on_device(right)):
        return func(*args, **kwargs)
    if left.shape != right.shape or not left.numel() or is_same(left, right):
        return left.shape == right.shape
    with tracer.tracing_calls():
        same = left == right
        same.all()
    values = [tracer.host_values.look_up(tensor) for tensor in (left, right)]
    known = [found for found in values if found is not None and found.mark != UNKNOWN]
    if len(known) < 2 or any(found.mark != KNOWN for found in known):
        tracer.note_guess(func)
    return len(known) == 2 and torch.equal(known[0].values, known[1].values)


def _all_close(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/TensorCompare.cpp``, ``allclose``."""
    if not is_on_device(args[0]):
        return func(*args, **kwargs)
    with tracer.tracing_calls():
        return bool(torch.isclose(*args, **kwargs).all())


def _fill(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Fill small tensors of the host only.

    The device has no values, and large tensors of the host are weights on their way there: PEFT
    creates adapters on the host. Leaving them unwritten saves time and pages of memory.
    """
    tensor = args[0]
    if is_on_device(tensor) or (tensor.numel() >= LARGE and tensor.is_floating_point()):
        return tensor
    return func(*args, **kwargs)


ENTRIES = (
    Entry("_local_scalar_dense", _read_scalar),
    Entry("_to_copy.default", _to_copy),
    Entry("copy_.default", _copy),
    Entry("equal.default", _equal),
    Entry("allclose.default", _all_close),
    Entry("zero_.default fill_.Scalar normal_.default uniform_.default", _fill),
)
