"""One run of a setup in this process, measured."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from llmmem import simgpu
from llmmem.measurement.cap import capped, is_smaller
from llmmem.measurement.gauges import Gauge
from llmmem.measurement.gpu_errors import describe, is_cuda_error, is_out_of_memory
from llmmem.measurement.history import History, allocator_events
from llmmem.measurement.peaks import PhasePeaks
from llmmem.nvml import SAMPLING_PERIOD_S, driver_version
from llmmem.results import PhaseResult, RunResult
from llmmem.versions import library_versions
from llmmem.workload.parallel import notes as parallel_notes
from llmmem.workload.step import execute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from llmmem.accounting.attribution import Attribution
    from llmmem.catalogue.gpus import Gpu
    from llmmem.devices import Device
    from llmmem.results import Outcome, Peaks
    from llmmem.setups import Setup

__all__ = ["configure_allocator", "run_here"]

MOST_TOP_ALLOCATIONS = 20


def run_here(setup: Setup, device: Device, cap: Gpu | None = None) -> RunResult:
    """Build the setup, run its steps on the device in this process, and measure them.

    The process must not have used CUDA before. With `cap`, PyTorch can use no more memory than on that card.

    Raises:
        InputError: The setup names something that does not exist.
        UnsupportedError: The setup is valid and cannot be built here.
    """
    configure_allocator(setup.allocator)
    torch.cuda.set_device(device.index)
    history = History(device.index)
    history.start()
    gauge = Gauge(device.index)
    gauge.start()
    observer = _RunObserver(history, PhasePeaks(gauge), device.index)
    outcome: Outcome = "ok"
    message = ""
    try:
        limited = nullcontext() if cap is None else capped(cap, device.index)
        with limited, history.timeline.recording_calls():
            execute(setup, torch.device("cuda", device.index), observer)
    except RuntimeError as error:
        if not (is_out_of_memory(error) or is_cuda_error(error)):
            raise
        outcome = "oom" if is_out_of_memory(error) else "crashed"
        message = describe(error)
    peaks = observer.peaks.total()
    gauge.stop()
    attribution = history.timeline.attribute(allocator_events(history.stop(), setup.allocator))
    simulated_gpu = simgpu.active()
    simulated = simulated_gpu is not None
    has_context = peaks.process is not None and peaks.reserved is not None
    return RunResult(
        setup=setup,
        device=str(device),
        source="simulated" if simulated else "measured",
        outcome=outcome,
        message=message,
        gpu=torch.cuda.get_device_name(device.index),
        peaks=peaks,
        components=attribution.components,
        phases=_phase_results(observer.peaks.phases, attribution),
        holders=attribution.top_allocations[:MOST_TOP_ALLOCATIONS],
        trainable_parameters=observer.trainable_parameters,
        step_seconds=None if simulated else observer.step_seconds,
        context_bytes=(peaks.process or 0) - (peaks.reserved or 0) if has_context else None,
        context_source=("modelled" if simulated else "measured") if has_context else None,
        held_before_bytes=0,
        versions=library_versions() | {"driver": driver_version()},
        allocator=setup.allocator,
        unknown_bytes=0 if simulated_gpu is None else simulated_gpu.unknown_bytes_since(None),
        notes=(
            *parallel_notes(setup),
            *_notes(peaks, attribution),
            *_cap_notes(cap, device),
        ),
    )


def configure_allocator(settings: str) -> None:
    """Set the options of PyTorch's allocator, before CUDA is in use, and override the environment."""
    older, newer = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    os.environ.pop(older, None)  # if set, it takes precedence
    os.environ[newer if torch.__version__ >= (2, 9) else older] = settings  # type: ignore[operator]


class _RunObserver:
    """Forwards the phases of the step to the history, the peaks and the clock."""

    def __init__(self, history: History, peaks: PhasePeaks, device: int) -> None:
        self.peaks = peaks
        self.step_seconds: float | None = None
        self.trainable_parameters: int | None = None
        self._timeline = history.timeline
        self._device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self.peaks.phase(name), self._timeline.phase(name):
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        torch.cuda.synchronize(self._device)
        began = time.perf_counter()
        yield
        torch.cuda.synchronize(self._device)
        self.step_seconds = time.perf_counter() - began

    def watch(self, model: nn.Module) -> None:
        self.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._timeline.watch(model)

    def label(self, component: str, tensors: Iterable[Tensor]) -> None:
        self._timeline.label(component, tensors)


def _phase_results(peaks: Mapping[str, Peaks], attribution: Attribution) -> tuple[PhaseResult, ...]:
    components = {phase.phase: phase.components for phase in attribution.phases}
    return tuple(PhaseResult(name, peak, components.get(name)) for name, peak in peaks.items())


def _cap_notes(cap: Gpu | None, device: Device) -> Iterator[str]:
    if cap is not None and is_smaller(cap, device.index):
        yield (
            f"limited to the memory of the {cap.title}: kernels, their workspaces and the context are "
            "those of the device"
        )


def _notes(peaks: Peaks, attribution: Attribution) -> Iterator[str]:
    simulated = simgpu.active()
    if simulated is not None:
        yield from simulated.notes
    if peaks.process is None:
        yield "NVML does not report the memory of this process"
    elif simulated is None:
        yield f"the process peak was sampled every {1000 * SAMPLING_PERIOD_S:g} ms"
    if attribution.peak_bytes != peaks.allocated:
        # Components come from the history; the note tells if they do not add up to the peak.
        yield f"the components account for {attribution.peak_bytes} bytes, not for the whole peak"
