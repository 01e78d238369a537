"""A trace of a user's own code: a function that is written for a GPU, run on the meta device."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from llmmem.accounting.allocator import AllocatorConfig, CachingAllocator
from llmmem.errors import UnsupportedError
from llmmem.estimation.fake_cuda.dispatch import gpu_dispatch
from llmmem.estimation.fake_cuda.process_state import process_state_kept
from llmmem.estimation.fake_cuda.redirection import cuda_redirected

# Imported before the function can import it: bitsandbytes looks for CUDA when it is imported, and must
# not find the redirected one.
from llmmem.estimation.operators import bitsandbytes
from llmmem.estimation.operators.table import operator_handlers
from llmmem.estimation.trace import TraceObserver, assumptions_of, outcome_of
from llmmem.estimation.tracing.tracer import Tracer
from llmmem.results import Peaks, Trace
from llmmem.workload.optimizers import state_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from torch import nn
    from transformers import Trainer
    from typing_extensions import TypeIs

    from llmmem.catalogue.gpus import Gpu

__all__ = ["is_trainer", "trace_function", "trace_trainer"]

ASSUMPTIONS = (
    "read from the device: what follows from values of the host and constants, else zero",
)


def is_trainer(what: object) -> TypeIs[Trainer]:
    """Whether it is a transformers `Trainer`; does not import transformers."""
    module = sys.modules.get("transformers.trainer")
    return module is not None and isinstance(what, module.Trainer)


def trace_trainer(trainer: Trainer, gpu: Gpu) -> Trace:
    """Estimate the peaks of ``trainer.train()`` on a card, in bytes, from the first steps of a copy.

    Args:
        trainer: It may have been created on a machine without a GPU, and is not changed.
        gpu: The card.
    """
    from llmmem.estimation.trainers import copy_on_gpu

    return trace_function(lambda: copy_on_gpu(trainer), gpu)


def trace_function(function: Callable[[], object], gpu: Gpu) -> Trace:
    """Estimate the peaks of a function on a card, in bytes, by running it as if on that card.

    The allocator uses the settings in the environment of this process. Errors raised by the program or a
    library propagate. With a `RuntimeError`, or an error of an operator on the device or of the redirected
    ``torch.cuda``, the outcome is ``unsupported``.

    Args:
        function: Called once. If it returns a Trainer, its first steps are traced too.
        gpu: The card.
    """
    assumed = [*assumptions_of(gpu), *ASSUMPTIONS]

    def step() -> None:
        made = function()
        if is_trainer(made):
            from llmmem.estimation import trainers

            assumed.extend(trainers.ASSUMPTIONS)
            assumed.extend(trainers.take_first_steps(made, observer.tracer.allocator))
        _check_settings()

    try:
        observer = TraceObserver(_tracer(gpu))
    except UnsupportedError as error:
        return _refused(error, assumed)
    guesses = observer.tracer.guesses
    try:
        with _annotating_errors(), guesses.annotating_errors(), _as_on_gpu(observer) as compiled:
            outcome, message = outcome_of(step, observer.tracer)
        _check_nothing_compiled(compiled)
    except UnsupportedError as error:
        return _refused(error, [*assumed, *guesses.notes()])
    return observer.result(outcome, message, gpu, tuple(assumed))


def _refused(error: UnsupportedError, assumptions: list[str]) -> Trace:
    reason = str(error)
    if "llmmem exec" not in reason:
        reason += ": run it with llmmem exec"
    return Trace("unsupported", reason, Peaks(), assumptions=tuple(assumptions))


@contextmanager
def _annotating_errors() -> Iterator[None]:
    """Add a note to errors that are raised inside: they come from a trace."""
    try:
        yield
    except Exception as error:
        error.add_note(
            "llmmem: raised in an estimate, which runs no kernels; use llmmem exec to run it"
        )
        raise


def _check_settings() -> None:
    if torch.are_deterministic_algorithms_enabled():
        raise UnsupportedError("deterministic algorithms cannot be traced: run it with llmmem exec")
    if "CUBLAS_WORKSPACE_CONFIG" in os.environ:
        raise UnsupportedError(
            "CUBLAS_WORKSPACE_CONFIG: only the default workspace can be traced: "
            "run it with llmmem exec, or unset it"
        )


def _check_nothing_compiled(called: list[str]) -> None:
    """Refuse compiled code: fused kernels keep less than single operators, CUDA graphs keep more."""
    if called:
        names = ", ".join(dict.fromkeys(called))
        raise UnsupportedError(
            f"torch.compile: what a compiled program takes cannot be traced ({names}): run it with "
            "llmmem exec, or set TORCH_COMPILE_DISABLE=1 to estimate, and to run, it uncompiled"
        )


def _tracer(gpu: Gpu) -> Tracer:
    settings = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    allocator = CachingAllocator(
        AllocatorConfig.parse(settings or ""),
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.total_bytes - gpu.context_bytes,
    )
    handlers = operator_handlers() | bitsandbytes.handlers(gpu)
    return Tracer(allocator, gpu, handlers, _is_oom_handled)


# Names and texts in functions that handle out-of-memory errors: the error, accelerate's check, messages.
_OOM_NAMES = frozenset({"OutOfMemoryError", "should_reduce_batch_size"})
_OOM_MESSAGES = frozenset({"out of memory", "cuda out of memory"})


def _is_oom_handled() -> bool:
    """Whether a running function of the program seems to handle out-of-memory errors."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not trace_function.__code__:
        code = frame.f_code
        texts = {text.lower().rstrip(".") for text in code.co_consts if isinstance(text, str)}
        is_ours = frame.f_globals.get("__name__", "").startswith("llmmem.")
        if not is_ours and (_OOM_NAMES & {*code.co_names} or _OOM_MESSAGES & texts):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _as_on_gpu(observer: TraceObserver) -> Iterator[list[str]]:
    """Run as if on a GPU; yields the names of called functions that a run would have compiled."""
    tracer = observer.tracer
    with ExitStack() as stack:
        stack.enter_context(process_state_kept())
        # Dispatch modes are per thread, so allocations in other threads would be missed.
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        stack.enter_context(bitsandbytes.as_on_gpu(tracer))
        stack.enter_context(observer.timeline.recording_calls())
        stack.enter_context(_labelling(observer))
        dispatch = stack.enter_context(gpu_dispatch(tracer))
        stack.enter_context(tracer)
        yield stack.enter_context(cuda_redirected(tracer, dispatch, observer.reset_peaks))


@contextmanager
def _labelling(observer: TraceObserver) -> Iterator[None]:
    """Label what called modules hold as weights, and what optimizers use as gradients and state."""
    known: set[int] = set()

    def on_call(module: nn.Module, args: Any) -> None:
        if id(module) not in known:
            known.update(map(id, module.modules()))
            observer.watch(module)
            observer.label("weights", [*module.parameters(), *module.buffers()])

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        observer.label("gradients", [p.grad for p in parameters if p.grad is not None])

    def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        observer.label("optimizer", state_tensors(optimizer))

    hooks = (
        register_module_forward_pre_hook(on_call),
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
