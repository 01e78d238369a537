"""Scaled dot product attention as on a GPU: the choice of a backend, and the call of its kernel.

On the meta device PyTorch always uses the math backend, which allocates matrices of queries x keys
that a fused kernel does not need. This module chooses the backend by the rules of ``sdp_utils.cpp``.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from llmmem.estimation.tracing.tensors import HALF

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from llmmem.catalogue.gpus import Gpu
    from llmmem.estimation.tracing.tracer import AttentionBackend

__all__ = ["attend", "choose_backend", "prefers_cudnn"]

# The release in which memory-efficient attention gained support for fewer heads of keys than of queries.
EFFICIENT_TAKES_GROUPS = (2, 14)
# Cards of the 8.x and 12.x families with about 100 KiB of shared memory.
_SMALL_SHARED_MEMORY = ((8, 6), (8, 9), (12, 0), (12, 1))


def prefers_cudnn(gpu: Gpu) -> bool:
    """Whether PyTorch tries cuDNN's attention first on the card.

    It does on Hopper and on data center Blackwell with a cuDNN later than 9.15 (assumed if the
    installed PyTorch has no cuDNN), unless ``TORCH_CUDNN_SDPA_DEPRIORITIZED=1`` is set.

    Source: ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``,
    ``check_prefer_cudnn_attention``.
    """
    if os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1":
        return False
    return _is_cudnn_recent() and gpu.compute_capability[0] in (9, 10)


@cache
def _is_cudnn_recent() -> bool:
    # `torch.backends.cudnn.version` would initialize CUDA.
    cudnn = getattr(torch._C, "_cudnn", None)
    return cudnn is None or cudnn.getVersionInt() > 91_500


def choose_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    gpu: Gpu,
) -> AttentionBackend:
    """The backend that PyTorch picks on the card.

    Args:
        query: [B, H, Sq, D]; other ranks use the math backend.
        key: [B, Hk, Sk, D].
        value: [B, Hk, Sk, Dv].
        mask: A boolean or additive mask, or none.
        dropout: The dropout probability.
        is_causal: Whether to apply a causal mask.
        gpu: The card.

    Source: ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``, in its order of priority.

    Raises:
        RuntimeError: No enabled backend supports the inputs, as on a GPU.
    """
    shapes = [tensor.shape for tensor in (query, key, value)]
    if any(len(shape) != 4 or 0 in shape for shape in shapes):
        return "math"
    if len({shape[0] for shape in shapes}) > 1:
        return "math"
    # The math backend raises the error that it raises on a GPU.
    if key.shape[1] != value.shape[1] or query.shape[1] % key.shape[1]:
        return "math"
    if any(tensor.stride(-1) != 1 for tensor in (query, key, value)):
        return "math"
    # Backends that `torch.nn.attention.sdpa_kernel` and `torch.backends.cuda` leave enabled.
    enabled = torch._C
    is_cudnn_possible = enabled._get_cudnn_sdp_enabled() and _is_cudnn_possible(
        query, key, value, mask, dropout, gpu
    )
    if is_cudnn_possible and prefers_cudnn(gpu):
        return "cudnn"
    if enabled._get_flash_sdp_enabled() and _is_flash_possible(
        query, key, value, mask, dropout, is_causal, gpu
    ):
        return "flash"
    if enabled._get_mem_efficient_sdp_enabled() and _is_efficient_possible(
        query, key, gpu, query.dtype
    ):
        return "efficient"
    if enabled._get_math_sdp_enabled():
        return "math"
    if is_cudnn_possible and gpu.compute_capability >= (8, 0):
        return "cudnn"
    raise RuntimeError("No available kernel. Aborting execution.")


def _is_cudnn_possible(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, gpu: Gpu
) -> bool:
    batch, heads, queries, head_dim = query.shape
    value_dim = value.shape[-1]
    if query.dtype not in HALF or (mask is not None and mask.requires_grad):
        return False
    # cuDNN supports dropout probabilities that are multiples of a sixteenth.
    if (16 * dropout) % 1 or max(batch, heads) > 65_535:
        return False
    if head_dim % 8 or value_dim % 8 or max(head_dim, value_dim) > 256:
        return False
    if key.shape[2] == 1 or (queries == 1 and (dropout or gpu.compute_capability[0] == 10)):
        return False
    is_large = max(head_dim, value_dim) > 128
    if is_large and _needs_gradient(query, key, value):
        return (head_dim, value_dim) in ((192, 128), (256, 256))
    return True


def _is_flash_possible(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    gpu: Gpu,
) -> bool:
    head_dim = query.shape[-1]
    if gpu.compute_capability < (8, 0) or query.dtype not in HALF or mask is not None:
        return False
    if not head_dim == key.shape[-1] == value.shape[-1] or head_dim > 256:
        return False
    if is_causal and query.shape[2] != key.shape[2]:
        return False
    if gpu.compute_capability in _SMALL_SHARED_MEMORY and _needs_gradient(query, key, value):
        return not (192 < head_dim <= 224 or (head_dim > 224 and dropout > 0))
    return True


def _is_efficient_possible(query: Tensor, key: Tensor, gpu: Gpu, dtype: torch.dtype) -> bool:
    head_dim = query.shape[-1]
    if dtype not in (*HALF, torch.float32) or head_dim != key.shape[-1]:
        return False
    if query.shape[1] != key.shape[1] and torch.__version__ < EFFICIENT_TAKES_GROUPS:  # type: ignore[operator]
        return False
    if dtype is torch.bfloat16 and gpu.compute_capability < (8, 0):
        return False
    if dtype in HALF:
        alignment = 8 if gpu.compute_capability >= (7, 5) else 4
    else:
        alignment = 4 if gpu.compute_capability >= (8, 0) else 1
    return head_dim % alignment == 0


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def attend(
    backend: AttentionBackend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the chosen backend, with the operators that PyTorch calls around its kernel.

    Source: ``aten/src/ATen/native/transformers/attention.cpp``,
    ``scaled_dot_product_attention``.
    """
    if backend == "cudnn":
        return _cudnn(query, key, value, mask, dropout, is_causal, scale)
    if backend == "flash":
        return _flash(query, key, value, dropout, is_causal, scale)
    if backend == "efficient":
        return _efficient(query, key, value, mask, dropout, is_causal, scale)
    return functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    bias = None if mask is None else _additive(mask, query)
    needs_gradient = _needs_gradient(query, key, value)
    output: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, bias, needs_gradient, dropout, is_causal, False, scale=scale
    )[0]
    return output


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    head_dim = query.shape[-1]
    padding = -head_dim % 8
    if padding:
        scale = head_dim**-0.5 if scale is None else scale
        query, key, value = (functional.pad(tensor, (0, padding)) for tensor in (query, key, value))
    output = _first(
        torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout, is_causal, False, scale=scale
        )
    )
    return output[..., :head_dim] if padding else output


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    bias = None if mask is None else _prepared_bias(mask, query, key)
    needs_gradient = _needs_gradient(query, key, value)
    return _first(
        torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, needs_gradient, dropout, is_causal, scale=scale
        )
    )


def _first(outputs: Iterable[Any]) -> Tensor:
    """The first of the outputs. The others are freed in order, as C++ does, unlike Python."""
    output: Tensor
    output, *others = outputs
    del outputs
    while others:
        del others[0]
    return output


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    """The mask as it is added to the scores: a boolean mask becomes one of the type of the query."""
    if mask.dtype is not torch.bool:
        return mask
    zero, lowest = (
        torch.scalar_tensor(number, dtype=query.dtype, device=query.device)
        for number in (0.0, float("-inf"))
    )
    additive = torch.where(mask, zero, lowest)
    del lowest, zero  # in the order of C++
    return additive


def _prepared_bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    mask = _additive(mask, query)
    keys = mask.shape[-1]
    if mask.stride(-1) != 1 or any(stride % 8 for stride in mask.stride()[:-1]):
        # Rows must be aligned to 8 elements: the mask is padded by 1 to 8 of them, then sliced.
        mask = functional.pad(mask, (0, 8 - keys % 8))[..., :keys]
    return mask.expand(*query.shape[:3], key.shape[2])
