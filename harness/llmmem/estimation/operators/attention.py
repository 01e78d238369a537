"""The fused kernels of scaled dot product attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.operators.common import Arguments, Entry, Keywords, bind, nbytes_of
from llmmem.estimation.operators.workspaces import FLOAT, ceil_div, round_up
from llmmem.estimation.tracing.tensors import HALF

if TYPE_CHECKING:
    from llmmem.catalogue.gpus import Gpu
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES"]


def _cudnn_forward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/attention.cu``, ``_cudnn_attention_forward``."""
    output, logsumexp, *rest = out = func(*args, **kwargs)
    seed, offset = rest[4:6]
    tracer.note_cudnn_attention(0)
    tracer.allocate([seed, offset, output])
    if bind(func, args, kwargs, "compute_log_sumexp"):
        tracer.allocate(logsumexp)
    return out


def _cudnn_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``aten/src/ATen/native/cudnn/MHA.cpp``, ``run_cudnn_SDP_bprop``."""
    _, query, key, value = args[:4]
    batch, heads, queries, head_dim = query.shape
    out = tracer.run(func, args, kwargs)
    workspace = _cudnn_backward_workspace(batch, heads, queries, head_dim, tracer.gpu)
    with tracer.scratch(workspace):
        pass
    expanded = 0
    if _has_gqa(heads, key.shape[1]):
        expanded = batch * heads * key.shape[2] * (head_dim + value.shape[-1]) * key.element_size()
    tracer.note_cudnn_attention(expanded)
    return out


def _cudnn_backward_workspace(batch: int, heads: int, queries: int, head_dim: int, gpu: Gpu) -> int:
    """Bytes of the workspace of cuDNN's attention backward, without that of its plan.

    It holds a sum for each row and an accumulator for the gradient of the queries, in float32.
    With a head dimension of 256, Blackwell writes the gradient directly.

    Source: NVIDIA/cudnn-frontend, ``include/cudnn_frontend/node/
    scaled_dot_product_flash_attention.h``, ``softmax_sum`` and ``dQ_accum``.
    """
    major, _ = gpu.compute_capability
    is_direct = major == 10 and head_dim == 256
    return FLOAT * batch * heads * queries * (1 if is_direct else head_dim + 1)


def _flash_forward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/flash_attn/flash_api.cpp``, ``mha_fwd``."""
    query, key = args[:2]
    dropout = bind(func, args, kwargs, "dropout_p")
    out = func(*args, **kwargs)
    batch, heads, queries, head_dim = query.shape
    tracer.allocate(out[:2])
    splits = 1
    if dropout == 0:
        splits = _flash_splits(batch, heads, queries, key.shape[2], head_dim, tracer.gpu.sm_count)
    rows = FLOAT * splits * batch * heads * queries
    buffers = (rows, rows * _flash_head_dim(head_dim)) if splits > 1 else ()
    state, unused = out[6:8]
    taken = [tracer.malloc(buffer) for buffer in buffers]
    # With dropout, a second state of the generator replaces the first.
    with tracer.scratch(nbytes_of(state) if dropout > 0 else 0):
        tracer.allocate([unused, state] if dropout > 0 else [state, unused])
    tracer.allocate(out[8:])
    for number, block in taken:
        tracer.free(number, block)
    return out


def _flash_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/flash_attn/flash_api.cpp``, ``mha_bwd``."""
    gradient, query, key, _, output = args[:5]
    batch, heads, queries, head_dim = query.shape
    key_heads, keys = key.shape[1:3]
    # The kernel needs tensors that are contiguous with tokens before heads.
    copies = [
        0 if tensor.transpose(1, 2).is_contiguous() else nbytes_of(tensor)
        for tensor in (gradient, output)
    ]
    rows = FLOAT * batch * heads * round_up(queries, 128)
    expanded = batch * keys * heads * head_dim * key.element_size()
    buffers = [rows, rows * _flash_head_dim(head_dim)]
    if _has_gqa(heads, key_heads):
        buffers += [expanded, expanded]
    with tracer.scratch(*copies):
        out = tracer.run(func, args, kwargs)
        with tracer.scratch(*buffers):
            pass
    return out


def _flash_head_dim(head_dim: int) -> int:
    """The head dimension, rounded up to that of flash attention's kernels.

    Source: ``aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp``, ``mha_fwd``.
    """
    padded = round_up(head_dim, 8)
    return round_up(padded, 32 if padded <= 128 else 64)


def _flash_splits(
    batch: int, heads: int, queries: int, keys: int, head_dim: int, sm_count: int
) -> int:
    """The number of splits of the keys in the forward of flash attention; 1 needs no buffer.

    Source: ``.../flash_attn/flash_api.cpp``, ``num_splits_heuristic`` and ``set_params_splitkv``
    (called only without dropout).
    """
    block = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    key_blocks = ceil_div(keys, block)
    work = batch * heads * ceil_div(queries, 64)
    slots = 2 * sm_count
    if work >= 0.8 * slots:
        return 1
    efficiencies: dict[int, float] = {}
    for splits in range(1, min(128, slots, key_blocks) + 1):
        if splits == 1 or ceil_div(key_blocks, splits) != ceil_div(key_blocks, splits - 1):
            waves = work * splits / slots
            efficiencies[splits] = waves / -(-waves // 1)
    best = max(efficiencies.values())
    return next(splits for splits, value in efficiencies.items() if value >= 0.85 * best)


def _efficient_forward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../transformers/cuda/attention.cu``, ``_efficient_attention_forward``."""
    query, _, value = args[:3]
    output, logsumexp, seed, offset = out = func(*args, **kwargs)
    if bind(func, args, kwargs, "dropout_p"):
        # The state of the generator is on the host.
        with tracer.outside_allocator():
            tracer.allocate([seed, offset])
    else:
        tracer.allocate([seed, offset])
    tracer.allocate([output, logsumexp])
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
    copy = 0 if gradient.transpose(1, 2).is_contiguous() else nbytes_of(gradient)
    with tracer.scratch(copy):
        # The meta kernel of some releases does not support fewer heads of keys than of queries.
        out: list[Any] = [_attention_gradient(tensor) for tensor in (query, key, value)]
        needs_bias = bind(func, args, kwargs, "grad_input_mask")[3]
        out.append(func(*args, **kwargs)[3] if needs_bias else None)
        tracer.allocate(out)
        expanded = [0, 0]
        if _has_gqa(heads, key_heads):
            per_head = batch * keys * heads * key.element_size()
            expanded = [per_head * head_dim, per_head * value.shape[-1]]
        rows = FLOAT * batch * heads * queries
        with tracer.scratch(*expanded):
            with tracer.scratch(*(() if is_half else (rows * value.shape[-1], rows))):
                # Of a type with more than 16 bits, a product is stored and summed to rows.
                delta = tracer.malloc(rows)
            workspace = tracer.malloc(
                _efficient_backward_workspace(
                    batch, heads, queries, keys, head_dim, is_half, tracer.gpu
                )
            )
            tracer.free(*delta)
            tracer.free(*workspace)
    return tuple(out)


def _attention_gradient(like: Tensor) -> Tensor:
    """A gradient of shape [B, H, S, D] with the memory layout of [B, S, H, D]."""
    batch, heads, tokens, dim = like.shape
    gradient = torch.empty((batch, tokens, heads, dim), dtype=like.dtype, device="meta")
    return gradient.transpose(1, 2)


@dataclass(frozen=True)
class _BackwardKernel:
    """Block sizes of a backward kernel of memory-efficient attention."""

    block_i: int
    block_j: int
    max_head_dim: int


def _efficient_backward_kernel(head_dim: int, is_half: bool, gpu: Gpu) -> _BackwardKernel:
    """The first kernel that supports the head dimension and fits in shared memory.

    Source: ``.../transformers/cuda/mem_eff_attention/kernels/cutlassB.h``.
    """
    major, minor = gpu.compute_capability
    is_large = (major, minor) in ((8, 0), (9, 0), (10, 0), (10, 3))
    if head_dim <= 32:
        return _BackwardKernel(64, 64, 32)
    if head_dim <= 64:
        return _BackwardKernel(64, 64, 64)
    if is_half and major >= 8 and head_dim <= 96 and (major, minor) in ((8, 6), (8, 9)):
        return _BackwardKernel(128, 64, 96)
    max_head_dim = 128 if head_dim <= 128 else 65536
    if not is_large:
        return _BackwardKernel(64, 64, max_head_dim)
    block_j = 128 if is_half and max_head_dim == 128 else 64
    return _BackwardKernel(128, block_j, max_head_dim)


def _efficient_backward_workspace(
    batch: int, heads: int, queries: int, keys: int, head_dim: int, is_half: bool, gpu: Gpu
) -> int:
    """Bytes of the workspace of memory-efficient attention's backward kernel.

    Source: ``.../mem_eff_attention/kernel_backward.h``, ``workspace_size``.
    """
    kernel = _efficient_backward_kernel(head_dim, is_half, gpu)
    splits = ceil_div(keys, kernel.block_j)
    if batch * heads >= 256 and keys <= 2 * kernel.block_j:
        splits = 1
    is_kept_in_registers = kernel.max_head_dim <= kernel.block_i
    key_elements = 0
    if is_half and not is_kept_in_registers:
        splits = max(1, min(splits, 200 // (batch * heads)))
        tile = round_up(head_dim, kernel.block_i)
        key_elements = 2 * splits * kernel.block_j * tile
    tiles = ceil_div(queries, kernel.block_i) * ceil_div(head_dim, kernel.block_j)
    query_elements = tiles * (4 + kernel.block_i * kernel.block_j)
    return FLOAT * batch * heads * round_up(key_elements + query_elements, 4)


def _has_gqa(query_heads: int, key_heads: int) -> bool:
    """Whether several query heads share a key head, over which gradients are then summed."""
    return query_heads != key_heads


ENTRIES = (
    Entry("_scaled_dot_product_cudnn_attention.default", _cudnn_forward),
    Entry("_scaled_dot_product_cudnn_attention_backward.default", _cudnn_backward),
    Entry("_scaled_dot_product_flash_attention.default", _flash_forward),
    Entry("_scaled_dot_product_flash_attention_backward.default", _flash_backward),
    Entry("_scaled_dot_product_efficient_attention.default", _efficient_forward),
    Entry("_scaled_dot_product_efficient_attention_backward.default", _efficient_backward),
)
