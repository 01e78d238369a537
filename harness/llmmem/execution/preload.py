"""Imports that a worker makes once, for all the runs that it forks.

CUDA cannot be used in a fork of a process that has initialised it, so nothing imported here may do that.
bitsandbytes queries the GPUs and their compute capabilities when it is imported: NVML answers both. If an
import needs more of CUDA, it is abandoned and left to the run.
"""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.fake_cuda.dispatch import replaced
from llmmem.workload.build import local_config, model_class, quiet_libraries
from llmmem.workload.late_compilation import compiled_at_first_call
from llmmem.workload.quantization import libraries_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from llmmem.setups import Setup

__all__ = ["cuda_kept_out", "preload"]


class _CudaNeeded(BaseException):
    """An import needs CUDA; not an `Exception`, so that libraries do not swallow it."""


def preload(setup: Setup) -> None:
    """Import what a run of the setup will import.

    Modules that cannot be imported without CUDA, or not at all, are left to the run, which reports why.
    """
    with quiet_libraries(), compiled_at_first_call():
        for name in _libraries(setup):
            with suppress(Exception, _CudaNeeded), cuda_kept_out():
                importlib.import_module(name)
        if local_config(setup.model) is not None:  # the hub may not answer, which the run reports
            with suppress(Exception, _CudaNeeded), cuda_kept_out():
                model_class(setup)
        if setup.has_adapter:
            with suppress(Exception, _CudaNeeded), cuda_kept_out():
                _make_conversions()


def _libraries(setup: Setup) -> Iterator[str]:
    """Modules that a run or an estimate imports, including those that libraries import lazily."""
    yield "llmmem.measurement.run"
    yield "llmmem.execution.estimate_process"
    yield "llmmem.estimation.rules"
    if setup.is_train:  # optimizers and checkpointing import them at their first call
        yield "torch._dynamo"
        yield "torch._subclasses.schema_check_mode"
    if "bitsandbytes" in libraries_of(setup):
        yield "bitsandbytes"
        yield "llmmem.estimation.operators.bitsandbytes"
        yield "transformers.integrations.bitsandbytes"
    if setup.has_adapter:
        yield "peft"
        yield "peft.tuners.lora.bnb"
        yield "peft.utils.transformers_weight_conversion"


def _make_conversions() -> None:
    """Let transformers build its table of checkpoint names, which PEFT requests for each model."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # type: ignore[no-untyped-call]


@contextmanager
def cuda_kept_out() -> Iterator[None]:
    """While inside, imports query GPUs through NVML and cannot initialise CUDA.

    Raises:
        BaseException: An import tried to initialise CUDA, or needed something that NVML does not report.
    """
    with (
        _set("PYTORCH_NVML_BASED_CUDA_CHECK", "1"),
        replaced(torch.cuda, "get_device_capability", _compute_capability),
        replaced(torch._C, "_cuda_init", _refuse),
        replaced(torch._C, "_cuda_getDeviceCount", _refuse),
    ):
        yield


def _compute_capability(device: Any = None) -> tuple[int, int]:
    """Like `torch.cuda.get_device_capability`, but through NVML."""
    import pynvml

    try:
        index = torch.cuda._get_nvml_device_index(device)
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        finally:
            pynvml.nvmlShutdown()
    except Exception as error:
        raise _CudaNeeded(str(error)) from error
    return major, minor


def _refuse() -> NoReturn:
    raise _CudaNeeded("an import initialises CUDA")


@contextmanager
def _set(variable: str, value: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
