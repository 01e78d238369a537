"""A trace: the setup's own build and step, on the meta device, as a GPU would allocate for it.

The meta device has shapes but no memory. Each storage created there allocates a block of the modelled
caching allocator, and frees it when it is deleted. Workspaces of CUDA kernels and decisions that PyTorch
makes differently on a GPU are modelled too. A trace works with any build of PyTorch.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import torch

from llmmem.accounting.allocator import AllocatorConfig, CachingAllocator
from llmmem.accounting.timeline import Timeline
from llmmem.errors import UnsupportedError
from llmmem.estimation.failures import program_line_of, reason_of
from llmmem.estimation.fake_cuda.dispatch import gpu_dispatch
from llmmem.estimation.fake_cuda.redirection import cuda_redirected
from llmmem.estimation.operators.table import operator_handlers
from llmmem.estimation.tracing.tracer import Handler, Tracer
from llmmem.notes import cudnn_attention
from llmmem.results import Outcome, Peaks, PhaseResult, Trace
from llmmem.units import format_size
from llmmem.workload.quantization import BACKENDS, backend_of, libraries_of
from llmmem.workload.step import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from llmmem.catalogue.gpus import Gpu
    from llmmem.setups import Setup

__all__ = [
    "TRACED_LIBRARIES",
    "TraceObserver",
    "TracedLibrary",
    "assumptions_of",
    "follow",
    "outcome_of",
    "trace",
]


#: Modules (`TracedLibrary`) for libraries whose CUDA code allocates memory itself, by package name.
TRACED_LIBRARIES: Mapping[str, str] = {
    "bitsandbytes": "llmmem.estimation.operators.bitsandbytes",
}


class TracedLibrary(Protocol):
    """The functions that a module must have to trace a library with CUDA kernels."""

    def handlers(self, gpu: Gpu) -> dict[Any, Handler]:
        """Handlers of its operators."""

    def as_on_gpu(self, tracer: Tracer) -> AbstractContextManager[None]:
        """While inside, make its Python code behave as on a GPU."""

    def quantize_on_meta(
        self, layers: list[nn.Module], linear: nn.Module, device: torch.device
    ) -> None:
        """Quantize a layer, and keep it in the list if it outlives the model."""


def trace(setup: Setup, gpu: Gpu) -> Trace:
    """Estimate the peaks of a setup on a card, in bytes.

    The outcome is ``oom`` if the card is too small (with the peaks up to then, and what the step needs), and
    ``unsupported``, with the reason, if the setup cannot be traced.

    Raises:
        InputError: The setup names something that does not exist, or contradicts itself.
    """
    with _garbage_collected_later():
        return _trace(setup, gpu)


def _trace(setup: Setup, gpu: Gpu) -> Trace:
    assumptions = _assumptions(setup, gpu)
    try:
        observer, outcome, message = follow(setup, gpu)
    except UnsupportedError as error:
        return Trace("unsupported", str(error), Peaks(), assumptions=assumptions)
    return observer.result(outcome, message, gpu, assumptions)


@contextmanager
def _garbage_collected_later() -> Iterator[None]:
    """Collect cyclic garbage only at the end, as the collector would take a third of the time.

    This does not change the events: no tensor of a step is in a cycle that becomes garbage before its end.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            gc.collect(0)


def follow(setup: Setup, gpu: Gpu) -> tuple[TraceObserver, Outcome, str]:
    """Run the setup's steps on the meta device; returns the observer, the outcome and its message.

    Raises:
        InputError: The setup names something that does not exist, or contradicts itself.
        UnsupportedError: The setup cannot be traced.
    """
    _check_supported(setup)
    observer = TraceObserver(_tracer(setup, gpu))
    return observer, *_run(setup, observer)


#: PEFT types that cannot be traced, and why.
_NOT_TRACED = {
    "ADAMSS": "it clusters singular vectors, which depends on values",
    "FROD": "it decomposes all weights on the host, and multiplies sparse matrices",
}

#: Keys of a LoRA config with which PEFT never queries the device of a tensor.
_PLAIN_LORA = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "bias",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
    }
)


def _check_supported(setup: Setup) -> None:
    kind = setup.adapter.get("peft_type") if isinstance(setup.adapter, Mapping) else None
    if kind in _NOT_TRACED:
        raise UnsupportedError(
            f"peft_type {kind} cannot be traced: {_NOT_TRACED[kind]}; run the setup instead"
        )
    if setup.parallel is not None:
        raise UnsupportedError(
            f"parallel strategy {setup.strategy!r} cannot be traced; run the setup instead: one "
            "simulated GPU is enough for a rank of any job"
        )


def _tracer(setup: Setup, gpu: Gpu) -> Tracer:
    allocator = CachingAllocator(
        AllocatorConfig.parse(setup.allocator),
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.total_bytes - gpu.context_bytes,
    )
    handlers = operator_handlers()
    for library in _traced_libraries(setup).values():
        handlers |= library.handlers(gpu)
    return Tracer(allocator, gpu, handlers)


def _traced_libraries(setup: Setup) -> dict[str, TracedLibrary]:
    """The modules of the libraries that the setup uses, by package name."""
    names = sorted(TRACED_LIBRARIES.keys() & libraries_of(setup))
    return {name: cast("TracedLibrary", import_module(TRACED_LIBRARIES[name])) for name in names}


def _run(setup: Setup, observer: TraceObserver) -> tuple[Outcome, str]:
    tracer = observer.tracer
    move = None
    layers: list[nn.Module] = []
    with ExitStack() as stack:
        if setup.has_adapter:
            import peft  # noqa: F401  # so that it is patched to run as on a GPU
        libraries = _traced_libraries(setup)
        for library in libraries.values():
            stack.enter_context(library.as_on_gpu(tracer))
        if quantizing := libraries.get(setup.quantization_method or ""):
            move = partial(quantizing.quantize_on_meta, layers)
        stack.enter_context(observer.timeline.recording_calls())
        dispatch = stack.enter_context(gpu_dispatch(tracer))
        stack.enter_context(tracer)
        device = torch.device("meta")
        if setup.has_adapter and not _is_plain_lora(setup.adapter):
            stack.enter_context(cuda_redirected(tracer, dispatch, observer.reset_peaks))
            device = torch.device("cuda", 0)
        return outcome_of(partial(execute, setup, device, observer, move=move), tracer)


def _is_plain_lora(adapter: Any) -> bool:
    """Whether PEFT never queries the device of a tensor: then a trace is faster without redirection."""
    return bool(adapter["peft_type"] == "LORA" and adapter.keys() <= _PLAIN_LORA)


def outcome_of(step: Callable[[], object], tracer: Tracer) -> tuple[Outcome, str]:
    """Run the step with the tracer active; returns the outcome on the card and its message.

    Raises:
        UnsupportedError: The step cannot be traced.
    """
    try:
        step()
    except torch.OutOfMemoryError as error:
        return "oom", str(error.__cause__ or error)
    except Exception as error:
        if tracer.full is not None:
            # On the card, the step would have ended earlier.
            tracer.lost = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            _raise_as_seen(tracer.refused[0] if tracer.refused else error)
    finally:
        tracer.end()
    if tracer.refused and tracer.full is None:  # and caught by the program
        _raise_as_seen(tracer.refused[0])
    return ("ok", "") if tracer.full is None else ("oom", tracer.full.message)


def _raise_as_seen(error: Exception) -> NoReturn:
    """Raise the program's own error, or the reason why the trace cannot continue.

    Raises:
        UnsupportedError: The trace cannot continue; names the line of the program.
    """
    line = program_line_of(error)
    at = f"{line}: " if line else ""
    if isinstance(error, UnsupportedError):
        raise UnsupportedError(f"{at}{error}") from error
    reason = reason_of(error)
    if reason is None:
        raise error
    raise UnsupportedError(f"{at}the step cannot be traced: {reason}") from error


def _assumptions(setup: Setup, gpu: Gpu) -> tuple[str, ...]:
    if setup.quantization_method not in BACKENDS:
        return assumptions_of(gpu)
    return (*assumptions_of(gpu), *backend_of(setup).assumptions(setup))


def assumptions_of(gpu: Gpu) -> tuple[str, ...]:
    """The assumptions of every trace for the card."""
    return (
        f"kernels and workspaces of {gpu.title}",
        "operators as in PyTorch 2.14",
        f"CUDA context {gpu.context_source}",
    )


class TraceObserver:
    """Observes a step: records its phases and labels among the tracer's events, and peaks per phase."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.timeline = Timeline(tracer.clock, tracer.address)
        self._phases: dict[str, Peaks] = {}
        self._total = Peaks(0, 0)
        self._without_limit = Peaks(0, 0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside belongs to the phase."""
        self._collect()
        is_on_card = self.tracer.full is None
        try:
            with self.timeline.phase(name):
                yield
        finally:
            peaks = self._collect()
            if is_on_card:
                self._phases[name] = self._phases.get(name, peaks).highest(peaks)

    def step(self) -> AbstractContextManager[None]:
        """Steps are not timed in an estimate."""
        return nullcontext()

    def watch(self, model: nn.Module) -> None:
        """Name the modules of the model."""
        self.timeline.watch(model)

    def label(self, component: str, tensors: Iterable[Tensor]) -> None:
        """Record the component of the tensors."""
        self.timeline.label(component, tensors)

    def reset_peaks(self) -> None:
        """Reset the peaks, as the traced program requested."""
        self._collect()

    def result(
        self, outcome: Outcome, message: str, gpu: Gpu, assumptions: tuple[str, ...]
    ) -> Trace:
        """The trace: its peaks and what held them."""
        self._collect()
        needed = self._needed()
        if outcome == "oom" and needed.reserved is not None:
            wanted, limit = needed.reserved, self.tracer.card.limit_bytes
            needs, has = (format_size(size + gpu.context_bytes) for size in (wanted, limit))
            message = f"needs {needs}, has {has}: {message}"
        if self.tracer.has_raised_oom:
            handled = "the program handles it if the card is full: what else it needs is not known"
            assumptions = (*assumptions, handled)
        if self.tracer.lost:
            lost = f"what it needs is not known, as the trace ended early: {self.tracer.lost}"
            assumptions = (*assumptions, lost)
        if self.tracer.attention_backends:
            backends = ", ".join(sorted(self.tracer.attention_backends))
            chosen = f"attention: {backends}, as PyTorch {torch.__version__} chooses on this card"
            assumptions = (*assumptions, chosen)
        if self.tracer.inexact:
            operators = ", ".join(sorted(self.tracer.inexact))
            inexact = f"what {operators} allocate on a GPU is not known exactly"
            assumptions = (*assumptions, inexact)
        if self.tracer.modelled_libraries:
            libraries = ", ".join(sorted(self.tracer.modelled_libraries))
            assumptions = (*assumptions, f"workspaces of {libraries}: a model")
        assumptions = (*assumptions, *self.tracer.guesses.notes())
        unknown = self.tracer.cudnn_attention_unknown
        if unknown is not None:
            assumptions = (*assumptions, cudnn_attention(unknown))
        full = self.tracer.full
        attribution = self.timeline.attribute(self.tracer.events, full.clock if full else None)
        held = {phase.phase: phase.components for phase in attribution.phases}
        return Trace(
            outcome=outcome,
            message=message,
            peaks=_with_context(self._total, gpu),
            components=attribution.components,
            phases=tuple(
                PhaseResult(name, _with_context(peaks, gpu), held.get(name))
                for name, peaks in self._phases.items()
            ),
            context_bytes=gpu.context_bytes,
            assumptions=assumptions,
            unknown_bytes=unknown or 0,
            needed=_with_context(needed, gpu) if needed != Peaks() else needed,
        )

    def _needed(self) -> Peaks:
        """The allocated and reserved peaks on a card with unlimited memory, if they are known."""
        tracer = self.tracer
        if tracer.has_raised_oom or tracer.lost:
            return Peaks()
        if tracer.full is not None:
            return self._without_limit
        if tracer.card.is_limited:
            # The step fit only because the allocator released cached memory in time.
            return _peaks_since(tracer.without_limit()[0])
        return self._total

    def _collect(self) -> Peaks:
        """Return the peaks on the card since the last call, and reset them."""
        tracer = self.tracer
        if tracer.allocator is not tracer.card:
            peaks = _peaks_since(tracer.allocator)
            self._without_limit = self._without_limit.highest(peaks)
        peaks = _peaks_since(tracer.card)
        self._total = self._total.highest(peaks)
        return peaks


def _peaks_since(allocator: CachingAllocator) -> Peaks:
    """Return the peaks since the last reset, and reset them."""
    peaks = Peaks(allocator.peak_allocated, allocator.peak_reserved)
    allocator.reset_peaks()
    return peaks


def _with_context(peaks: Peaks, gpu: Gpu) -> Peaks:
    return Peaks(peaks.allocated, peaks.reserved, (peaks.reserved or 0) + gpu.context_bytes)
