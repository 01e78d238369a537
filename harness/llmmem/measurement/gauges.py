"""The peak counters of the GPUs in this process, which several windows share."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch

from llmmem import simgpu
from llmmem.measurement.allocator_statistics import read_statistics
from llmmem.nvml import NvmlMeter
from llmmem.results import Peaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmmem.simgpu import SimulatedGpu

__all__ = ["Gauge", "SimulatedMeter", "before_resets"]

# All public functions that reset the peaks call one of these functions of torch._C (the second exists
# since PyTorch 2.9).
RESETS = ("_cuda_resetPeakMemoryStats", "_accelerator_resetPeakStats")


class SimulatedMeter:
    """Peak bytes of this process on a simulated GPU, which counts them exactly."""

    def __init__(self, simulated: SimulatedGpu, device: int) -> None:
        self._simulated = simulated
        self._device = device

    def start(self) -> None:
        """Nothing is sampled."""

    def stop(self) -> None:
        """Nothing is sampled."""

    def reset(self) -> None:
        """Reset the peak."""
        self._simulated.reset_peak(self._device)

    def held(self) -> int:
        """Bytes that the process holds now."""
        return self._simulated.process_bytes(self._device)

    def peak(self, reserved: int) -> int:
        """The peak since the reset, in bytes; `reserved` is part of it already."""
        return self._simulated.peak_process_bytes(self._device)


class Gauge:
    """The peak counters of one GPU, as bytes allocated, reserved, and held by the process.

    If the allocator in use keeps no statistics, only what the process holds is known.

    Args:
        device: Index of the CUDA device.
    """

    def __init__(self, device: int) -> None:
        simulated = simgpu.active()
        self._device = device
        self._process: SimulatedMeter | NvmlMeter
        if simulated is not None and simulated.tells_process_bytes:
            self._process = SimulatedMeter(simulated, device)
        else:
            self._process = NvmlMeter(device)

    def start(self) -> None:
        """Start sampling, on a real GPU."""
        self._process.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._process.stop()

    def take(self) -> Peaks:
        """The peaks since the last call; resets the counters."""
        statistics = read_statistics(self._device)
        if statistics is None:
            peaks = Peaks(process=self._process.peak(0))
        else:
            allocated, reserved = statistics.peak_allocated, statistics.peak_reserved
            peaks = Peaks(allocated, reserved, self._process.peak(reserved))
            torch.cuda.reset_peak_memory_stats(self._device)
        self._process.reset()
        return peaks

    def held(self) -> Peaks:
        """What is held now."""
        statistics = read_statistics(self._device)
        if statistics is None:
            return Peaks(process=self._process.held())
        return Peaks(statistics.allocated, statistics.reserved, self._process.held())


@contextmanager
def before_resets(action: Callable[[], None]) -> Iterator[None]:
    """While inside, call the action before anything resets PyTorch's peak counters."""
    with ExitStack() as stack:
        for name in filter(partial(hasattr, torch._C), RESETS):
            original = getattr(torch._C, name)
            setattr(torch._C, name, _preceded(action, original))
            stack.callback(setattr, torch._C, name, original)
        yield


def _preceded(action: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def both(*args: Any) -> Any:
        action()
        return function(*args)

    return both
