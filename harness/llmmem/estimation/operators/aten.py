"""What CUDA operators allocate beyond their outputs, and in which order: one handler each.

A handler runs its operator on the meta device, lets the outputs be born in the order in which the
CUDA code makes them, and takes the blocks that the CUDA code takes and gives back. The sizes are in
`hidden`; what is here is where they come in.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from llmmem.errors import UnsupportedError
from llmmem.estimation.operators import cub
from llmmem.estimation.operators.ctc import CTC_HANDLERS
from llmmem.estimation.operators.libraries import LIBRARY_HANDLERS
from llmmem.estimation.operators.sparse import SPARSE_HANDLERS
from llmmem.estimation.operators.workspaces import (
    FLOAT,
    FLOAT_AND_INDEX,
    INDEX,
    cudnn_backward_workspace,
    efficient_backward_workspace,
    embedding_adds_atomically,
    embedding_segments,
    flash_head_dim,
    flash_splits,
    foreach_norm_partials,
    has_gqa,
    layer_norm_partials,
    round_up,
    split_reduction,
)
from llmmem.estimation.tracing.host_values import KNOWN, UNKNOWN, is_same

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmmem.accounting.allocator import Block
    from llmmem.catalogue.gpus import Gpu
    from llmmem.estimation.tracing.tracer import Handler, Tracer

__all__ = ["aten_handlers"]

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
# Numbers that CUB sorts in one block of threads.
FEW = 2048
# How ATen numbers the reductions of a loss.
MEAN, SUM = 1, 2
# Elements of a tensor whose values no program looks at one by one.
LARGE = 4096

Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = dict[str, Any]


def aten_handlers() -> dict[Any, Handler]:
    """Handlers by operator; an operator without one allocates its outputs and nothing else."""
    handlers: dict[Any, Handler] = {}
    for handler, packets in (_HANDLERS | LIBRARY_HANDLERS | SPARSE_HANDLERS | CTC_HANDLERS).items():
        for name in packets.split():
            packet, _, overload = name.partition(".")
            operator = getattr(aten, packet, None)
            # Releases differ in which operators they have.
            if operator is None:
                continue
            names = [overload] if overload else operator.overloads()
            for found in names:
                if found in operator.overloads():
                    handlers[getattr(operator, found)] = handler
    return handlers


# Formulas of derivatives that write in place on a GPU, and under a dispatch mode do not: the
# operators that they call instead, and the nodes of autograd (``torch/csrc/autograd/
# FunctionsManual.cpp``, ``areAnyTensorSubclassLike``).
_SELECTING = {
    *("TopkBackward0", "SortBackward0", "SortBackward1", "MaxBackward0", "MinBackward0"),
    *("MedianBackward1", "NanmedianBackward1", "KthvalueBackward0", "ModeBackward0"),
    *("CummaxBackward0", "CumminBackward0"),
}
_LIMITING = {
    *("MaximumBackward0", "MinimumBackward0", "FmaxBackward0", "FminBackward0"),
    *("ClampBackward1", "ClampMinBackward1", "ClampMaxBackward1"),
}
IN_PLACE_IN_BACKWARD = {
    aten.scatter_add.default: {"GatherBackward0"},
    aten.index_add.default: {"IndexSelectBackward0"},
    aten.index_fill.int_Tensor: {"TraceBackward0"},
    aten.scatter.src: _SELECTING,
    aten.masked_fill.Scalar: _LIMITING,
}


def _bind(func: Any, args: Arguments, kwargs: Keywords, name: str, default: Any = None) -> Any:
    """An argument of an operator by its name in the schema."""
    if name in kwargs:
        return kwargs[name]
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if position < len(args):
                return args[position]
            return argument.default_value if argument.has_default_value() else default
    return default


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


# Values that the program reads.


def _read_scalar(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    (tensor,) = args
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    return _read(tracer, func, tensor).item()


def _read(tracer: Tracer, func: Any, tensor: Tensor) -> Tensor:
    """The values of a tensor on the device, zero where they are not known.

    A program may decide by whole numbers and booleans: those that are not known are noted.
    """
    found = tracer.known.look_up(tensor)
    is_sure = found is not None and found.mark == KNOWN
    if not (is_sure or tensor.is_floating_point() or tensor.is_complex()) and tensor.numel():
        tracer.note_guess(func)
    if found is None:
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return found.values


def _to_copy(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A copy to the host has the values that are read; it takes a detour if it is scattered."""
    (tensor,) = args
    device = kwargs.get("device")
    is_read = device is not None and torch.device(device).type == "cpu"
    if not (_is_on_device(tensor) and is_read):
        return tracer.run(func, args, kwargs)
    dtype = kwargs.get("dtype") or tensor.dtype
    # The copy lies in memory as the tensor does.
    is_alike = dtype is tensor.dtype and _is_dense(tensor)
    with tracer.scratch(_staging(tensor, is_alike=is_alike)):
        return _on_host(tracer, func, tensor, dtype)


def _on_host(tracer: Tracer, func: Any, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the host, which lies in memory as the tensor does if that is dense."""
    host = torch.empty_like(tensor, dtype=dtype, device="cpu")
    return host.copy_(_read(tracer, func, tensor))


def _staging(source: Tensor, *, is_alike: bool) -> int:
    """Bytes of the contiguous copy through which a tensor goes to a host tensor that lies otherwise.

    Source: ``aten/src/ATen/native/cuda/Copy.cu``, ``copy_requires_temporaries``.
    """
    return 0 if is_alike or source.is_contiguous() else _nbytes(source)


def _copy(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    target, source = args[:2]
    if _is_on_device(source) and not _is_on_device(target):
        is_alike = (
            target.dtype is source.dtype
            and target.stride() == source.stride()
            and _is_dense(source)
        )
        with tracer.scratch(_staging(source, is_alike=is_alike)):
            return target.copy_(_read(tracer, func, source))
    return tracer.run(func, args, kwargs)


def _nonzero(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """As many are found as are known to be true, else none.

    Source: ``aten/src/ATen/native/cuda/Nonzero.cu``.
    """
    (tensor,) = args
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    values = tracer.known.found(func, args, kwargs)
    if values is None or values.mark != KNOWN:
        tracer.note_guess(func)
    found = 0 if values is None else values.values.shape[0]
    with tracer.scratch(4):
        with tracer.scratch(cub.count(tensor.numel(), tracer.gpu)):
            pass
        places = torch.empty((tensor.dim(), found), dtype=torch.int64, device="meta")
        tracer.born(places)
        with tracer.scratch(cub.select(tensor.numel(), tracer.gpu)):
            pass
    return places.t()


def _masked_select(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/IndexKernel.cpp``, ``masked_select_out_cuda_impl``."""
    tensor, mask = args
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    with tracer.seeing_again():
        tensor, mask = torch.broadcast_tensors(tensor, mask)  # type: ignore[no-untyped-call]
        return aten.index.Tensor(tensor, [mask])


def _repeat_interleave(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Repeat.cpp``, ``repeat_interleave_common``."""
    (repeats,) = args
    if not _is_on_device(repeats):
        return func(*args, **kwargs)
    with tracer.seeing_again():
        ends = repeats.cumsum(0)
        size = kwargs.get("output_size")
        if size is None:
            size = int(ends[-1].item()) if repeats.numel() else 0
    out = torch.empty(size, dtype=repeats.dtype, device="meta")
    tracer.born(out)
    return out


def _unique(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """What differs in few numbers that are known: the sorted ones, and as many again for the result.

    Source: ``aten/src/ATen/native/cuda/UniqueCub.cu``, ``compute_unique``; what CUB takes beside
    them fits the smallest block of the allocator up to `FEW` numbers.
    """
    (tensor,) = args[:1]
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    found = tracer.known.found(func, args, kwargs)
    numbers = tensor.numel()
    if numbers and (found is None or numbers > FEW or any(args[2:])):
        raise UnsupportedError("what is unique in a tensor is traced of few known numbers alone")
    count = 0 if found is None else found.values.numel()
    with tracer.scratch(_nbytes(tensor), INDEX):
        out = torch.empty(numbers, dtype=tensor.dtype, device="meta")
        tracer.born(out)
    return (out[:count], *(torch.empty(0, dtype=torch.int64, device="meta") for _ in range(2)))


def _unique_consecutive(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """As many as differ from the one before, where that is known, else one.

    Source: ``aten/src/ATen/native/cuda/UniqueCub.cu``, ``unique_consecutive_cuda``.
    """
    (tensor,) = args[:1]
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    numbers = tensor.numel()
    if numbers > FEW or _bind(func, args, kwargs, "dim") is not None:
        raise UnsupportedError("unique_consecutive is traced without dim and of few numbers alone")
    found = tracer.known.found(func, args, kwargs)
    if found is None or found.mark != KNOWN:
        tracer.note_guess(func)
    count = min(1, numbers) if found is None else found.values.numel()
    inverse, counts = (torch.empty(0, dtype=torch.int64, device="meta") for _ in range(2))
    if _bind(func, args, kwargs, "return_inverse"):
        inverse = torch.empty(tensor.shape, dtype=torch.int64, device="meta")
        tracer.born(inverse)
        with tracer.scratch(4 * numbers, cub.select(numbers, tracer.gpu)):
            pass
    unique = torch.empty(numbers, dtype=tensor.dtype, device="meta")
    tracer.born(unique)
    with tracer.scratch(INDEX):
        if _bind(func, args, kwargs, "return_counts"):
            counts = torch.empty(numbers, dtype=torch.int64, device="meta")
            tracer.born(counts)
        with tracer.scratch(cub.select(numbers, tracer.gpu)):
            pass
    return unique[:count], inverse, counts[:count]


def _equal(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Tensors are equal if their values are known to be, or if they are the same tensor.

    Source: ``aten/src/ATen/native/cuda/Equal.cpp``, ``cuda_equal``.
    """
    left, right = args
    if not (_is_on_device(left) and _is_on_device(right)):
        return func(*args, **kwargs)
    if left.shape != right.shape or not left.numel() or is_same(left, right):
        return left.shape == right.shape
    with tracer.seeing_again():
        same = left == right
        same.all()
    values = [tracer.known.look_up(tensor) for tensor in (left, right)]
    known = [found for found in values if found is not None and found.mark != UNKNOWN]
    if len(known) < 2 or any(found.mark != KNOWN for found in known):
        tracer.note_guess(func)
    return len(known) == 2 and torch.equal(known[0].values, known[1].values)


# Values that the program writes.


def _fill(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The device has no values, and those of a large tensor on the host are on their way there.

    PEFT makes adapters on the host. What is not written takes no time, and no page of memory.
    """
    tensor = args[0]
    if _is_on_device(tensor) or (tensor.numel() >= LARGE and tensor.is_floating_point()):
        return tensor
    return func(*args, **kwargs)


# Reductions.


def _reduce(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return _reduced(tracer, func, args, kwargs, FLOAT)


def _reduce_bytes(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return _reduced(tracer, func, args, kwargs, 1)


def _find_extreme(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return _reduced(tracer, func, args, kwargs, FLOAT_AND_INDEX)


def _reduced(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords, accumulator: int) -> Any:
    out = tracer.run(func, args, kwargs)
    tensor = args[0]
    if _is_on_device(tensor) and tensor.numel():
        dims = _bind(func, args, kwargs, "dim")
        with tracer.scratch(_reduction_cast(func, tensor, out)):
            _split_buffers(tracer, tensor, dims, accumulator)
    return out


def _reduction_cast(func: Any, tensor: Tensor, out: Any) -> int:
    """Bytes of the input in the type of the output: sums and products convert it first.

    Source: ``aten/src/ATen/native/ReduceOpsUtils.h``, ``make_reduction``: only from 16-bit floats
    to float32 do the kernels convert as they read.
    """
    if func._overloadpacket not in (aten.sum, aten.mean, aten.prod) or tensor.dtype == out.dtype:
        return 0
    if tensor.dtype in HALF and out.dtype is torch.float32:
        return 0
    nbytes: int = tensor.numel() * out.element_size()
    return nbytes


def _split_buffers(tracer: Tracer, tensor: Tensor, dims: Any, accumulator: int = FLOAT) -> None:
    """The buffers of a reduction over `dims`: one, several, or all where there are none."""
    listed = [dims] if isinstance(dims, int) else dims or range(tensor.dim())
    reduced = [dim % tensor.dim() for dim in listed] if tensor.dim() else []
    split = split_reduction(
        tensor.shape,
        tensor.stride(),
        int(tensor.storage_offset()),
        reduced,
        tracer.gpu,
        accumulator,
    )
    if split is not None:
        with tracer.scratch(split.buffer, split.semaphores):
            pass


def _foreach_norm(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    tensors = [tensor for tensor in args[0] if _is_on_device(tensor)]
    if not tensors:
        return func(*args, **kwargs)
    with tracer.scratch(foreach_norm_partials([tensor.numel() for tensor in tensors])):
        return tracer.run(func, args, kwargs)


def _cumsum(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    tensor = args[0]
    out = func(*args, **kwargs)
    if not _is_on_device(tensor):
        return out
    cast = 0 if tensor.dtype == out.dtype else tensor.numel() * out.element_size()
    tracer.born(out)
    is_one_row = (
        tensor.dim() < 2 or tensor.numel() == tensor.shape[_bind(func, args, kwargs, "dim")]
    )
    with tracer.scratch(cast, cub.scan(tensor.numel()) if is_one_row else 0):
        pass
    return out


def _masked_scatter(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A running sum over the mask, which says which element of the source comes next.

    Source: ``aten/src/ATen/native/cuda/IndexKernel.cpp``, ``masked_scatter__cuda``.
    """
    target, mask = args[:2]
    out = tracer.run(func, args, kwargs)
    if not _is_on_device(target):
        return out
    expanded = mask.expand(out.shape)
    copied = 0 if expanded.is_contiguous() else out.numel()
    with tracer.scratch(INDEX * out.numel(), copied, cub.scan(out.numel())):
        pass
    return out


def _log_sigmoid(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Only the CPU's kernel fills the buffer (``aten/src/ATen/native/cuda/Activation.cpp``)."""
    if not _is_on_device(args[0]):
        return func(*args, **kwargs)
    out, buffer = func(*args, **kwargs)
    tracer.born(out)
    return out, buffer.new_empty(0)


# Operators that are made of others.


def _is_infinite(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/TensorCompare.cpp``, ``isinf``."""
    (tensor,) = args
    if not _is_on_device(tensor) or not tensor.is_floating_point():
        return tracer.run(func, args, kwargs)
    with tracer.seeing_again():
        return tensor.abs() == torch.inf


def _masked_scatter_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """What the mask selects, filled up with zeros.

    Source: ``aten/src/ATen/native/TensorAdvancedIndexing.cpp``, ``masked_scatter_backward``.
    """
    gradient, mask, sizes = args
    if not _is_on_device(gradient):
        return func(*args, **kwargs)
    with tracer.seeing_again():
        selected = gradient.masked_select(mask)
        missing = prod(sizes) - selected.numel()
        if missing > 0:
            selected = torch.cat([selected, gradient.new_zeros(missing)])
        return selected.view(sizes)


def _all_close(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/TensorCompare.cpp``, ``allclose``."""
    if not _is_on_device(args[0]):
        return func(*args, **kwargs)
    with tracer.seeing_again():
        return bool(torch.isclose(*args, **kwargs).all())


def _in_place_in_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    node = torch._C._current_autograd_node()
    # What a checkpoint computes again within a node is the program's, and records gradients.
    is_formula = node is not None and not torch.is_grad_enabled()
    if is_formula and node.name() in IN_PLACE_IN_BACKWARD[func] and _is_on_device(args[0]):
        return args[0]
    return tracer.run(func, args, kwargs)


def _contiguous_gradient(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The kernel reads its first argument as a contiguous tensor, and copies another."""
    tensor = args[0]
    with tracer.scratch(_contiguous_copy(tensor) if _is_on_device(tensor) else 0):
        return tracer.run(func, args, kwargs)


def _inexact(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """What the kernel allocates beside its outputs is not known; the trace says so."""
    out = tracer.run(func, args, kwargs)
    if any(map(_is_on_device, out if isinstance(out, tuple | list) else (out,))):
        tracer.inexact.add(func._schema.name.replace("aten::", "torch.ops.aten."))
    return out


# Losses. Where one is reduced, one loss for each element comes first.


def _reduced_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The result keeps the storage of one loss for each element; a second one is reduced.

    Source: ``aten/src/ATen/native/BinaryOps.cpp`` and ``Loss.cpp``, the structured ``mse_loss`` and
    ``smooth_l1_loss``.
    """
    out = func(*args, **kwargs)
    if not _is_on_device(out) or not _bind(func, args, kwargs, "reduction"):
        tracer.born(out)
        return out
    losses = torch.broadcast_tensors(*args[:2])[0]  # type: ignore[no-untyped-call]
    out = torch.empty(losses.shape, dtype=out.dtype, device="meta").resize_(())
    tracer.born(out)
    with tracer.scratch(losses.numel() * out.element_size()):
        _split_buffers(tracer, torch.empty(losses.shape, device="meta"), None)
    return out


def _resized_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The losses are reduced to a number that is copied back, and their storage stays.

    Source: ``aten/src/ATen/native/cuda/Loss.cu``, ``binary_cross_entropy_cuda``, and
    ``aten/src/ATen/native/Loss.cpp``, ``soft_margin_loss``.
    """
    out = func(*args, **kwargs)
    if not _is_on_device(out) or not _bind(func, args, kwargs, "reduction"):
        tracer.born(out)
        return out
    losses = torch.empty(args[0].shape, dtype=out.dtype, device="meta")
    tracer.born(losses)
    with tracer.scratch(out.element_size()):
        _split_buffers(tracer, losses, None)
    return losses.resize_(())


def _huber_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Loss.cpp``, ``huber_loss``."""
    if not _is_on_device(args[0]) or not _bind(func, args, kwargs, "reduction"):
        return tracer.run(func, args, kwargs)
    losses = torch.broadcast_tensors(*args[:2])[0]  # type: ignore[no-untyped-call]
    with tracer.scratch(_nbytes(losses)):
        out = tracer.run(func, args, kwargs)
        _split_buffers(tracer, torch.empty(losses.shape, device="meta"), None)
    return out


def _logits_loss(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Loss.cpp``, ``binary_cross_entropy_with_logits``."""
    if not _is_on_device(args[0]):
        return func(*args, **kwargs)
    names = ("self", "target", "weight", "pos_weight", "reduction")
    logits, target, weight, pos_weight, reduction = (
        _bind(func, args, kwargs, name) for name in names
    )
    with tracer.seeing_again():
        logarithms = torch.nn.functional.logsigmoid(logits)
        if pos_weight is not None:
            logarithms.mul_((pos_weight - 1).mul(target).add_(1))
        losses = (1 - target).mul_(logits).sub_(logarithms)
        if weight is not None:
            losses.mul_(weight)
        if reduction == MEAN:
            return losses.mean()
        return losses.sum() if reduction == SUM else losses


def _soft_margin_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/Loss.cpp``, ``soft_margin_loss_backward_out``."""
    out = func(*args, **kwargs)
    if not _is_on_device(out):
        return out
    size = _nbytes(out)
    with tracer.scratch(size, size):
        sum_and_one = torch.empty_like(out)
        tracer.born(sum_and_one)
    tracer.born(out)
    return out


# Matrix products.


def _matrix_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    left, right = [value for value in args if isinstance(value, Tensor)][-2:]
    if left.dtype is not right.dtype and _is_on_device(left):
        # CUDA refuses what the meta device computes.
        raise RuntimeError(
            "expected mat1 and mat2 to have the same dtype, but got: "
            f"{left.dtype} and {right.dtype}"
        )
    out = tracer.run(func, args, kwargs)
    if not _is_on_device(out) or not left.numel() or not right.numel():
        return out
    with tracer.scratch(_operand_copy(left), _operand_copy(right)):
        tracer.use_cublas()
    return out


def _inner_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    out = tracer.run(func, args, kwargs)
    if _is_on_device(out) and args[0].numel():
        tracer.use_cublas()
    return out


def _scaled_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/ScaledBlas.cpp``: cuBLASLt, in the workspace of cuBLAS."""
    out = tracer.run(func, args, kwargs)
    if _is_on_device(out):
        tracer.use_cublas()
    return out


def _unsafe_view(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """It shares the storage as a view does, which takes half the time of the operator itself."""
    return tracer.run(aten.view.default, args, kwargs)


def _power_of_number(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The number becomes a tensor on the device (``aten/src/ATen/native/Pow.cpp``)."""
    out = tracer.run(func, args, kwargs)
    with tracer.scratch(FLOAT if _is_on_device(out) else 0):
        pass
    return out


def _grouped_product(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """One product for each group (expert); rows of the output start at multiples of 16 bytes.

    Source: ``aten/src/ATen/native/cuda/GroupedBlas.cpp`` and ``GroupMM.cu``: for 16-bit brain
    floats, addresses and strides of each group and a workspace (seen on 9.0).
    """
    left, right = args[:2]
    if not _is_on_device(left):
        return func(*args, **kwargs)
    offsets = _bind(func, args, kwargs, "offs")
    groups = left.shape[0] if offsets is None else offsets.shape[0]
    rows, columns = left.shape[-2], right.shape[-1]
    shape = [rows, columns] if left.dim() != right.dim() else [groups, rows, columns]
    padded = round_up(columns, 16 // left.element_size())
    strides = [padded, 1] if len(shape) == 2 else [rows * padded, padded, 1]
    # The meta kernel takes fewer types than CUDA's.
    out = torch.empty_strided(shape, strides, dtype=left.dtype, device="meta")
    tracer.born(out)
    if left.dtype is torch.bfloat16 and tracer.gpu.compute_capability[0] == 9:
        with tracer.scratch(60 * groups, 67_584):
            pass
    return out


def _operand_copy(operand: Tensor) -> int:
    """Bytes of the copy of an operand that cuBLAS cannot read as it lies.

    Source: ``aten/src/ATen/native/cuda/Blas.cpp``, ``prepare_matrix_for_cublas`` and
    ``prepare_batch_matrix_for_cublas``.
    """
    if operand.dim() < 2:
        return 0
    rows, columns = operand.shape[-2:]
    row_stride, column_stride = operand.stride()[-2:]
    if column_stride == 1 and row_stride >= max(1, columns):
        return 0
    if row_stride == 1 and column_stride >= max(1, rows):
        return 0
    return _nbytes(operand)


# Embeddings and indices.


def _embedding(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    indices = args[1]
    copy = 0 if not _is_on_device(indices) or indices.is_contiguous() else _nbytes(indices)
    with tracer.scratch(copy):
        return tracer.run(func, args, kwargs)


def _embedding_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/Embedding.cu`` and ``EmbeddingBackwardKernel.cu``."""
    gradient, indices, rows = args[:3]
    if not _is_on_device(gradient):
        return func(*args, **kwargs)
    n = indices.numel()
    copies = [0 if t.is_contiguous() else _nbytes(t) for t in (indices, gradient)]
    with tracer.scratch(*copies):
        if n <= 3072:
            return tracer.run(func, args, kwargs)
        with tracer.scratch(INDEX * n, INDEX * n):
            with tracer.scratch(INDEX * n, cub.radix_sort(n, rows, tracer.gpu)):
                pass
            out = tracer.run(func, args, kwargs)
            unique = min(n, rows)
            with tracer.scratch(INDEX * n, INDEX):
                with tracer.scratch(INDEX * n, cub.unique_by_key(n, tracer.gpu)):
                    pass
                with tracer.scratch(INDEX * unique, INDEX * unique):
                    with tracer.scratch(cub.scan(unique)):
                        pass
                    with tracer.scratch(INDEX, *_embedding_sums(n, rows, gradient, tracer.gpu)):
                        pass
    return out


def _embedding_sums(n: int, rows: int, gradient: Tensor, gpu: Gpu) -> list[int]:
    """Bytes of what the sums of segments are kept in: their places, and they or the whole table."""
    segments = embedding_segments(n, rows)
    columns = gradient.shape[-1]
    if not embedding_adds_atomically(n, rows, columns, gpu.sm_count):
        return [INDEX * segments, FLOAT * segments * columns]
    table = FLOAT * rows * columns if gradient.dtype in HALF else 0
    return [INDEX * segments, INDEX * segments, table]


def _index(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    tensor, given = args
    # An index that is written as a list is made on the device, without an operator.
    tracer.born(list(given))
    indices = _places(tracer, given)
    with tracer.scratch(*_index_copies(indices)):
        return tracer.run(func, (tensor, indices), kwargs)


def _places(tracer: Tracer, given: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Masks as the places that are true in them, which are looked for on the device.

    Source: ``aten/src/ATen/native/IndexingUtils.h``, ``expandTensors``.
    """
    indices: list[Tensor | None] = []
    for index in given:
        if index is not None and index.dtype is torch.bool and index.device.type == "meta":
            with tracer.seeing_again():
                indices += index.nonzero().unbind(1)
        else:
            indices.append(index)
    return indices


def _index_copies(given: Iterable[Tensor | None]) -> list[int]:
    """Bytes of the copies that make all indices lie alike.

    Source: ``aten/src/ATen/native/TensorAdvancedIndexing.cpp``, ``make_info``: on CUDA alone.
    """
    indices = [index for index in given if index is not None and index.dtype is not torch.bool]
    expanded = torch.broadcast_tensors(*indices)  # type: ignore[no-untyped-call]
    if len({index.stride() for index in expanded}) <= 1:
        return []
    return [0 if index.is_contiguous() else _nbytes(index) for index in expanded]


def _index_put(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cuda/Indexing.cu``, ``index_put_with_sort_kernel``."""
    target, given, values = args[:3]
    if not _is_on_device(target):
        return func(*args, **kwargs)
    is_accumulated = _bind(func, args, kwargs, "accumulate", False)
    # The gradient of an index, which a mode sees out of place (see `_add`).
    is_gradient = tracer.in_backward and is_accumulated and func is aten.index_put.default
    if is_gradient:
        out = func(*args, **kwargs)
        tracer.hand_over(target, out)
    else:
        out = tracer.run(func, args, kwargs)
    given = _places(tracer, given)
    if not is_accumulated:
        with tracer.scratch(*_index_copies(given)):
            return out
    indices = {dim: index for dim, index in enumerate(given) if index is not None}
    pairs = prod(torch.broadcast_shapes(*(index.shape for index in indices.values())))  # type: ignore[no-untyped-call]
    if pairs:
        linear = _linear_index(tracer, len(indices), INDEX * pairs, is_checked=not is_gradient)
        copy = 0 if values.is_contiguous() else _nbytes(values)
        rows = prod(target.shape[dim] for dim in indices)
        # Places that were looked for in a mask are not needed any more.
        del given, indices
        sort = cub.radix_sort(pairs, rows - 1, tracer.gpu)
        with tracer.scratch(copy, INDEX * pairs, INDEX * pairs, INDEX * pairs, sort):
            pass
        tracer.give(*linear)
    return out


def _linear_index(
    tracer: Tracer, count: int, nbytes: int, *, is_checked: bool
) -> tuple[int, Block]:
    """The block of one index, made of `count`; whether they are in range is looked up first."""
    linear = None
    for _ in range(count):
        if is_checked:
            lowest, highest = tracer.take(INDEX), tracer.take(INDEX)
            for _ in range(2):
                with tracer.scratch(1):
                    pass
            tracer.give(*lowest)
            tracer.give(*highest)
        wrapped, product = tracer.take(nbytes), tracer.take(nbytes)
        tracer.give(*wrapped)
        if linear is None:
            linear = product
        else:
            tracer.give(*product)
    assert linear is not None
    return linear


def _sort(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    out = tracer.run(func, args, kwargs)
    if _is_on_device(args[0]):
        with tracer.scratch(INDEX * args[0].numel()):
            pass
    return out


# Softmax, norms and dropout.


def _softmax_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The product of gradient and output is a buffer of its own."""
    out = tracer.run(func, args, kwargs)
    with tracer.scratch(_nbytes(args[1]) if _is_on_device(args[1]) else 0):
        pass
    return out


def _safe_softmax(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Rows that are all -inf become zeros: a mask, its reduction to rows, and a scalar."""
    out = tracer.run(func, args, kwargs)
    if _is_on_device(out):
        with tracer.scratch(out.numel(), out.numel() // out.shape[args[1]], 4):
            pass
    return out


def _layer_norm(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    tensor = args[0]
    with tracer.scratch(_contiguous_copy(tensor) if _is_on_device(tensor) else 0):
        return tracer.run(func, args, kwargs)


def _layer_norm_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """With many rows the gradients of weight and bias are summed up in two parts.

    Source: ``aten/src/ATen/native/cuda/layer_norm_kernel.cu``, ``layer_norm_backward_cuda`` and
    ``LayerNormBackwardKernelImplInternal``.
    """
    gradient, tensor, shape = args[:3]
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    of_input, of_weight, of_bias = out = func(*args, **kwargs)
    columns = prod(shape)
    rows = tensor.numel() // columns
    partial = layer_norm_partials(rows, columns, tensor.element_size(), tracer.gpu.sm_count)
    of_parameters = [result for result in (of_weight, of_bias) if result is not None]
    copy_of_gradient = _contiguous_copy(gradient)
    with tracer.scratch(_contiguous_copy(tensor)):
        tracer.born(of_input)
        if of_weight is None or not partial:
            tracer.born(of_parameters)
            with tracer.scratch(copy_of_gradient):
                return out
        # The sums of the parts take the place of what there was for the gradients.
        first = [torch.empty_like(result) for result in of_parameters]
        tracer.born(first)
        with tracer.scratch(copy_of_gradient, partial, partial):
            rows_of_parts = partial // (columns * tensor.element_size())
            parts = torch.empty((rows_of_parts, columns), device="meta")
            for result in of_parameters:
                tracer.born(result)
                _split_buffers(tracer, parts, 0)
                del first[0]
    return out


def _group_norm(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A scale and a shift for each channel, where weights are folded into them.

    Of a half precision input, the statistics are computed in float32 first.

    Source: ``aten/src/ATen/native/cuda/group_norm_kernel.cu``, ``GroupNormKernelImplInternal``.
    """
    out = tracer.run(func, args, kwargs)
    tensor, weight, bias, rows, channels, size, groups = args[:7]
    if not _is_on_device(tensor):
        return out
    of_groups = _accumulated(tensor) * rows * groups if tensor.dtype in HALF else 0
    is_folded = size > 1 and (weight is not None or bias is not None)
    nbytes = _accumulated(tensor) * rows * channels if is_folded else 0
    with tracer.scratch(_contiguous_copy(tensor), of_groups, of_groups, nbytes, nbytes):
        return out


def _group_norm_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../cuda/group_norm_kernel.cu``, ``GroupNormBackwardKernelImplInternal``."""
    gradient, tensor, _, _, weight, rows, channels, size, groups = args[:9]
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    wide = _accumulated(tensor) * rows
    of_channels = wide * channels if size > 1 else 0
    with tracer.scratch(_contiguous_copy(gradient), _contiguous_copy(tensor)):
        out = tracer.run(func, args, kwargs)
        of_groups = wide * groups if out[0] is not None else 0
        of_weight = of_channels if out[0] is not None and weight is not None else 0
        with tracer.scratch(of_channels, of_channels, of_groups, of_groups, of_weight):
            return out


def _contiguous_copy(tensor: Tensor) -> int:
    return 0 if tensor.is_contiguous() else _nbytes(tensor)


def _accumulated(tensor: Tensor) -> int:
    """Bytes of the type that numbers of a tensor's are summed up in."""
    return max(FLOAT, tensor.element_size())


# Convolutions, by cuDNN, whose workspaces are not simulated.


def _convolution(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Input and weights in one memory format.

    Source: ``aten/src/ATen/native/cudnn/ConvShared.cpp``, ``cudnn_convolution``.
    """
    tensor, weight = args[:2]
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    if _bind(func, args, kwargs, "transposed"):
        return _inexact(tracer, func, args, kwargs)
    form = _convolution_format(tensor, weight)
    out = _laid_out(func(*args, **kwargs), form)
    with tracer.scratch(_copy_in(tensor, form)):
        tracer.born(out)
        with tracer.scratch(_copy_in(weight, form)):
            return out


def _convolution_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Gradients of input, weights and bias, one after the other.

    Source: ``aten/src/ATen/native/cudnn/ConvShared.cpp``, ``cudnn_convolution_backward``.
    """
    gradient, tensor, weight = args[:3]
    if not _is_on_device(tensor):
        return func(*args, **kwargs)
    if _bind(func, args, kwargs, "transposed"):
        return _inexact(tracer, func, args, kwargs)
    form = _convolution_format(tensor, weight)
    *of_both, of_bias = func(*args, **kwargs)
    of_input, of_weight = (_laid_out(value, form) for value in of_both)
    # One in the other format is copied once; one that only looks like it, for each gradient.
    copied_once = _copy_in(gradient, form) if suggest_memory_format(gradient) is not form else 0
    copied = 0 if copied_once else _copy_in(gradient, form)
    with tracer.scratch(_copy_in(tensor, form), copied_once):
        if of_input is not None:
            tracer.born(of_input)
            with tracer.scratch(copied, _copy_in(weight, form)):
                pass
        if of_weight is not None:
            with tracer.scratch(copied):
                tracer.born(of_weight)
    if of_bias is not None:
        tracer.born(of_bias)
        _split_buffers(tracer, gradient, [0, *range(2, gradient.dim())])
    return of_input, of_weight, of_bias


def _laid_out(output: Any, form: torch.memory_format) -> Any:
    """The meta device has all outputs contiguous."""
    if output is None or output.is_contiguous(memory_format=form):
        return output
    return torch.empty_like(output, memory_format=form)


def _convolution_format(tensor: Tensor, weight: Tensor) -> torch.memory_format:
    forms = (suggest_memory_format(value) for value in (tensor, weight))
    return next(
        (form for form in forms if form is not torch.contiguous_format), torch.contiguous_format
    )


def _copy_in(tensor: Tensor, form: torch.memory_format) -> int:
    return 0 if tensor.is_contiguous(memory_format=form) else _nbytes(tensor)


def _native_dropout(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The mask is made before the output."""
    output, mask = func(*args, **kwargs)
    tracer.born([mask, output])
    return output, mask


# Attention.


def _cudnn_forward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/attention.cu``, ``_cudnn_attention_forward``."""
    output, logsumexp, *rest = out = func(*args, **kwargs)
    seed, offset = rest[4:6]
    tracer.note_cudnn_attention(0)
    tracer.born([seed, offset, output])
    if _bind(func, args, kwargs, "compute_log_sumexp"):
        tracer.born(logsumexp)
    return out


def _cudnn_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cudnn/MHA.cpp``, ``run_cudnn_SDP_bprop``."""
    _, query, key, value = args[:4]
    batch, heads, queries, head_dim = query.shape
    out = tracer.run(func, args, kwargs)
    workspace = cudnn_backward_workspace(batch, heads, queries, head_dim, tracer.gpu)
    with tracer.scratch(workspace):
        pass
    expanded = 0
    if has_gqa(heads, key.shape[1]):
        expanded = batch * heads * key.shape[2] * (head_dim + value.shape[-1]) * key.element_size()
    tracer.note_cudnn_attention(expanded)
    return out


def _flash_forward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/flash_attn/flash_api.cpp``, ``mha_fwd``."""
    query, key = args[:2]
    dropout = _bind(func, args, kwargs, "dropout_p")
    out = func(*args, **kwargs)
    batch, heads, queries, head_dim = query.shape
    tracer.born(out[:2])
    splits = 1
    if dropout == 0:
        splits = flash_splits(batch, heads, queries, key.shape[2], head_dim, tracer.gpu.sm_count)
    rows = FLOAT * splits * batch * heads * queries
    buffers = (rows, rows * flash_head_dim(head_dim)) if splits > 1 else ()
    state, unused = out[6:8]
    taken = [tracer.take(buffer) for buffer in buffers]
    # With dropout a first state of the generator makes room for a second.
    with tracer.scratch(_nbytes(state) if dropout > 0 else 0):
        tracer.born([unused, state] if dropout > 0 else [state, unused])
    tracer.born(out[8:])
    for number, block in taken:
        tracer.give(number, block)
    return out


def _flash_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/flash_attn/flash_api.cpp``, ``mha_bwd``."""
    gradient, query, key, _, output = args[:5]
    batch, heads, queries, head_dim = query.shape
    key_heads, keys = key.shape[1:3]
    # Heads and tokens change places for the kernel, which wants them contiguous there.
    copies = [
        0 if tensor.transpose(1, 2).is_contiguous() else _nbytes(tensor)
        for tensor in (gradient, output)
    ]
    rows = FLOAT * batch * heads * round_up(queries, 128)
    expanded = batch * keys * heads * head_dim * key.element_size()
    buffers = [rows, rows * flash_head_dim(head_dim)]
    if has_gqa(heads, key_heads):
        buffers += [expanded, expanded]
    with tracer.scratch(*copies):
        out = tracer.run(func, args, kwargs)
        with tracer.scratch(*buffers):
            pass
    return out


def _efficient_forward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/attention.cu``, ``_efficient_attention_forward``."""
    query, _, value = args[:3]
    output, logsumexp, seed, offset = out = func(*args, **kwargs)
    if _bind(func, args, kwargs, "dropout_p"):
        # The state of the generator comes from the host.
        with tracer.outside_allocator():
            tracer.born([seed, offset])
    else:
        tracer.born([seed, offset])
    tracer.born([output, logsumexp])
    batch, heads, queries, _ = query.shape
    value_dim = value.shape[-1]
    if query.dtype in HALF and value_dim > 128:
        with tracer.scratch(FLOAT * batch * queries * heads * value_dim):
            pass
    return out


def _efficient_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/attention_backward.cu``."""
    gradient, query, key, value = args[:4]
    batch, heads, queries, head_dim = query.shape
    key_heads, keys = key.shape[1:3]
    is_half = query.dtype in HALF
    copy = 0 if gradient.transpose(1, 2).is_contiguous() else _nbytes(gradient)
    with tracer.scratch(copy):
        # The meta kernel of some releases forgets that heads of the key can be fewer.
        out: list[Any] = [_attention_gradient(tensor) for tensor in (query, key, value)]
        needs_bias = _bind(func, args, kwargs, "grad_input_mask")[3]
        out.append(func(*args, **kwargs)[3] if needs_bias else None)
        tracer.born(out)
        expanded = [0, 0]
        if has_gqa(heads, key_heads):
            per_head = batch * keys * heads * key.element_size()
            expanded = [per_head * head_dim, per_head * value.shape[-1]]
        rows = FLOAT * batch * heads * queries
        with tracer.scratch(*expanded):
            with tracer.scratch(*(() if is_half else (rows * value.shape[-1], rows))):
                # Other types than 16 bits: the sum over a product, with heads before tokens.
                delta = tracer.take(rows)
            workspace = tracer.take(
                efficient_backward_workspace(
                    batch, heads, queries, keys, head_dim, is_half, tracer.gpu
                )
            )
            tracer.give(*delta)
            tracer.give(*workspace)
    return tuple(out)


def _attention_gradient(like: Tensor) -> Tensor:
    """A gradient of [B, H, S, D] that lies in memory as [B, S, H, D]."""
    batch, heads, tokens, dim = like.shape
    lying = torch.empty((batch, tokens, heads, dim), dtype=like.dtype, device="meta")
    return lying.transpose(1, 2)


# Autograd's engine.


def _add(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The engine adds gradients in place where nobody else holds them, except under a mode.

    Source: ``torch/csrc/autograd/input_buffer.cpp``, ``can_accumulate_inplace``: any dispatch mode
    makes tensors look like subclasses there.
    """
    if not kwargs and len(args) == 2 and tracer.in_backward and not torch.is_grad_enabled():
        old, new = args
        if (
            _is_on_device(old)
            and _is_on_device(new)
            and old.shape == new.shape
            and old.dtype == new.dtype
            and _is_dense(old)
            and tracer.is_engine_s_own(old)
        ):
            out = tracer.compute(func, args, kwargs)
            tracer.hand_over(old, out)
            return out
    return tracer.run(func, args, kwargs)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie side by side in memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _fused_optimizer(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A fused optimizer: one kernel, in place, without a buffer; unknown to the meta device."""
    if _is_on_device(args[0][0]):
        return None
    return func(*args, **kwargs)


def _loss_scaling(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Checking and scaling gradients, and the update of the scale: one kernel each, in place."""
    first = args[0] if isinstance(args[0], Tensor) else args[0][0]
    if _is_on_device(first):
        return first if isinstance(args[0], Tensor) else None
    return func(*args, **kwargs)


_HANDLERS: dict[Handler, str] = {
    _read_scalar: "_local_scalar_dense",
    _to_copy: "_to_copy.default",
    _unsafe_view: "_unsafe_view.default",
    _copy: "copy_.default",
    _unique: "_unique2.default",
    _unique_consecutive: "unique_consecutive.default",
    _equal: "equal.default",
    _nonzero: "nonzero.default",
    _masked_select: "masked_select.default",
    _repeat_interleave: "repeat_interleave.Tensor",
    _fill: "zero_.default fill_.Scalar normal_.default uniform_.default",
    _reduce: (
        "sum.default sum.dim_IntList mean.default mean.dim amax.default amin.default max.default "
        "min.default linalg_vector_norm.default norm.Scalar norm.ScalarOpt_dim prod.default "
        "prod.dim_int"
    ),
    _reduce_bytes: "any.default any.dim any.dims all.default all.dim all.dims",
    _find_extreme: "argmax.default argmin.default",
    _foreach_norm: "_foreach_norm.Scalar",
    _cumsum: "cumsum.default",
    _masked_scatter: "masked_scatter.default masked_scatter_.default",
    _log_sigmoid: "log_sigmoid_forward.default",
    _masked_scatter_backward: "masked_scatter_backward.default",
    _is_infinite: "isinf.default",
    _reduced_loss: "mse_loss.default smooth_l1_loss.default",
    _resized_loss: "binary_cross_entropy.default soft_margin_loss.default",
    _logits_loss: "binary_cross_entropy_with_logits.default",
    _huber_loss: "huber_loss.default",
    _soft_margin_backward: "soft_margin_loss_backward.default",
    _all_close: "allclose.default",
    _in_place_in_backward: (
        "scatter_add.default index_add.default index_fill.int_Tensor scatter.src masked_fill.Scalar"
    ),
    _contiguous_gradient: (
        "max_pool2d_with_indices_backward max_pool3d_with_indices_backward roll "
        "upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
        "upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_linear1d_backward "
        "upsample_trilinear3d_backward"
    ),
    _inexact: (
        "_cdist_forward _cdist_backward _euclidean_dist _pdist_forward _pdist_backward "
        "cholesky_inverse cholesky_solve linalg_cholesky_ex linalg_lu linalg_lu_factor_ex "
        "linalg_lu_solve linalg_matrix_exp lu_unpack _linalg_det _linalg_slogdet _linalg_eigh "
        "linalg_eig linalg_inv_ex _linalg_solve_ex linalg_solve_triangular triangular_solve "
        "linalg_householder_product linalg_ldl_factor_ex linalg_ldl_solve ormqr geqrf "
        "isin median nanmedian mode kthvalue cummax cummin multinomial renorm count_nonzero "
        "segment_reduce _embedding_bag _embedding_bag_dense_backward native_batch_norm_backward "
        "cudnn_batch_norm_backward batch_norm_backward grid_sampler_3d_backward "
        "unfold_backward special_i1e _chunk_cat take _unsafe_masked_index "
        "_unsafe_masked_index_put_accumulate linalg_vander"
    ),
    _matrix_product: (
        "mm addmm addmm_ _addmm_activation bmm baddbmm baddbmm_ addbmm mv addmv addmv_"
    ),
    _inner_product: "dot vdot",
    _scaled_product: "_scaled_mm.default",
    _grouped_product: "_grouped_mm.default",
    _embedding: "embedding.default",
    _embedding_backward: "embedding_dense_backward.default",
    _power_of_number: "pow.Scalar",
    _index: "index.Tensor",
    _index_put: "index_put.default index_put_.default _index_put_impl_.default",
    _sort: "sort.default sort.stable",
    _softmax_backward: "_softmax_backward_data.default",
    _safe_softmax: "_safe_softmax.default",
    _layer_norm: "native_layer_norm.default",
    _layer_norm_backward: "native_layer_norm_backward.default",
    _group_norm: "native_group_norm.default",
    _group_norm_backward: "native_group_norm_backward.default",
    _convolution: "convolution.default",
    _convolution_backward: "convolution_backward.default",
    _native_dropout: "native_dropout.default",
    _cudnn_forward: "_scaled_dot_product_cudnn_attention.default",
    _cudnn_backward: "_scaled_dot_product_cudnn_attention_backward.default",
    _flash_forward: "_scaled_dot_product_flash_attention.default",
    _flash_backward: "_scaled_dot_product_flash_attention_backward.default",
    _efficient_forward: "_scaled_dot_product_efficient_attention.default",
    _efficient_backward: "_scaled_dot_product_efficient_attention_backward.default",
    _add: "add.Tensor",
    _loss_scaling: (
        "_amp_foreach_non_finite_check_and_unscale_.default _amp_update_scale_.default"
    ),
    _fused_optimizer: ("_fused_adamw_ _fused_adam_ _fused_sgd_ _fused_adagrad_"),
}
