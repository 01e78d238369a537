"""What PyTorch asks of CUDA's libraries, on a simulated GPU; tests look at what comes of it.

Run as a script: does every operation in one process and prints one JSON document, with the message
of what failed by group and name, and figures by name.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

simgpu.activate("l40s")

import torch  # noqa: E402 - after the simulated GPU
from torch import fft, linalg  # noqa: E402
from torch.nn import functional  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

Operation = tuple[str, "Callable[[], Any]"]

CUDA = torch.device("cuda")


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=CUDA, dtype=dtype)


def small_integers(*shape: int) -> Tensor:
    return torch.randint(10, shape, device=CUDA)


def csr(rows: int = 100, columns: int = 80, entries: int = 500) -> Tensor:
    offsets = torch.linspace(0, entries, rows + 1).int()
    where = torch.randint(columns, (entries,)).int()
    values = torch.randn(entries)
    return torch.sparse_csr_tensor(offsets, where, values, (rows, columns)).to(CUDA)


def coo(rows: int = 100, columns: int = 80, entries: int = 500) -> Tensor:
    where = torch.stack([torch.randint(rows, (entries,)), torch.randint(columns, (entries,))])
    return torch.sparse_coo_tensor(where, torch.randn(entries), (rows, columns)).to(CUDA)


# ---- the operations, by group ---------------------------------------------------------------------


def linear_algebra() -> Iterator[Operation]:
    for dtype in (torch.float32, torch.complex64):
        for shape in ((64, 64), (3, 32, 32), (2, 600, 600), (700, 300), (20, 50)):
            kind = f"{dtype} {shape}"
            for name, operation in _of_any_matrix().items():
                yield (
                    f"{name} {kind}",
                    lambda f=operation, s=shape, d=dtype: f(numbers(*s, dtype=d)),
                )
            if shape[-1] != shape[-2]:
                continue
            for name, operation in _of_a_square_matrix().items():
                yield (
                    f"{name} {kind}",
                    lambda f=operation, s=shape, d=dtype: f(numbers(*s, dtype=d)),
                )


def _of_any_matrix() -> dict[str, Callable[[Tensor], Any]]:
    return {
        "svd": lambda a: linalg.svd(a, full_matrices=False),
        "svd gesvd": lambda a: linalg.svd(a, full_matrices=False, driver="gesvd"),
        "svd gesvdj": lambda a: linalg.svd(a, driver="gesvdj"),
        "svd gesvda": lambda a: linalg.svd(a, full_matrices=False, driver="gesvda"),
        "svdvals": linalg.svdvals,
        "svd_lowrank": lambda a: torch.svd_lowrank(a, q=6),
        "qr": linalg.qr,
        "qr complete": lambda a: linalg.qr(a, mode="complete"),
        "lu": linalg.lu,
        "pinv": linalg.pinv,
        "matrix_norm": lambda a: [linalg.matrix_norm(a, order) for order in ("fro", "nuc", 2, 1)],
        "norm": linalg.norm,
        "cond": linalg.cond,
        "matrix_rank": linalg.matrix_rank,
        "householder_product": lambda a: linalg.householder_product(*torch.geqrf(a[..., :20])),
        "ormqr": lambda a: torch.ormqr(*torch.geqrf(a), a),
        "lstsq": lambda a: linalg.lstsq(a, a) if a.shape[-2] >= a.shape[-1] else None,
    }


def _of_a_square_matrix() -> dict[str, Callable[[Tensor], Any]]:
    return {
        "eigh": linalg.eigh,
        "eigvalsh": linalg.eigvalsh,
        "eig": linalg.eig,
        "eigvals": linalg.eigvals,
        "cholesky": linalg.cholesky,
        "cholesky_solve": lambda a: torch.cholesky_solve(a, a),
        "cholesky_inverse": torch.cholesky_inverse,
        "inv": linalg.inv,
        "solve": lambda a: linalg.solve(a, a),
        "solve_triangular": lambda a: linalg.solve_triangular(a, a, upper=True),
        "lu_solve": lambda a: linalg.lu_solve(*linalg.lu_factor(a), a),
        "ldl_solve": lambda a: linalg.ldl_solve(*linalg.ldl_factor(a), a),
        "det": lambda a: (linalg.det(a), linalg.slogdet(a)),
        "matrix_exp": lambda a: torch.matrix_exp(a) if a.dim() == 2 else None,
    }


def fourier() -> Iterator[Operation]:
    for shape in ((64,), (3, 100), (2, 16, 30), (262,)):
        for name in ("fft", "ifft", "rfft", "ihfft", "fftn", "ifftn", "rfftn"):
            yield f"{name} {shape}", lambda n=name, s=shape: getattr(fft, n)(numbers(*s))
        for name in ("irfft", "hfft", "irfftn"):
            yield (
                f"{name} {shape}",
                lambda n=name, s=shape: getattr(fft, n)(numbers(*s, dtype=torch.complex64)),
            )
    yield "double", lambda: fft.fft(numbers(64, dtype=torch.float64))
    yield "gradient", lambda: _backward(fft.ifft2, torch.complex64, 24, 32)
    yield "stft", lambda: torch.stft(numbers(4096), 256, window=_ones(256), return_complex=True)


def convolutions() -> Iterator[Operation]:
    for dimensions in (1, 2, 3):
        for name in (f"Conv{dimensions}d", f"ConvTranspose{dimensions}d"):
            yield name, lambda n=name, d=dimensions: _train(n, d)


def _train(name: str, dimensions: int) -> None:
    layer = getattr(torch.nn, name)(4, 8, 3, padding=1).to(CUDA)
    x = numbers(2, 4, *[12] * dimensions).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert layer.weight.grad is not None


def selection() -> Iterator[Operation]:
    yield "sort", lambda: (numbers(100_000).sort(), numbers(10, 500).sort(stable=True))
    yield "unique", lambda: torch.unique(small_integers(1000), return_inverse=True)
    yield "unique rows", lambda: torch.unique(small_integers(100, 3), dim=0)
    yield "nonzero", lambda: (small_integers(1000).nonzero(), torch.where(small_integers(9) > 3))
    yield "topk", lambda: (numbers(100_000).topk(5), numbers(10, 500).kthvalue(3))
    yield "quantile", lambda: (numbers(100).median(), numbers(100).quantile(0.5))
    yield "cumsum", lambda: (numbers(100_000).cumsum(0), numbers(10, 100).logcumsumexp(1))
    yield "histc", lambda: torch.histc(numbers(1000))
    yield "bincount", lambda: torch.bincount(small_integers(1000))
    yield "searchsorted", lambda: torch.searchsorted(numbers(100).sort()[0], numbers(10))
    yield "masked_select", lambda: numbers(1000)[numbers(1000) > 0]
    yield "index_add", lambda: numbers(100, 4).index_add_(0, small_integers(5), numbers(5, 4))
    yield "scatter_add", lambda: numbers(100).scatter_add_(0, small_integers(7), numbers(7))
    yield "multinomial", lambda: torch.multinomial(_ones(100), 10)
    yield "randperm", lambda: torch.randperm(100_000, device=CUDA)
    yield "jit compiled", lambda: (torch.special.bessel_j0(numbers(9)), torch.lcm(_ids(), _ids()))


def products() -> Iterator[Operation]:
    offsets = torch.tensor([16, 32, 48, 64], device=CUDA, dtype=torch.int32)
    yield (
        "grouped",
        lambda: _backward(
            lambda a: torch._grouped_mm(
                a, numbers(4, 128, 32, dtype=a.dtype), offs=offsets
            ).square(),
            torch.bfloat16,
            64,
            128,
        ),
    )
    yield "int8", lambda: torch._int_mm(*(small_integers(32, 32).to(torch.int8) for _ in range(2)))
    yield "vectors", lambda: torch.dot(numbers(9), numbers(9))
    yield "batched", lambda: torch.baddbmm(numbers(2, 3, 4), numbers(2, 3, 5), numbers(2, 5, 4))


def sparse() -> Iterator[Operation]:
    yield "csr matrix", lambda: csr() @ numbers(80, 7)
    yield "csr vector", lambda: csr() @ numbers(80)
    yield "csr csr", lambda: csr() @ csr(80, 60)
    yield "csr sum", lambda: csr() + csr()
    yield "csr triangular", lambda: torch.triangular_solve(numbers(100, 3), csr(100, 100))
    yield "coo matrix", lambda: torch.sparse.mm(coo(), numbers(80, 7))
    yield "coo coo", lambda: torch.sparse.mm(coo(), coo(80, 60))
    yield "coo coalesce", lambda: coo().coalesce()
    yield (
        "coo gradient",
        lambda: torch.sparse.mm(coo().requires_grad_(), numbers(80, 7)).sum().backward(),
    )
    yield "sampled", lambda: torch.sparse.sampled_addmm(csr(), numbers(100, 7), numbers(7, 80))
    yield "blocked", lambda: csr(64, 64).to_dense().to_sparse_bsr((8, 8)) @ numbers(64, 5)
    yield "to sparse", lambda: (numbers(9, 9).to_sparse(), numbers(9, 9).to_sparse_csr())
    yield "embedding", lambda: _embed(torch.nn.Embedding(100, 8, sparse=True))
    yield "embedding bag", lambda: _embed(torch.nn.EmbeddingBag(100, 8))


def streams() -> Iterator[Operation]:
    yield "pinned", _copy_pinned
    yield "graphed module", _graph_a_module


def _copy_pinned() -> None:
    pinned = torch.ones(1000).pin_memory()
    side, event = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        x = pinned.to(CUDA, non_blocking=True)
        event.record()
    torch.cuda.current_stream().wait_event(event)
    side.synchronize()
    assert x[:2].tolist() == [1, 1]
    assert event.query()
    assert side.query()


def _graph_a_module() -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        module = torch.nn.Linear(64, 64).to(CUDA)
        x = numbers(8, 64).requires_grad_()
        graphed = torch.cuda.make_graphed_callables(module, (x,))
        graphed(x).sum().backward()
    assert module.weight.grad is not None


def _backward(operation: Callable[[Tensor], Tensor], dtype: torch.dtype, *shape: int) -> None:
    x = numbers(*shape, dtype=dtype).requires_grad_()
    operation(x).abs().sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def _embed(layer: torch.nn.Module) -> None:
    layer.to(CUDA)(small_integers(3, 10)).sum().backward()


def _ones(size: int) -> Tensor:
    return torch.ones(size, device=CUDA)


def _ids() -> Tensor:
    return small_integers(10)


# ---- figures ----------------------------------------------------------------------------------------


def extra_bytes(operation: Callable[[], Any]) -> int:
    """What an operation takes beside its result while it runs."""
    operation()  # plans and handles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = operation()
    held = torch.cuda.memory_allocated() - before
    extra = torch.cuda.max_memory_allocated() - before - held
    del result
    return extra


def figures() -> dict[str, Any]:
    signal = numbers(8, 1024, dtype=torch.complex64)
    awkward = numbers(8, 2 * 131, dtype=torch.complex64)
    symmetric = numbers(512, 512)
    checks = (linalg.cholesky_ex, linalg.inv_ex, linalg.lu_factor_ex, linalg.ldl_factor_ex)
    return {
        "work area": extra_bytes(lambda: fft.fft(signal)),
        "work area of a large prime": extra_bytes(lambda: fft.fft(awkward)),
        "eigenvectors": extra_bytes(lambda: linalg.eigh(symmetric)),
        "info": [int(check(numbers(40, 40)).info.max()) for check in checks]
        + [int(check(numbers(3, 40, 40)).info.max()) for check in checks],
        "entries": [(csr() @ csr(80, 60))._nnz(), (csr() + csr())._nnz()],
    }


def refusals() -> dict[str, str]:
    """What a program sees of that which is not simulated."""
    half = torch.zeros(128, 128, device=CUDA, dtype=torch.float16)
    return {
        "waiting for a captured stream": _message(_wait_while_capturing),
        "semi-structured": _message(lambda: torch._cslt_compress(half)),
        "recurrent": _message(lambda: torch.nn.LSTM(4, 5).to(CUDA)(numbers(3, 2, 4))),
    }


def _wait_while_capturing() -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        functional.relu(numbers(3)).sum().item()


def _message(operation: Callable[[], Any]) -> str:
    try:
        operation()
    except RuntimeError as error:  # what ends a capture fails too, once something in it has failed
        return f"{error}\n{error.__context__ or ''}"
    return ""


GROUPS = (linear_algebra, fourier, convolutions, selection, products, sparse, streams)


def failures(group: Callable[[], Iterator[Operation]]) -> dict[str, str]:
    messages = {}
    for name, operation in group():
        try:
            operation()
            torch.cuda.synchronize()
        except Exception as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


def main() -> None:
    answer = {
        "failures": {group.__name__: failures(group) for group in GROUPS},
        "figures": figures(),
        "refusals": refusals(),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
