"""Measures the GPU memory that a stretch of code in this process uses.

The peak counters of PyTorch's allocator are shared by the whole process, and starting a window resets
them. Windows may still overlap: before the counters are reset (by another window or by the measured code
itself), every open window reads them.

This module does not import torch: if nothing else has, torch has not used the GPU.
"""

from __future__ import annotations

import gc
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmmem import simgpu
from llmmem.nvml import SAMPLING_PERIOD_S
from llmmem.results import METRICS, DevicePeaks, Peaks, Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from llmmem.measurement.gauges import Gauge
    from llmmem.measurement.source_lines import SourceLine, SourceLineRecorder
    from llmmem.simgpu.activation import Moment

__all__ = [
    "NO_USAGE",
    "Measurement",
    "Usage",
    "Window",
    "cuda_error",
    "cuda_in_use",
    "holds_memory",
    "release_cached_memory",
    "usage",
]

LARGEST_SOURCE_LINES = 10
LARGEST_DIFFERENCE = 0.05


@dataclass(frozen=True)
class Measurement:
    """What a window measured on one GPU; with several GPUs, on the one with the highest peak.

    Attributes:
        device: Where, such as ``"sim:h100"`` or ``"cuda:0"``.
        index: The index of the GPU in PyTorch; ``None`` if there is only one.
        source: ``simulated`` or ``measured``.
        gpu: The name of the card as torch knows it; ``None`` if CUDA was never initialised.
        peaks: Absolute peaks in bytes, including what was held before.
        held_before: What the process held when the window started, in bytes.
        touched: Whether anything was allocated on a GPU.
        source_lines: The lines of the program that held the allocated peak, the largest first, of what
            was allocated in the window.
        context_source: Where peak process - peak reserved comes from.
        notes: Caveats about the figures.
        unknown_bytes: The most by which the peaks may be higher, in bytes, according to a note; 0 if none
            states an amount.
        devices: The peaks of every GPU that was in use, where there are several.
    """

    device: str
    index: int | None
    source: Source
    gpu: str | None
    peaks: Peaks
    held_before: Peaks
    touched: bool
    source_lines: tuple[SourceLine, ...] = ()
    context_source: Literal["modelled", "measured"] | None = None
    notes: tuple[str, ...] = ()
    unknown_bytes: int = 0
    devices: tuple[DevicePeaks, ...] = ()


@dataclass(frozen=True)
class Usage:
    """How often memory of all GPUs has been allocated and freed in this process.

    Attributes:
        allocations: The number of allocations; ``None`` if nothing counts them.
        frees: The number of blocks that were returned to PyTorch's allocator.
    """

    allocations: int | None
    frees: int

    def shows_allocations(self, since: Usage) -> bool:
        """Whether it is known that memory was allocated since then."""
        counts = (self.allocations, since.allocations)
        return None not in counts and self.allocations != since.allocations

    def may_differ(self, since: Usage) -> bool:
        """Whether memory may have been allocated or freed since then."""
        return self.allocations is None or self != since


NO_USAGE = Usage(0, 0)


class Window:
    """Measures the GPU memory of this process between `start` and `stop`; a context manager.

    At the start, garbage is collected and the allocator's cache is released, so that figures do not depend
    on what ran before. At the end of the outermost window, the cache is released again.

    Args:
        device: Index of the CUDA device to watch; by default all that are visible.
        source_lines: Whether to tell which lines held the peak, for which every allocation is recorded
            with its stack. CUDA must be in use already, and no other window be open.
        metric: One of `results.METRICS`. With several GPUs, the figures are those of the GPU with the
            highest peak of this metric.
    """

    def __init__(
        self, device: int | None = None, *, source_lines: bool = False, metric: str = "process"
    ) -> None:
        self._device = device
        self._wants_source_lines = source_lines
        self._metric = metric
        self._recorder: SourceLineRecorder | None = None
        self._usage = NO_USAGE
        self._began: Moment | None = None
        self._held_before: Mapping[int, Peaks] = {}
        self._peaks: dict[int, Peaks] = {}
        self._measurement: Measurement | None = None

    def __enter__(self) -> Window:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def measurement(self) -> Measurement:
        """What was measured, once the window is closed.

        Raises:
            RuntimeError: The window is still open.
        """
        if self._measurement is None:
            raise RuntimeError("a window has no measurement before it is closed")
        return self._measurement

    def start(self) -> None:
        """Start measuring."""
        release_cached_memory()
        self._usage = usage()
        simulated = simgpu.active()
        self._began = None if simulated is None else simulated.moment()
        is_only = _counters.add(self)
        self._held_before = _counters.held()
        if self._wants_source_lines and is_only and cuda_in_use():
            from llmmem.measurement.source_lines import SourceLineRecorder

            self._recorder = SourceLineRecorder()
            self._recorder.start()

    def stop(self) -> Measurement:
        """Stop measuring, and return the measurement."""
        is_last = _counters.remove(self)
        self._measurement = self._account()
        if is_last:
            _empty_cache()
        return self._measurement

    def collect(self, device: int, peaks: Peaks) -> None:
        """Add the peaks that a GPU has reached since its counters were last reset."""
        self._peaks[device] = self._peaks.get(device, peaks).highest(peaks)

    def _watched(self, devices: Mapping[int, Peaks]) -> Sequence[int]:
        return [index for index in devices if self._device in (None, index)]

    def _account(self) -> Measurement:
        simulated = simgpu.active()
        exact = simulated is not None and simulated.tells_process_bytes
        nothing = Peaks(0, 0, 0 if exact else None)
        watched = [DevicePeaks(index, self._peaks[index]) for index in self._watched(self._peaks)]
        fullest = max(watched, key=self._height, default=DevicePeaks(self._device or 0, nothing))
        device, peaks = fullest.index, fullest.peaks
        held_before = self._held_before.get(device, nothing)
        source: Source = "measured" if simulated is None else "simulated"
        return Measurement(
            device=fullest.name if simulated is None else f"sim:{simulated.gpu.name}",
            index=device if len(watched) > 1 else None,
            source=source,
            gpu=cuda.get_device_name(device) if (cuda := _cuda()) is not None else None,
            peaks=peaks,
            held_before=held_before,
            touched=self._touched(),
            source_lines=self._held_by(device, peaks, held_before),
            context_source=_context_source(peaks),
            notes=_notes(peaks, self._began),
            unknown_bytes=0 if simulated is None else simulated.unknown_bytes_since(self._began),
            devices=tuple(filter(_in_use, watched)) if len(watched) > 1 else (),
        )

    def _height(self, device: DevicePeaks) -> tuple[int, int]:
        """The sort key for the GPU with the highest peak; unknown peaks sort below all others."""
        peak = device.peaks.get(self._metric)
        return (-1 if peak is None else peak, device.peaks.reserved or 0)

    def _touched(self) -> bool:
        if usage().shows_allocations(since=self._usage):
            return True
        return any(map(self._has_grown, self._watched(self._peaks)))

    def _has_grown(self, device: int) -> bool:
        """Whether the peaks of the device show allocations that nothing has counted.

        A library can allocate without PyTorch, and not every allocator keeps counts. The context alone
        does not count: querying the properties of a device is enough to create it.
        """
        peaks, held = self._peaks[device], self._held_before.get(device, Peaks())
        if peaks == Peaks():  # nothing is known
            return True
        simulated = simgpu.active()
        context = 0 if simulated is None else simulated.context_bytes
        grown_process = (peaks.process or 0) > max(held.process or 0, context)
        return grown_process or (peaks.allocated or 0) > (held.allocated or 0)

    def _held_by(self, device: int, peaks: Peaks, held_before: Peaks) -> tuple[SourceLine, ...]:
        if self._recorder is None:
            return ()
        recorded, source_lines = self._recorder.stop(device)
        # If the program interfered with the recording, it does not add up to the peak. (Blocks of the
        # allocator can be slightly larger than requested.)
        expected = (peaks.allocated or 0) - (held_before.allocated or 0)
        if abs(expected - recorded) > LARGEST_DIFFERENCE * expected:
            return ()
        return source_lines[:LARGEST_SOURCE_LINES]


class _Counters:
    """The peak counters of this process, and the windows that are open on them."""

    def __init__(self) -> None:
        self._windows: list[Window] = []
        self._gauges: dict[int, Gauge] = {}
        self._in_use = ExitStack()
        self._collecting = False

    def add(self, window: Window) -> bool:
        """Open a window, and return whether it is the only one."""
        self.collect()
        self._windows.append(window)
        return len(self._windows) == 1

    def remove(self, window: Window) -> bool:
        """Close a window, and return whether it was the only one."""
        self.collect()
        self._windows.remove(window)
        if self._windows:
            return False
        self._in_use.close()
        self._gauges.clear()
        return True

    def held(self) -> Mapping[int, Peaks]:
        """What is held on each GPU now; empty as long as CUDA is not in use."""
        return {device: gauge.held() for device, gauge in self._known().items()}

    def collect(self) -> None:
        """Let all windows read the counters, then reset them."""
        if self._collecting:  # the reset that is part of it
            return
        self._collecting = True
        try:
            for device, gauge in self._known().items():
                peaks = gauge.take()
                for window in self._windows:
                    window.collect(device, peaks)
        finally:
            self._collecting = False

    def _known(self) -> Mapping[int, Gauge]:
        """The gauges of all GPUs, created and started once CUDA is in use."""
        cuda = _cuda()
        if cuda is not None and not self._gauges:
            from llmmem.measurement.gauges import Gauge, before_resets

            self._in_use.enter_context(before_resets(self.collect))
            self._gauges = {device: Gauge(device) for device in range(cuda.device_count())}
            for gauge in self._gauges.values():
                gauge.start()
                self._in_use.callback(gauge.stop)
        return self._gauges


# The counters are shared by the whole process, so this object is too.
_counters = _Counters()


def cuda_in_use() -> bool:
    """Whether PyTorch has initialised CUDA in this process."""
    return _cuda() is not None


def cuda_error() -> str | None:
    """The CUDA error if this process can no longer use the GPU; else ``None``.

    An illegal memory access in a kernel, for example, destroys the context: only a new process can use the
    GPU again.
    """
    cuda = _cuda()
    if cuda is None:
        return None
    try:
        cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def release_cached_memory() -> None:
    """Collect garbage, and release all memory of PyTorch's allocator that no live tensor needs.

    A full collection runs even before CUDA is in use, because the lifetime of later cycles depends on when
    the collector last ran. Does nothing if this process can no longer use the GPU.
    """
    if "torch" not in sys.modules or cuda_error() is not None:
        return
    gc.collect()
    _empty_cache()


def _empty_cache() -> None:
    cuda = _cuda()
    if cuda is None or cuda_error() is not None:
        return
    sys.modules["torch"]._C._cuda_clearCublasWorkspaces()
    cuda.empty_cache()


def holds_memory() -> bool:
    """Whether live tensors hold GPU memory; also true if the allocator keeps no statistics."""
    cuda = _cuda()
    if cuda is None:
        return False
    from llmmem.measurement.allocator_statistics import read_statistics

    found = (read_statistics(device) for device in range(cuda.device_count()))
    return any(statistics is None or statistics.allocated > 0 for statistics in found)


def usage() -> Usage:
    """How often GPU memory has been allocated and freed so far; does not import torch."""
    simulated = simgpu.active()
    past_allocators = 0 if simulated is None else simulated.allocations
    cuda = _cuda()
    if cuda is None:
        return Usage(past_allocators, 0)
    from llmmem.measurement.allocator_statistics import is_native, read_statistics

    if not is_native():
        return Usage(None if simulated is None else past_allocators, 0)
    found = [read_statistics(device) for device in range(cuda.device_count())]
    allocations = sum(statistics.allocations for statistics in found if statistics)
    frees = sum(statistics.frees for statistics in found if statistics)
    return Usage(past_allocators + allocations, frees)


def _cuda() -> Any:
    """The module torch.cuda, once CUDA is in use; else ``None``."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _in_use(device: DevicePeaks) -> bool:
    """Whether anything is known to have been held on the device."""
    return any(device.peaks.get(metric) for metric in METRICS)


def _context_source(peaks: Peaks) -> Literal["modelled", "measured"] | None:
    if peaks.process is None:
        return None
    return "measured" if simgpu.active() is None else "modelled"


def _notes(peaks: Peaks, began: Moment | None) -> tuple[str, ...]:
    simulated = simgpu.active()
    notes = _allocator_notes() + (() if simulated is None else simulated.notes_since(began))
    if peaks.process is None:
        hidden = "NVML does not report the memory of this process (seen in containers, WSL and MIG)"
        return (*notes, hidden)
    if simulated is not None:
        return notes
    period_ms = 1000 * SAMPLING_PERIOD_S
    return (f"memory outside of PyTorch's allocator was sampled every {period_ms:g} ms",)


def _allocator_notes() -> tuple[str, ...]:
    if _cuda() is None:
        return ()
    from llmmem.measurement.allocator_statistics import allocator_note

    note = allocator_note()
    return () if note is None else (note,)
