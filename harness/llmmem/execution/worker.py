"""The worker: a server that imports everything once and forks a clean process for each job.

``python -m llmmem.execution.worker DEVICE PARENT`` reads jobs from standard input and writes replies to
standard output, one JSON document a line, until standard input or the process PARENT ends. The first
reply is ``{"ready": pid}`` or a refusal. A job is
``{"action": "run" | "estimate", "setup": {...}, "gpu": name or null, "timeout": seconds,
"host_memory": bytes}`` (``gpu`` is the card to assume, or to cap a run to), a run also with
``"faults": text`` (`llmmem.simgpu.Faults`) for a simulated GPU and with ``"estimate"``: null, or the
job of an estimate to make at the same time, whose reply becomes the ``"estimate"`` of the run's reply and
which shares its limit of host memory. A reply is one of

- ``{"result": {...}}``,
- ``{"refused": {"kind": "input" | "unsupported", "message": text}}``,
- ``{"raised": text}``, an exception that llmmem did not expect,
- ``{"died": text}``, the end of the process without an answer,
- ``{"timeout": seconds}``,
- ``{"host_memory": bytes}``, the limit that the job exceeded.

The server does not initialise CUDA, so each child starts with its own clean allocator and context, and can
crash, hang or run out of memory without affecting the next one. The server imports what a run needs, as far
as that works without CUDA (`llmmem.execution.preload`), once for all later runs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llmmem.devices import Device, parse_device
from llmmem.errors import InputError, UnsupportedError
from llmmem.execution.forks import Forks
from llmmem.execution.parents import end_with_parent
from llmmem.setups import Setup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TextIO

    from llmmem.execution.forks import Fork

__all__ = ["answer", "main", "serve"]


def main(device: str, parent: str) -> None:
    """Serve jobs for the device until standard input or the parent, a process id, ends."""
    end_with_parent(int(parent))
    # Replies have their own file: what libraries print goes to standard error.
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
    """Load the simulated GPU if the device is one, then import what every job needs."""
    # Up to PyTorch 2.8, importing bitsandbytes starts a pool of compilers, which nothing here uses.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    with _frozen_imports():
        if device.kind == "sim":
            from llmmem import simgpu

            simgpu.activate(device.gpu or "", count=device.count)

            import torch

            # A run computes little on the host, and OpenMP's threads keep the cores busy as they wait.
            torch.set_num_threads(1)
        # What PEFT and every model need, which is most of what importing them costs.
        import accelerate  # noqa: F401
        import transformers.modeling_utils  # noqa: F401


def _import_for_run(device: Device, job: Mapping[str, Any]) -> None:
    """Import what a run needs in this process, so that later runs inherit it."""
    if device.kind == "estimate":  # an estimate avoids imports that are slow and not needed
        return
    from llmmem.execution.preload import preload

    with _frozen_imports(), suppress(InputError):  # the child reports it
        preload(Setup.from_mapping(job["setup"]))


@contextmanager
def _frozen_imports() -> Iterator[None]:
    """Exclude modules that are imported inside from later garbage collections, here and in children.

    The collector is off while inside: it would take a quarter of the time of the imports.
    """
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.collect()
            gc.freeze()
        gc.enable()


def _answer_job(device: Device, job: Mapping[str, Any]) -> dict[str, Any]:
    beside = job.get("estimate")
    with Forks(job["host_memory"]) as forks:
        estimate = None if beside is None else _start(forks, device, beside)
        # Runs on a real GPU are timed, so nothing else runs on the host meanwhile.
        estimated = forks.reply(estimate) if estimate and device.kind == "cuda" else None
        with forks.watched():
            _import_for_run(device, job)
        reply = forks.reply(_start(forks, device, job))
        if estimate is not None:
            reply["estimate"] = estimated or forks.reply(estimate)
    return reply


def _start(forks: Forks, device: Device, job: Mapping[str, Any]) -> Fork:
    return forks.start(partial(answer, device, job), job["timeout"])


def answer(device: Device, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job in this process and return the reply: a result, a refusal or the error raised."""
    try:
        setup = Setup.from_mapping(job["setup"])
        if job["action"] == "estimate":
            from llmmem.execution.estimate_process import estimate_alone

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
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"raised": "; ".join((text, *_guesses()))}


def _guesses() -> tuple[str, ...]:
    """Notes about guessed values that an error may follow from."""
    from llmmem import simgpu

    simulated = simgpu.active()
    return () if simulated is None else simulated.guesses.notes()


def _refused(error: InputError | UnsupportedError) -> dict[str, Any]:
    kind = "input" if isinstance(error, InputError) else "unsupported"
    return {"refused": {"kind": kind, "message": str(error)}}


if __name__ == "__main__":
    main(*sys.argv[1:])
