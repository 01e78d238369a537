"""Imports of libraries that call `torch.compile` while they are imported.

`torch.compile` imports Inductor as soon as it decorates a function, which takes longer than all of
PEFT. bitsandbytes does so for its CPU kernels, which neither runs nor estimates call.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["compiled_at_first_call"]


@contextmanager
def compiled_at_first_call() -> Iterator[None]:
    """While inside, `torch.compile` defers compilation until the function is first called."""
    compiler = torch.compile

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return partial(compile_later, **options)

        @cache
        def compiled() -> Callable[..., Any]:
            return compiler(function, **options)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler
