"""Operators that use cuSOLVER and cuFFT.

Neither library documents how much memory its routines need. The sizes follow the simulated GPU's
model of them (``simgpu/csrc/api/cusolver.c`` and ``cufft.c``); the order of allocations is PyTorch's.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.errors import UnsupportedError
from llmmem.estimation.operators.common import Arguments, Entry, Keywords

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES", "blocked_columns", "fft_work_area", "jacobi_elements"]

#: Columns in a block of LAPACK's factorisations.
BLOCK = 64
INT = 4
POINTER = 8
#: Lengths with a larger prime factor go through Bluestein's algorithm.
LARGEST_PRIME = 127
BLUESTEIN_AREAS = 8


def blocked_columns(columns: int) -> int:
    """Elements of the workspace of a factorisation by blocks of columns.

    Source: LAPACK, ``xGEQRF`` and ``xORGQR``, optimal ``LWORK``.
    """
    return BLOCK * max(1, columns)


def jacobi_elements(rows: int, columns: int) -> int:
    """Elements of the Jacobi method's workspace for singular values: copies of its results."""
    least = min(rows, columns)
    return rows * columns + least * least + rows + columns


def fft_work_area(lengths: list[int], batch: int, itemsize: int, *, of_reals: bool) -> int:
    """Bytes of the work area of a plan: the least size that cuFFT documents, or the largest.

    Args:
        lengths: Lengths of the transformed dimensions.
        batch: Number of transforms.
        itemsize: Bytes of a complex element.
        of_reals: Whether input or output is real, so that half of the last dimension is kept.

    Source: cuFFT, "Fourier transform setup".
    """
    areas = BLUESTEIN_AREAS if any(_largest_prime(n) > LARGEST_PRIME for n in lengths) else 1
    last = lengths[-1] // 2 + 1 if of_reals else lengths[-1]
    return areas * batch * prod(lengths[:-1]) * last * itemsize


def _largest_prime(number: int) -> int:
    largest, factor = 1, 2
    while factor * factor <= number:
        while number % factor == 0:
            number //= factor
            largest = factor
        factor += 1
    return max(largest, number)


def _singular_values(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../linalg/BatchLinearAlgebraLib.cpp``, ``svd_cusolver``: the Jacobi method."""
    out = tracer.compute(func, args, kwargs)
    matrix = args[0]
    if not matrix.is_meta or not matrix.numel():
        return out
    if kwargs.get("driver") is not None:
        raise UnsupportedError("torch.linalg.svd with a driver cannot be traced")
    tracer.modelled_libraries.add("cuSOLVER")
    left, values, right = out
    tracer.allocate([left, right, values])
    rows, columns = matrix.shape[-2:]
    itemsize = matrix.element_size()
    info = tracer.malloc(INT * _batch(matrix))
    with tracer.scratch(matrix.numel() * itemsize, jacobi_elements(rows, columns) * itemsize):
        pass
    _check_info(tracer, matrix)
    tracer.free(*info)
    return out


def _qr(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Source: ``.../native/BatchLinearAlgebra.cpp``, ``linalg_qr_out``, and ``geqrf_kernel``."""
    out = tracer.compute(func, args, kwargs)
    matrix = args[0]
    if not matrix.is_meta or not matrix.numel():
        return out
    tracer.modelled_libraries.add("cuSOLVER")
    rows, columns = matrix.shape[-2:]
    itemsize, batch = matrix.element_size(), _batch(matrix)
    orthogonal, triangular = out
    tracer.allocate([orthogonal, triangular])
    taus = tracer.malloc(batch * min(rows, columns) * itemsize)
    without_q = orthogonal.numel() == 0
    with tracer.scratch(matrix.numel() * itemsize if without_q else 0):
        if rows <= 256 and batch >= max(2, rows // 16):
            with tracer.scratch(POINTER * batch, POINTER * batch):
                tracer.use_cublas()
        else:
            for _ in range(batch):
                with tracer.scratch(INT, blocked_columns(columns) * itemsize):
                    pass
    if not without_q:
        with tracer.scratch(INT):
            for _ in range(batch):
                with tracer.scratch(blocked_columns(orthogonal.shape[-1]) * itemsize):
                    pass
    tracer.free(*taus)
    return out


def _batch(matrix: Tensor) -> int:
    return prod(matrix.shape[:-2])


def _check_info(tracer: Tracer, matrix: Tensor) -> None:
    """Take the booleans by which PyTorch checks for failures: one, and another for a single matrix."""
    with tracer.scratch(1, 1 if matrix.dim() == 2 else 0):
        pass


def _fft(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A transform to real numbers overwrites its input, which is therefore copied.

    Source: ``aten/src/ATen/native/cuda/SpectralOps.cpp``, ``_exec_fft``, for up to 3 dimensions.
    """
    out = tracer.run(func, args, kwargs)
    tensor, dims = args[:2]
    if not tensor.is_meta or not tensor.numel() or not dims:
        return out
    tracer.modelled_libraries.add("cuFFT")
    to_reals = func is torch.ops.aten._fft_c2r.default
    shape = out.shape if to_reals else tensor.shape
    of_reals = not (tensor.is_complex() and out.is_complex())
    lengths = [shape[dim] for dim in dims]
    itemsize = max(tensor.element_size(), out.element_size())
    batch = prod(shape) // prod(lengths)
    copy = tensor.numel() * itemsize if to_reals else 0
    with tracer.scratch(copy, fft_work_area(lengths, batch, itemsize, of_reals=of_reals)):
        pass
    return out


ENTRIES = (
    Entry("_linalg_svd.default", _singular_values),
    Entry("linalg_qr.default", _qr),
    Entry("_fft_r2c.default _fft_c2c.default _fft_c2r.default", _fft),
)
