"""Errors that end a trace: tells the program's own errors from those of the trace, and words the latter."""

from __future__ import annotations

import re
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

import torch

from llmmem.errors import LlmmemError
from llmmem.estimation.tracing.tensors import tensors_in
from llmmem.estimation.tracing.tracer import Tracer
from llmmem.guesses import where

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["program_line_of", "reason_of"]

TORCH = torch.__path__[0]
_PACKAGE = Path(__file__).parents[1]
#: Folders of the code that traces the program.
HERE = (str(_PACKAGE / "estimation"), str(_PACKAGE / "accounting"))

_NO_KERNEL = re.compile(
    r"(?:Could not run ')?(?P<operator>\w+::[\w.]+?)'?"
    r"(?:: attempted to run this operator with Meta| with arguments from the 'Meta' backend)"
)
_NO_DRIVER = re.compile(
    r"cudaErrorInsufficientDriver|CUDA driver version is insufficient|Found no NVIDIA driver"
    r"|Torch not compiled with CUDA|Cannot initialize CUDA without|has no attribute '_cuda_"
)


def reason_of(error: Exception) -> str | None:
    """Why the trace cannot continue, in a few words; ``None`` for the program's own errors.

    An error is the program's own if the code of the program or of a library raises it, or if an operator
    raises it whose tensors are all on the host. A `RuntimeError` never counts as the program's own: most
    come from operators without a meta kernel, or from reading values.
    """
    frames = list(_frames(error))
    if not frames or isinstance(error, LlmmemError):
        return None
    text = " ".join(str(error).split())
    if found := _NO_KERNEL.match(text):
        return f"{found['operator']} has no implementation on the meta device"
    if _NO_DRIVER.search(text):
        function = frames[-1].f_code.co_qualname
        return f"{frames[-1].f_globals.get('__name__')}.{function} calls CUDA, which is not there"
    if not isinstance(error, RuntimeError) and _is_own(error, frames):
        return None
    operator = _operator(frames)
    at = "" if operator.partition("::")[2] in text else f"{operator}: "
    return f"{at}{text}" if type(error) is RuntimeError else f"{at}{type(error).__name__}: {text}"


def program_line_of(error: Exception) -> str:
    """The innermost line of the program, such as ``"train.py:12 in step"``; empty if there is none."""
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        if text := where(frame.f_code, line):
            return text
    return ""


def _frames(error: Exception) -> Iterator[FrameType]:
    return (frame for frame, _ in walk_tb(error.__traceback__))


def _is_own(error: Exception, frames: list[FrameType]) -> bool:
    # Assertions in PyTorch check its internals, so a failed one is not the program's own error.
    is_of_torch = _is_in(frames[-1], TORCH) and not _is_in(frames[-1], f"{TORCH}/testing")
    if isinstance(error, AssertionError) and is_of_torch:
        return False
    for frame in reversed(frames):
        file = frame.f_code.co_filename
        if _is_in(frame, TORCH) or file.startswith("<") or "__tracebackhide__" in frame.f_locals:
            continue
        if not _is_in(frame, *HERE):
            return True
        dispatched = _dispatched(frames)
        return bool(dispatched) and not _has_device_tensors(dispatched[-1])
    return False


def _has_device_tensors(dispatched: FrameType) -> bool:
    seen = dispatched.f_locals
    # The redirection may still be active, and report tensors on the device as on ``cuda``.
    with torch._C.DisableTorchFunction():
        tensors = tensors_in([*seen["args"], *(seen["kwargs"] or {}).values()])
        return any(tensor.is_meta for tensor in tensors)


def _is_in(frame: FrameType, *folders: str) -> bool:
    return frame.f_code.co_filename.startswith(tuple(f"{folder}/" for folder in folders))


def _dispatched(frames: list[FrameType]) -> list[FrameType]:
    """The frames of the tracer for the operators in progress."""
    return [frame for frame in frames if frame.f_code is Tracer.__torch_dispatch__.__code__]


def _operator(frames: list[FrameType]) -> str:
    """The operator in progress that the program called; empty if there is none."""
    dispatched = _dispatched(frames)
    return str(dispatched[0].f_locals["func"]._schema.name) if dispatched else ""
