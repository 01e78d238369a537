"""NVML: the GPUs, the driver, and the bytes that this process holds on a real GPU.

NVML reports current usage but no peak, so the peak of the process is sampled. The part that PyTorch's
allocator reserved is known exactly. Only the rest (the CUDA context, libraries, allocations that bypass
the allocator) is taken from the samples and added to the allocator's own peak.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SAMPLING_PERIOD_S", "NvmlMeter", "driver_version", "gpu_count", "gpu_names"]

SAMPLING_PERIOD_S = 0.02
ATTEMPTS = 3


def gpu_count() -> int:
    """The number of GPUs that a CUDA program started here could use; 0 without a driver.

    Respects ``CUDA_VISIBLE_DEVICES``. Does not import torch or initialise CUDA.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        count = int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    # CUDA stops at the first entry that names no GPU, such as -1.
    names = [name.strip() for name in visible.split(",")]
    usable = 0
    for name in names:
        if not name or (name.lstrip("-").isdigit() and not 0 <= int(name) < count):
            break
        usable += 1
    return min(usable, count)


def gpu_names() -> tuple[str, ...]:
    """The names of the GPUs of this machine, as the driver gives them; empty without a driver.

    A GPU that is lost is left out.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    names = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                names.append(str(pynvml.nvmlDeviceGetName(handle)))
    finally:
        pynvml.nvmlShutdown()
    return tuple(names)


def driver_version() -> str | None:
    """The version of the NVIDIA driver, such as ``"580.65.06"``; ``None`` without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


class NvmlMeter:
    """Peak bytes of this process on one GPU, sampled by a thread from `start` to `stop`.

    Args:
        device: Index of the CUDA device in torch.
        period_s: Seconds between two samples.
    """

    def __init__(self, device: int, period_s: float = SAMPLING_PERIOD_S) -> None:
        self._device = device
        self._period_s = period_s
        self._handle = _handle(device)
        self._beside: int | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> NvmlMeter:
        """Begin sampling."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End sampling."""
        self.stop()

    def start(self) -> None:
        """Begin sampling."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="llmmem-nvml", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def reset(self) -> None:
        """Discard the samples so far."""
        with self._lock:
            self._beside = None

    def held(self) -> int | None:
        """Bytes that the process holds now; ``None`` if NVML does not report them."""
        return _process_bytes(self._handle, self._device)

    def peak(self, reserved: int) -> int | None:
        """The peak since the reset, in bytes; ``None`` if NVML does not report it.

        This is the allocator's reserved peak plus the largest difference between a sample and the bytes
        reserved at the same time.

        Args:
            reserved: The peak of the allocator's reserved bytes since the reset.
        """
        any(self._sample() for _ in range(ATTEMPTS))
        with self._lock:
            return None if self._beside is None else reserved + self._beside

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            self._sample()

    def _sample(self) -> bool:
        """Take a sample, unless the reserved bytes change meanwhile: it would mix two states."""
        before = _reserved(self._device)
        held = self.held()
        if held is None or _reserved(self._device) != before:
            return False
        with self._lock:
            self._beside = max(self._beside or 0, held - before)
        return True


def _handle(device: int) -> Any:
    """NVML's handle of the GPU that torch calls `device`; ``None`` if NVML does not know it.

    Their indices differ (``CUDA_VISIBLE_DEVICES``, ``CUDA_DEVICE_ORDER``), so the UUID identifies the GPU.
    """
    import pynvml
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    except pynvml.NVMLError:
        return None


def _process_bytes(handle: Any, device: int) -> int | None:
    """What this process holds on the GPU in bytes; ``None`` if NVML does not report it.

    NVML hides the figure on WSL, and reports the process ids of the host in a container. If only one
    process is listed and this one holds memory, it must be this one.
    """
    import pynvml

    if handle is None:
        return None
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    own = [process for process in processes if process.pid == os.getpid()]
    if not own and len(processes) == 1 and _reserved(device) > 0:
        own = processes
    used = own[0].usedGpuMemory if own else None
    return None if used is None else int(used)


def _reserved(device: int) -> int:
    """Bytes that PyTorch's allocator has reserved on the device now."""
    import torch

    # The allocator may not exist yet, or may be gone already.
    with suppress(RuntimeError):
        return int(torch.cuda.memory_reserved(device))
    return 0
