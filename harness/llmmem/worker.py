"""The worker: a server that imports everything once and forks a clean process for each job.

``python -m llmmem.worker DEVICE`` reads jobs from standard input and writes replies to standard
output, one JSON document a line. The first reply is ``{"ready": pid}`` or a refusal. A job is
``{"action": "run" | "estimate", "setup": {...}, "gpu": name or null, "timeout": seconds}`` (``gpu``
is the card to assume, or to cap a run to), a run also with ``"faults": text``
(`llmmem.simgpu.Faults`) for a simulated GPU and with ``"estimate"``: null, or the job of an estimate to
make beside it, whose reply is then the run's ``"estimate"``. A reply is one of

- ``{"result": {...}}``,
- ``{"refused": {"kind": "input" | "unsupported", "message": text}}``,
- ``{"raised": text}``, an exception that llmmem did not expect,
- ``{"died": text}``, the end of the process without an answer,
- ``{"timeout": seconds}``.

CUDA is not initialised in the server, so a child starts with a clean allocator and context of its
own, and may crash, hang or run out of memory without harm to the next. What a run needs is imported
in the server as far as that goes without CUDA (`llmmem.preload`), once for all runs that follow.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from llmmem.devices import Device, parse_device
from llmmem.errors import InputError, UnsupportedError
from llmmem.setups import Setup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

__all__ = ["main", "serve"]


def main(device: str) -> None:
    """Serve jobs for the device until standard input ends."""
    # Replies have a file of their own: whatever libraries print goes to standard error.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(parse_device(device), sys.stdin, replies)


def serve(device: Device, jobs: TextIO, replies: TextIO) -> None:
    """Answer each line of `jobs` with a line of `replies`."""

    def send(reply: Mapping[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    try:
        _prepare(device)
    except (InputError, UnsupportedError) as error:
        send(_refused(error))
        return
    send({"ready": os.getpid()})
    for line in jobs:
        send(_answer_job(device, json.loads(line)))


def _prepare(device: Device) -> None:
    """Load the simulated GPU if asked for, then what every job needs."""
    # Up to PyTorch 2.8, importing bitsandbytes starts a pool of compilers, which nothing here uses.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if device.kind == "sim":
        from llmmem import simgpu

        simgpu.activate(device.gpu or "", count=device.count)

        import torch

        # A run computes little on the host, and OpenMP's threads keep the cores busy while they wait.
        torch.set_num_threads(1)
    # What PEFT and every model need, which is most of what importing them costs.
    import accelerate  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    _keep()


def _share(device: Device, job: Mapping[str, Any]) -> None:
    """Import here what a run needs, so that those that follow have it."""
    if device.kind == "estimate":  # which leaves out what takes long to import and is not needed
        return
    from llmmem.preload import preload

    known = len(sys.modules)
    with suppress(InputError):  # the child says so
        preload(Setup.from_mapping(job["setup"]))
    if len(sys.modules) > known:
        _keep()


def _keep() -> None:
    """What is alive now stays: children need not look at it, nor copy its pages."""
    gc.collect()
    gc.freeze()


def _answer_job(device: Device, job: Mapping[str, Any]) -> dict[str, Any]:
    beside = job.get("estimate")
    estimate = None if beside is None else _Child(device, beside)
    # On a real GPU a run is timed, and has the host to itself.
    estimated = estimate.reply() if estimate is not None and device.kind == "cuda" else None
    _share(device, job)
    reply = _Child(device, job).reply()
    if estimate is not None:
        reply["estimate"] = estimated or estimate.reply()
    return reply


class _Child:
    """A fork of this process that does one job."""

    def __init__(self, device: Device, job: Mapping[str, Any]) -> None:
        self._timeout: float | None = job["timeout"]
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        # A file in memory: the child need not wait until somebody reads its answer.
        self._answer = os.memfd_create("answer")
        self._process = os.fork()
        if self._process == 0:
            _child(device, job, self._answer)

    def reply(self) -> dict[str, Any]:
        """What came of the job, once the child has ended; it is killed when its time is over."""
        with os.fdopen(self._answer, "rb") as file:
            if not self._ends_in_time():
                os.kill(self._process, signal.SIGKILL)
                os.waitpid(self._process, 0)
                return {"timeout": self._timeout}
            _, status = os.waitpid(self._process, 0)
            file.seek(0)
            answer = file.read()
        if status == 0 and answer:  # a child that was killed may have written half of it
            reply: dict[str, Any] = json.loads(answer)
            return reply
        return {"died": _how_it_died(status)}

    def _ends_in_time(self) -> bool:
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        end = os.pidfd_open(self._process)
        try:
            return bool(select.select([end], [], [], left)[0])
        finally:
            os.close(end)


def _how_it_died(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with code {code} before it had a result"


def _child(device: Device, job: Mapping[str, Any], answer: int) -> None:
    """Do the job, write the answer, and end without the server's clean-up. Never returns."""
    try:
        text = json.dumps(_answer(device, job)).encode()
        with os.fdopen(answer, "wb") as file:
            file.write(text)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _answer(device: Device, job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        setup = Setup.from_mapping(job["setup"])
        if job["action"] == "estimate":
            from llmmem.estimation.alone import estimate_alone

            return {"result": estimate_alone(setup, job["gpu"]).to_dict()}
        from llmmem import simgpu
        from llmmem.catalogue.gpus import find_gpu
        from llmmem.measurement.run import run_here

        cap = None if job["gpu"] is None else find_gpu(job["gpu"])
        simulated = simgpu.active()
        with simulated.inject(job["faults"]) if simulated is not None else nullcontext():
            return {"result": run_here(setup, device, cap).to_dict()}
    except (InputError, UnsupportedError) as error:
        return _refused(error)
    except Exception as error:  # models and libraries may raise anything
        traceback.print_exc()
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"raised": "; ".join((text, *_guesses()))}


def _guesses() -> tuple[str, ...]:
    """What an error may follow from: values that are not computed."""
    from llmmem import simgpu

    simulated = simgpu.active()
    return () if simulated is None else simulated.guesses.notes()


def _refused(error: InputError | UnsupportedError) -> dict[str, Any]:
    kind = "input" if isinstance(error, InputError) else "unsupported"
    return {"refused": {"kind": kind, "message": str(error)}}


if __name__ == "__main__":
    main(*sys.argv[1:])
