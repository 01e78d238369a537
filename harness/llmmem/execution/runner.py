"""Runs and estimates in processes of their own.

A `Runner` keeps a worker process alive (`llmmem.execution.worker`) that has imported torch; each run gets a
fresh fork of it. `run` does the same for a single run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from llmmem.devices import Device, parse_device
from llmmem.errors import InputError, LlmmemError, UnsupportedError
from llmmem.execution.forks import DEFAULT_TIMEOUT, Forks
from llmmem.execution.host_memory import HOST_MEMORY_VARIABLE, default_limit
from llmmem.results import Estimate, RunResult
from llmmem.simgpu.faults import faults_from_environment
from llmmem.simgpu.side_streams import side_streams_from_environment
from llmmem.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import IO

    from llmmem.results import Outcome, Source
    from llmmem.setups import Setup
    from llmmem.simgpu.side_streams import SideStreams

__all__ = ["DEFAULT_TIMEOUT", "Runner", "estimate_in_fork", "resolve_device", "run"]

LAST_WORDS = 400


class Runner:
    """Runs setups on one device, each in a clean process; a context manager.

    Several threads may share a runner; their jobs run one after the other.

    Args:
        device: ``auto``, ``cuda[:N]``, ``sim[:GPU[xN]]`` or ``estimate`` (which only estimates).
        environment: Returns the environment variables for a worker when it is started; by default
            those of this process.
        host_memory: The limit in bytes on the host memory of a run and its estimate together; by
            default `llmmem.execution.host_memory.default_limit`.

    Attributes:
        device: The device; ``auto`` is already resolved.

    Raises:
        InputError: The device is not valid.
        UnsupportedError: The device is not available on this machine; the message says what to do.
    """

    def __init__(
        self,
        device: str | Device = "auto",
        *,
        environment: Callable[[], Mapping[str, str]] = lambda: os.environ,
        host_memory: int | None = None,
    ) -> None:
        wanted = parse_device(device) if isinstance(device, str) else device
        self.device = resolve_device() if wanted.kind == "auto" else wanted
        if self.device.kind == "cuda":
            _check_gpu(self.device)
        self._environment = environment
        self._host_memory = host_memory
        self._turn = Lock()  # one job at a time: replies carry no id
        self._worker: _Worker | None = None

    def __enter__(self) -> Runner:
        """The runner itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the worker."""
        self.close()

    def run(
        self,
        setup: Setup,
        *,
        estimate: bool = True,
        timeout: float | None = DEFAULT_TIMEOUT,
        cap: str | None = None,
    ) -> RunResult:
        """Run the setup and measure it. If the process crashes or is killed, that is the result's outcome.

        Args:
            setup: What to run.
            estimate: Whether to estimate the setup too.
            timeout: Seconds after which the run is killed, with outcome ``timeout``.
            cap: A card of the GPU catalogue. The run gets no more memory than that card has, and the
                outcome is ``oom`` beyond that. Kernels stay those of the device.

        Raises:
            InputError: The setup or the card names something that does not exist, or
                ``LLMMEM_SIMULATED_FAULTS`` or ``LLMMEM_SIDE_STREAMS`` is not valid.
            UnsupportedError: The device only estimates.
        """
        faults = faults_from_environment()
        if self.device.kind == "estimate":
            raise UnsupportedError(
                "device 'estimate' cannot run setups: choose cuda or sim, or call estimate"
            )
        job = {
            "action": "run",
            "setup": setup.to_dict(),
            "gpu": cap,
            "timeout": timeout,
            "faults": str(faults),
            "estimate": self._estimate_job(setup, None, timeout) if estimate else None,
            "host_memory": self._host_memory_limit(),
        }
        reply = self._ask(job)
        if "result" in reply:
            result = RunResult.from_dict(reply["result"])
        else:
            result = self._failed(setup, reply)
        if not estimate:
            return result
        try:
            return replace(result, estimate=self._estimated(setup, reply["estimate"]))
        except UnsupportedError as error:  # the run is valid without its estimate
            return replace(result, notes=(*result.notes, str(error)))

    def estimate(
        self, setup: Setup, gpu: str | None = None, *, timeout: float | None = DEFAULT_TIMEOUT
    ) -> Estimate:
        """Estimate the setup in another process, so that nothing heavy is imported here.

        Args:
            setup: What to estimate.
            gpu: The card of the GPU catalogue to assume; by default the runner's, else the one in
                this machine, else h100.
            timeout: Seconds after which to give up.

        Raises:
            InputError: The setup or the card names something that does not exist.
            UnsupportedError: The estimate did not end in time, or its process died.
        """
        return self._estimated(setup, self._ask(self._estimate_job(setup, gpu, timeout)))

    def close(self) -> None:
        """Kill the worker and its current run, from any thread.

        If the runner is used again, it starts another worker.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _estimate_job(self, setup: Setup, gpu: str | None, timeout: float | None) -> dict[str, Any]:
        chosen = gpu or self.device.gpu
        return {
            "action": "estimate",
            "setup": setup.to_dict(),
            "gpu": chosen,
            "timeout": timeout,
            "host_memory": self._host_memory_limit(),
        }

    def _host_memory_limit(self) -> int | None:
        return self._host_memory if self._host_memory is not None else default_limit()

    def _estimated(self, setup: Setup, reply: Mapping[str, Any]) -> Estimate:
        if "result" in reply:
            return Estimate.from_dict(reply["result"])
        raise UnsupportedError(f"could not estimate: {self._failed(setup, reply).message}")

    def _failed(self, setup: Setup, reply: Mapping[str, Any]) -> RunResult:
        outcome: Outcome = "crashed"
        if "timeout" in reply:
            outcome = "timeout"
        elif "refused" in reply:
            outcome = "unsupported"
        message = why_it_failed(reply)
        source: Source = "simulated" if self.device.kind == "sim" else "measured"
        return RunResult(setup, str(self.device), source, outcome, message)

    def _ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        side_streams = side_streams_from_environment()
        with self._turn:
            try:
                worker = self._worker_with(side_streams)
                reply = worker.ask(job)
            except BaseException:  # an interrupt: nothing needs the current job any more
                self.close()
                raise
            last_words = worker.last_words()
        for answer in (reply, reply.get("estimate") or {}):
            if "died" in answer:
                answer["died"] += f"; last output: {last_words}"
            refused = answer.get("refused")
            if refused is not None and refused["kind"] == "input":
                raise InputError(refused["message"])
        return reply

    def _worker_with(self, side_streams: SideStreams) -> _Worker:
        """A ready worker; a new one if the current one was started with another setting."""
        worker = self._worker
        if worker is not None and worker.side_streams == side_streams:
            return worker
        self.close()
        worker = _Worker(self.device, side_streams, self._environment())
        self._worker = worker  # `close` can end it from here on
        worker.get_ready()
        return worker


class _Worker:
    """A worker process: accepts jobs, replies to them, and keeps what it printed.

    Attributes:
        side_streams: When work on side streams of its simulated GPUs ends.
    """

    def __init__(
        self, device: Device, side_streams: SideStreams, environment: Mapping[str, str]
    ) -> None:
        self.side_streams = side_streams
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmmem.execution.worker", str(device), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_worker_environment(device, environment),
            # A process group of its own: a Ctrl-C does not reach it, and it can be killed together
            # with its current run.
            process_group=0,
        )

    def get_ready(self) -> None:
        """Wait until it accepts jobs.

        Raises:
            InputError: The faults in the environment are not valid.
            UnsupportedError: The device is not available on this machine.
            LlmmemError: The worker has ended.
        """
        ready = self._reply()
        if "refused" in ready:
            raise _refusal(ready)

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a job.

        Raises:
            LlmmemError: The worker itself has ended, which no job should cause.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the missing reply reports that
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        return self._reply()

    def last_words(self) -> str:
        """The end of what the worker and its children printed, on one line."""
        if self._log.closed:  # the runner was closed meanwhile
            return "nothing"
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), LAST_WORDS, max(0, size - LAST_WORDS))
        return " ".join(text.decode(errors="replace").split()) or "nothing"

    def close(self) -> None:
        """Kill the process and its current run: there is nothing to save."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        # Leaving the process closes its pipes and waits for its end.
        with self._log, suppress(BrokenPipeError), self._process:
            pass

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise LlmmemError(
                f"the worker ended with code {code}; last output: {self.last_words()}"
            )
        reply: dict[str, Any] = json.loads(line)
        return reply


def run(
    setup: Setup,
    device: str | Device = "auto",
    *,
    estimate: bool = True,
    timeout: float | None = DEFAULT_TIMEOUT,
    cap: str | None = None,
    host_memory: int | None = None,
) -> RunResult:
    """Run one setup on a device in its own process; see `Runner.run`.

    Example:
        >>> run(Setup(model="meta-llama/Llama-3.2-1B", method="lora"), "sim:h100").peaks.allocated
    """
    with Runner(device, host_memory=host_memory) as runner:
        return runner.run(setup, estimate=estimate, timeout=timeout, cap=cap)


def estimate_in_fork(
    setup: Setup,
    gpu: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT,
    host_memory: int | None = None,
) -> Estimate:
    """Estimate a setup in a fork of this process, which should not have imported torch yet.

    Forking adds no noticeable time. On systems other than Linux, forks cannot be watched: the estimate is
    made in this process, without limits on time and memory.

    Args:
        setup: What to estimate.
        gpu: The card of the GPU catalogue to assume; by default the one in this machine, else h100.
        timeout: Seconds after which to give up.
        host_memory: See `Runner`.

    Raises:
        InputError: The setup or the card names something that does not exist.
        UnsupportedError: It cannot be estimated.
        LlmmemError: The estimate did not end in time, took too much memory, or died.
    """
    from llmmem.execution.worker import answer

    job = {"action": "estimate", "setup": setup.to_dict(), "gpu": gpu}
    work = partial(answer, Device("estimate"), job)
    if hasattr(os, "pidfd_open"):
        with Forks(default_limit() if host_memory is None else host_memory) as forks:
            reply = forks.reply(forks.start(work, timeout))
    else:
        reply = work()
    if "result" in reply:
        return Estimate.from_dict(reply["result"])
    if "refused" in reply:
        raise _refusal(reply)
    raise LlmmemError(f"could not estimate: {why_it_failed(reply)}")


def why_it_failed(reply: Mapping[str, Any]) -> str:
    """Why a reply of the worker has no result, in one line."""
    if "timeout" in reply:
        return f"not done after {reply['timeout']:g} s"
    if "host_memory" in reply:
        return (
            f"it needs more than {format_size(reply['host_memory'])} of host memory, which is the "
            f"limit (--host-memory, {HOST_MEMORY_VARIABLE})"
        )
    if "refused" in reply:
        return str(reply["refused"]["message"])
    return str(reply.get("raised") or reply["died"])


def _refusal(reply: Mapping[str, Any]) -> LlmmemError:
    kind = InputError if reply["refused"]["kind"] == "input" else UnsupportedError
    return kind(reply["refused"]["message"])


def resolve_device() -> Device:
    """Resolve ``auto``: a real GPU, else a simulated h100, else only estimates."""
    from llmmem import simgpu
    from llmmem.nvml import gpu_count

    if gpu_count() > 0:
        return Device("cuda")
    if not simgpu.check():
        return parse_device("sim")
    return Device("estimate")


def _check_gpu(device: Device) -> None:
    """Raise `UnsupportedError` unless this real GPU exists and PyTorch can use it."""
    from llmmem.nvml import gpu_count
    from llmmem.versions import library_versions

    count = gpu_count()
    if device.index >= count:
        raise UnsupportedError(
            f"no device {str(device)!r}: this machine has {count} real GPUs "
            "(sim:GPU runs without one)"
        )
    if library_versions()["cuda"] is None:
        raise UnsupportedError(
            f"no device {str(device)!r}: the installed torch is a build without CUDA"
        )


def _worker_environment(device: Device, given: Mapping[str, str]) -> dict[str, str]:
    """The given environment, with the import path of this process."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**given, "PYTHONPATH": path}
    if device.kind == "sim":
        # It chooses among this machine's GPUs; simulated ones are chosen by name.
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment
