"""Where a setup runs: a real GPU, a simulated one, or nowhere (an estimate)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llmmem.errors import InputError

__all__ = ["ACCEPTED_DEVICES", "MOST_SIMULATED_GPUS", "Device", "parse_device"]

ACCEPTED_DEVICES = "auto, cuda, cuda:N, sim, sim:GPU, sim:GPUxN, estimate"
DEFAULT_SIMULATED_GPU = "h100"
MOST_SIMULATED_GPUS = 16

_CUDA = re.compile(r"cuda(?::(?P<index>\d{1,9}))?", re.ASCII)
_COUNTED = re.compile(r"(?P<gpu>.+)x0*(?P<count>\d+)", re.ASCII)


@dataclass(frozen=True)
class Device:
    """Where to run or estimate.

    Attributes:
        kind: ``auto`` (the best that is available), ``cuda``, ``sim`` or ``estimate``.
        index: The index of the GPU, for ``cuda``.
        gpu: The card of the GPU catalogue, for ``sim``.
        count: The number of cards, for ``sim``.
    """

    kind: Literal["auto", "cuda", "sim", "estimate"]
    index: int = 0
    gpu: str | None = None
    count: int = 1

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"cuda:{self.index}"
        if self.kind == "sim":
            return f"sim:{self.gpu}" + (f"x{self.count}" if self.count > 1 else "")
        return self.kind


def parse_device(text: str) -> Device:
    """Read ``auto``, ``cuda:1``, ``sim`` (= ``sim:h100``), ``sim:h100x2`` or ``estimate``.

    Raises:
        InputError: Another form, an unknown GPU of the catalogue, or a count other than 1 to 16.
    """
    if text == "auto":
        return Device("auto")
    if text == "estimate":
        return Device("estimate")
    if match := _CUDA.fullmatch(text):
        return Device("cuda", index=int(match["index"] or 0))
    if text == "sim":
        return Device("sim", gpu=DEFAULT_SIMULATED_GPU)
    if text.startswith("sim:"):
        return _parse_simulated(text)
    raise InputError(f"invalid device {text!r} (accepted: {ACCEPTED_DEVICES})")


def _parse_simulated(text: str) -> Device:
    from llmmem.catalogue.gpus import find_gpu, gpus

    name = text.removeprefix("sim:")
    match = _COUNTED.fullmatch(name)
    names = {gpu.name for gpu in gpus()}
    # "rtx4090" is a card, not 4090 cards called "rt": a name of the catalogue takes precedence.
    if name in names or match is None or match["gpu"] not in names:
        return Device("sim", gpu=find_gpu(name).name)
    # Compared as text: Python does not parse integers with too many digits.
    counts = {str(count): count for count in range(1, MOST_SIMULATED_GPUS + 1)}
    count = counts.get(match["count"])
    if count is None:
        raise InputError(
            f"invalid number of GPUs in device {text!r} (accepted: 1 to {MOST_SIMULATED_GPUS})"
        )
    return Device("sim", gpu=match["gpu"], count=count)
