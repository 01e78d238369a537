"""The state that the tests of a session share: options, the GPU of the pytest process, the runner."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmmem.errors import InputError, LlmmemError
from pytest_llmmem.value_reads import ValueReads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from llmmem.catalogue.gpus import Gpu
    from llmmem.devices import Device
    from llmmem.execution.program.children import ChildPeaks
    from llmmem.execution.runner import Runner
    from llmmem.report import Record
    from pytest_llmmem.children import ChildrenOfTests
    from pytest_llmmem.session_options import Options

__all__ = ["SESSION", "Session", "load_simulated_gpu"]

#: What PyTorch reads the settings of its allocator from.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class Session:
    """One session in one process (under xdist, each worker has its own).

    Attributes:
        options: The options of the session.
        value_reads: Counts how often tests read values that the simulated GPU does not know.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.value_reads = ValueReads()
        self._runner: Runner | None = None
        self._versions: Mapping[str, str | None] | None = None
        self._broken_by: str | None = None
        self._children: ChildrenOfTests | None = None

    @property
    def children(self) -> ChildrenOfTests:
        """Makes the processes that tests start use the GPUs of this one, and counts their memory."""
        if self._children is None:
            from llmmem import simgpu
            from pytest_llmmem.children import ChildrenOfTests

            self._children = ChildrenOfTests(simgpu.active())
        return self._children

    def share_with_children(self) -> None:
        """From now on, make processes that tests start use the simulated GPUs of this one.

        The first test calls this, so only processes that run tests do: the controller of xdist must not
        pass its GPUs on to its workers.
        """
        if self._children is None and self.simulated:
            _ = self.children

    def with_children(self, record: Record, children: ChildPeaks) -> Record:
        """Add the processes that a test started to its record."""
        from llmmem import simgpu
        from pytest_llmmem.children import with_children

        return with_children(record, children, simgpu.active())

    @property
    def simulated(self) -> bool:
        """Whether this process has a simulated GPU, of its own or inherited (``llmmem exec``)."""
        from llmmem import simgpu

        return simgpu.active() is not None

    @property
    def index(self) -> int | None:
        """The index of the GPU to watch if the device names one."""
        return self.options.device.index if self.options.device.kind == "cuda" else None

    def has_gpu(self) -> bool:
        """Whether a test can allocate on a GPU in this process; imports torch."""
        if self.simulated:
            return True
        if self.options.device.kind == "estimate":
            return False
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a missing driver
            return torch.cuda.is_available() and (self.index or 0) < torch.cuda.device_count()

    def has_real_gpu(self) -> bool:
        """Whether that GPU is a real one; imports torch."""
        return not self.simulated and self.has_gpu()

    def advice(self) -> str:
        """What to do if a test needs a GPU in this process and there is none."""
        if self.options.device.kind == "estimate":
            return (
                "only setups can be estimated (vram.run, vram.estimate): to measure what a test itself "
                "allocates, use --llmmem-device=cuda or sim:rtx4090"
            )
        missing = f"no GPU {self.options.device}" if self.index else "no GPU"
        return f"{missing}: pass --llmmem-device=sim:rtx4090 (or another card) to simulate one"

    def initialise_cuda(self) -> None:
        """Create the CUDA context of this process now, so that it does not count for one test only."""
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]

    def gpu_error(self, test: str) -> str | None:
        """Why this process can no longer use the GPU; ``None`` as long as it works.

        Args:
            test: The test that asks. The message names the first test that found the GPU broken.
        """
        from llmmem.measurement.window import cuda_error

        error = cuda_error()
        if error is None:
            self._broken_by = None
            return None
        self._broken_by = self._broken_by or test
        return (
            f"the GPU does not work in this process any more since {self._broken_by} ({error}): "
            "only a new process can use it (vram.run has one of its own for each run)"
        )

    def capped(self, gpu: Gpu) -> AbstractContextManager[None]:
        """Limit the memory to that of a card, if CUDA is in use in this process."""
        from llmmem.measurement.window import cuda_in_use

        if not cuda_in_use():
            return nullcontext()
        from llmmem.measurement.cap import capped

        return capped(gpu, self.index or 0)

    def guess_clock(self) -> int:
        """How often tests in this process have read an unknown value so far."""
        if not self.simulated:
            return 0
        from llmmem import simgpu

        simulated = simgpu.active()
        return 0 if simulated is None else simulated.guesses.clock

    def guesses(self, since: int) -> tuple[str, ...]:
        """Notes about the values that were guessed since then (`guess_clock`)."""
        if not self.simulated:
            return ()
        from llmmem import simgpu

        simulated = simgpu.active()
        return () if simulated is None else simulated.guesses.notes(since)

    def versions(self) -> Mapping[str, str | None]:
        """Versions of the libraries and of the driver."""
        if self._versions is None:
            from llmmem.nvml import driver_version
            from llmmem.versions import library_versions

            self._versions = library_versions() | {"driver": driver_version()}
        return self._versions

    def runner(self) -> Runner:
        """The runner of setups, created on first use.

        Raises:
            UnsupportedError: The device cannot work here.
        """
        if self._runner is None:
            from llmmem.execution.runner import Runner

            self._runner = Runner(
                self.options.device, environment=self.children.environment_of_others
            )
        return self._runner

    def close(self) -> None:
        """Close the runner, and restore PyTorch and the environment."""
        self.value_reads.close()
        if self._children is not None:
            self._children.close()
            self._children = None
        if self._runner is not None:
            self._runner.close()
            self._runner = None


SESSION = pytest.StashKey[Session]()


def load_simulated_gpu(device: Device, arguments: Sequence[str]) -> None:
    """Load a simulated GPU into this process if the device is one, and check that it can be used.

    Args:
        device: Where to measure.
        arguments: pytest's arguments, to suggest a command that works if this process cannot load the GPU.

    Raises:
        pytest.UsageError: The GPU cannot be simulated here, or torch was imported already.
    """
    from llmmem import simgpu

    option = f"--llmmem-device={device}"
    try:
        inherited = simgpu.active()
        if device.kind != "sim" and inherited is None:
            return
        _check_allocator_settings()
        if device.kind != "sim":
            return
        if "torch" in sys.modules and inherited is None:
            raise pytest.UsageError(f"{option}: {_too_late(device, arguments)}")
        # It chooses among this machine's GPUs; simulated ones are chosen by name.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        simgpu.activate(device.gpu or "", count=device.count)
    except LlmmemError as error:
        raise pytest.UsageError(f"{option}: {error}") from error


def _too_late(device: Device, arguments: Sequence[str]) -> str:
    pytest_command = (
        ("python", "-m", "pytest") if Path(sys.argv[0]).name == "__main__.py" else ("pytest",)
    )
    command = ("llmmem", "exec", "--device", str(device), "--", *pytest_command, *arguments)
    return (
        "torch was imported before the plugin could load the simulated GPU (by a plugin named "
        "with -p or in PYTEST_PLUGINS, by an installed plugin, or when Python started). Start "
        f"pytest on the simulated GPU: `{shlex.join(command)}`"
    )


def _check_allocator_settings() -> None:
    """Reject allocator settings with which PyTorch would raise once and then abort the process.

    A newer PyTorch may accept what our parser does not know, so PyTorch has the last word.

    Raises:
        InputError: A variable has a value that PyTorch does not accept.
    """
    for name in ALLOCATOR_VARIABLES:
        if os.environ.get(name):
            _check_allocator_setting(name, os.environ[name])


def _check_allocator_setting(name: str, value: str) -> None:
    from llmmem.accounting.allocator import AllocatorConfig
    from llmmem.simgpu.trial import try_out

    try:
        AllocatorConfig.parse(value)
    except LlmmemError as error:
        refusal = try_out("torch")
        if refusal is None:
            return
        why = str(error) if isinstance(error, InputError) else refusal
        raise InputError(f"PyTorch does not accept {name}={value!r}: {why}") from error
