"""Autocast for the meta device, which PyTorch does not support.

PyTorch casts tensors of a GPU in C++, above autograd. This module makes the same casts when functions
are called, by the lists of ``aten/src/ATen/autocast_mode.h`` (2.14): functions that compute in the
lower precision, in float32, in the widest type of their arguments, or in float32 by an argument.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.tracing.tensors import HALF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Autocast"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOWER_PRECISION = _names(
    """_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d
    conv_transpose3d convolution prelu addmm addmv addr matmul __matmul__ __rmatmul__ einsum mm mv
    linear addbmm baddbmm bmm chain_matmul multi_dot scaled_dot_product_attention"""
)
FLOAT32 = _names(
    """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__
    __rpow__ softplus layer_norm group_norm rms_norm norm cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss
    mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
    logsumexp"""
)
FLOAT32_BY_ARGUMENT = _names("prod softmax log_softmax cumprod cumsum sum")
WIDEST = _names(
    """addcdiv addcmul atan2 bilinear cross dot vdot grid_sample index_put tensordot scatter_add cat
    stack"""
)


class Autocast:
    """The state of autocast: its type, and the cast weights that it caches until it ends."""

    def __init__(self) -> None:
        #: The lower precision; ``None`` while autocast is disabled.
        self.dtype: torch.dtype | None = None
        self._depth = 0
        self._casts: dict[Tensor, Tensor] = {}

    @contextmanager
    def entered(
        self,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> Iterator[None]:
        """``torch.autocast`` for the meta device, with the same arguments."""
        before = self.dtype
        self.dtype = (dtype or torch.float16) if enabled else None
        self._depth += 1
        try:
            yield
        finally:
            self.dtype = before
            self._depth -= 1
            if not self._depth:
                self._casts.clear()

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], run: Any
    ) -> Any:
        """Call `run`, which stands for `func`, with the arguments that autocast casts."""
        __tracebackhide__ = True  # see `failures`
        # PyTorch casts nothing in calls with ``out``.
        if self.dtype is None or kwargs.get("out") is not None:
            return run(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in FLOAT32_BY_ARGUMENT and kwargs.get("dtype") is None and _is_eligible(args[0]):
            return run(*args, **(kwargs | {"dtype": torch.float32}))
        dtype = self._wanted(name, args)
        if dtype is None:
            return run(*args, **kwargs)
        listed, named = self._cast(args, kwargs, dtype)
        del args, kwargs
        try:
            return run(*listed, **named)
        finally:
            # Freed from the first to the last, as C++ does, unlike Python.
            while listed:
                del listed[0]

    def _wanted(self, name: str, args: tuple[Any, ...]) -> torch.dtype | None:
        if name in LOWER_PRECISION:
            return self.dtype
        if name in FLOAT32:
            return torch.float32
        return self._widest(args) if name in WIDEST else None

    def _cast(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
    ) -> tuple[list[Any], dict[str, Any]]:
        # From the last to the first, as compilers for x86-64 evaluate the arguments of a C++ call.
        names = list(kwargs)[::-1]
        named = {name: self._casted(kwargs[name], dtype) for name in names}
        listed = [self._casted(value, dtype) for value in reversed(args)]
        return listed[::-1], {name: named[name] for name in kwargs}

    def _casted(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._casted(item, dtype) for item in value)
        if not _is_eligible(value) or value.dtype is dtype:
            return value
        is_kept = (
            dtype is self.dtype
            and value.dtype is torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
        )
        if not is_kept:
            return value.to(dtype)
        if value not in self._casts:
            self._casts[value] = value.to(dtype)
        return self._casts[value]

    def _widest(self, args: tuple[Any, ...]) -> torch.dtype:
        """float32 if an argument has that type, else the lower precision."""
        values = [item for value in args for item in (value if _is_list(value) else (value,))]
        is_float = any(_is_eligible(value) and value.dtype is torch.float32 for value in values)
        assert self.dtype is not None
        return torch.float32 if is_float else self.dtype


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_eligible(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == "meta"
        and value.dtype in (*HALF, torch.float32)
    )
