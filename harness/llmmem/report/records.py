"""One record per run, estimate or measured test, and its rows in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llmmem.guesses import GUESS
from llmmem.report.text import printable
from llmmem.results import (
    COMPONENTS,
    METRICS,
    Components,
    DevicePeaks,
    Estimate,
    Peaks,
    PhaseResult,
)
from llmmem.setups import Setup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmmem.execution.program import ProgramResult
    from llmmem.results import Outcome, RunResult, Source

__all__ = ["ADDED_COLUMNS", "COLUMNS", "SCHEMA", "SESSION", "TOTAL", "Record", "incomplete_row"]

SCHEMA = 1

# What a row can be about, other than a phase of a record.
TOTAL = "total"
SESSION = "session"

LIBRARIES = ("llmmem", "torch", "transformers", "peft", "bitsandbytes", "cuda", "driver")

#: The columns of a report in their order, each with its pandas dtype. All are nullable.
COLUMNS: Mapping[str, str] = {
    "schema": "Int64",
    "test": "string",
    "setup": "string",
    "phase": "string",
    "model": "string",
    "task": "string",
    "mode": "string",
    "method": "string",
    "quantization": "string",
    "adapter": "string",
    "optimizer": "string",
    "dtype": "string",
    "batch_size": "Int64",
    "seq_len": "Int64",
    "gradient_checkpointing": "boolean",
    "kv_cache": "string",
    "parallel": "string",
    "device": "string",
    "gpu": "string",
    "gpu_index": "Int64",
    "source": "string",
    "outcome": "string",
    "message": "string",
    "notes": "string",
    "metric": "string",
    "weights_bytes": "Int64",
    "gradients_bytes": "Int64",
    "optimizer_bytes": "Int64",
    "activations_bytes": "Int64",
    "temporaries_bytes": "Int64",
    "reserve_bytes": "Int64",
    "context_bytes": "Int64",
    "context_source": "string",
    "held_before_bytes": "Int64",
    "peak_allocated_bytes": "Int64",
    "peak_reserved_bytes": "Int64",
    "peak_process_bytes": "Int64",
    "unknown_bytes": "Int64",
    "rule_bytes": "Int64",
    "trace_bytes": "Int64",
    "trace_error_percent": "Float64",
    "needed_allocated_bytes": "Int64",
    "needed_reserved_bytes": "Int64",
    "needed_process_bytes": "Int64",
    "limit": "string",
    "limit_bytes": "Int64",
    "headroom_bytes": "Int64",
    "baseline_bytes": "Int64",
    "change_bytes": "Int64",
    "step_seconds": "Float64",
    **dict.fromkeys(LIBRARIES, "string"),
}


#: Columns that reports of earlier versions lack; they are read as missing values.
ADDED_COLUMNS = frozenset(
    {
        "notes",
        "unknown_bytes",
        "gpu_index",
        "limit",
        *(f"needed_{metric}_bytes" for metric in METRICS),
    }
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The memory of one run, estimate, program or test, and its limit.

    `from_run`, `from_estimate` and `from_program` create a record from a result. For a test that ran no
    setup, pass the fields that are known.

    Attributes:
        device: Where, such as ``"sim:h100"``, ``"cuda:0"`` or ``"estimate"``.
        source: Where the peaks come from.
        outcome: One of `results.Outcome`.
        message: Why, when the outcome is not ok.
        notes: Caveats about the peaks; a report joins them by "; ".
        unknown_bytes: The most by which the peaks may be higher, in bytes, according to a note; 0 if none
            states an amount.
        test: The node id of the pytest test, or the command of a program.
        setup: What ran, if it was a setup.
        gpu: The name of the card.
        metric: The one of `results.METRICS` that the limit and the baseline apply to.
        peaks: Absolute peaks in bytes, including what was held before.
        components: What held the allocated peak, in bytes.
        phases: The same per phase.
        processes: The peaks of each process that used a GPU, if a test started processes that did;
            `peaks` are those of the process that was compared with the limit.
        context_source: ``modelled`` or ``measured``: the source of peak process - peak reserved.
        held_before_bytes: What was already allocated when measuring started.
        limit: The limit as written, such as ``"12GB"``; ``None`` for a number of bytes.
        limit_bytes: The limit on the metric in bytes.
        baseline_bytes: An earlier value of the metric to compare with.
        step_seconds: Wall time of a step.
        gpu_index: The PyTorch index of the GPU that the peaks belong to, if several were in use: the one
            with the highest peak of the metric.
        devices: The peaks of every GPU that was in use, if there were several.
        versions: Versions of libraries, CUDA and driver by name.
        estimate: The estimate of the same setup.
    """

    device: str
    source: Source
    outcome: Outcome
    message: str = ""
    notes: tuple[str, ...] = ()
    unknown_bytes: int = 0
    test: str | None = None
    setup: Setup | None = None
    gpu: str | None = None
    metric: str = "process"
    peaks: Peaks = field(default_factory=Peaks)
    components: Components | None = None
    phases: tuple[PhaseResult, ...] = ()
    processes: tuple[PhaseResult, ...] = ()
    context_source: Literal["modelled", "measured"] | None = None
    held_before_bytes: int | None = None
    limit: str | None = None
    limit_bytes: int | None = None
    baseline_bytes: int | None = None
    step_seconds: float | None = None
    gpu_index: int | None = None
    devices: tuple[DevicePeaks, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    estimate: Estimate | None = None

    @classmethod
    def from_run(
        cls,
        result: RunResult,
        *,
        test: str | None = None,
        metric: str = "process",
        limit: str | None = None,
        limit_bytes: int | None = None,
        baseline_bytes: int | None = None,
    ) -> Record:
        """The record of a run."""
        return cls(
            device=result.device,
            source=result.source,
            outcome=result.outcome,
            message=result.message,
            notes=result.notes,
            unknown_bytes=result.unknown_bytes,
            test=test,
            setup=result.setup,
            gpu=result.gpu,
            metric=metric,
            peaks=result.peaks,
            components=result.components,
            phases=result.phases,
            context_source=result.context_source,
            held_before_bytes=result.held_before_bytes,
            limit=limit,
            limit_bytes=limit_bytes,
            baseline_bytes=baseline_bytes,
            step_seconds=result.step_seconds,
            versions=result.versions,
            estimate=result.estimate,
        )

    @classmethod
    def from_estimate(
        cls,
        estimate: Estimate,
        *,
        test: str | None = None,
        metric: str = "process",
        limit: str | None = None,
        limit_bytes: int | None = None,
        baseline_bytes: int | None = None,
    ) -> Record:
        """The record of an estimate: its peaks are those of the trace."""
        trace = estimate.trace
        return cls(
            device="estimate",
            source="estimated",
            outcome=trace.outcome,
            message=trace.message,
            notes=trace.assumptions,
            unknown_bytes=trace.unknown_bytes,
            test=test,
            setup=estimate.setup,
            gpu=estimate.gpu,
            metric=metric,
            peaks=trace.peaks,
            components=trace.components,
            phases=trace.phases,
            context_source="modelled",
            limit=limit,
            limit_bytes=limit_bytes,
            baseline_bytes=baseline_bytes,
            versions=estimate.versions,
            estimate=estimate,
        )

    @classmethod
    def from_program(cls, result: ProgramResult) -> Record:
        """The record of a program; if it has several processes, they are its phases."""
        phases = tuple(PhaseResult(name, peaks) for name, peaks in result.named_peaks().items())
        return cls(
            device=result.device,
            source=result.source,
            outcome=result.outcome,
            message=result.message,
            notes=result.notes,
            test=result.title,
            gpu=result.gpu,
            peaks=result.peaks,
            phases=phases if len(phases) > 1 else (),
            context_source="modelled",
            versions=result.versions,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: xdist workers send them to the controller."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {
            "notes": list(self.notes),
            "setup": self.setup.to_dict() if self.setup else None,
            **self.peaks.to_dict(),
            "components": asdict(self.components) if self.components else None,
            "phases": [phase.to_dict() for phase in self.phases],
            "processes": [process.to_dict() for process in self.processes],
            "devices": [device.to_dict() for device in self.devices],
            "versions": dict(self.versions),
            "estimate": self.estimate.to_dict() if self.estimate else None,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Record:
        """Read what `to_dict` wrote."""
        setup, estimate = document["setup"], document["estimate"]
        components = document["components"]
        return cls(
            **{name: document[name] for name in _PLAIN},
            notes=tuple(document["notes"]),
            setup=Setup.from_mapping(setup) if setup else None,
            peaks=Peaks.from_dict(document),
            components=Components(**components) if components else None,
            phases=tuple(PhaseResult.from_dict(phase) for phase in document["phases"]),
            processes=tuple(map(PhaseResult.from_dict, document["processes"])),
            devices=tuple(DevicePeaks.from_dict(device) for device in document["devices"]),
            versions=document["versions"],
            estimate=Estimate.from_dict(estimate) if estimate else None,
        )

    @property
    def may_be_over(self) -> bool:
        """Whether the peak is within its limit, but the bytes that are unknown could exceed it."""
        peak, limit = self.peak_bytes, self.limit_bytes
        return peak is not None and limit is not None and peak <= limit < peak + self.unknown_bytes

    @property
    def guesses(self) -> tuple[str, ...]:
        """The notes that name the unknown values on which sizes or branches depend."""
        return tuple(note for note in self.notes if note.startswith(GUESS))

    @property
    def decided_by(self) -> str | None:
        """The name of the process that the peaks belong to."""
        return next((each.phase for each in self.processes if each.peaks == self.peaks), None)

    @property
    def is_cut_short(self) -> bool:
        """Whether this is an estimate whose peaks end where the card was full."""
        return self.source == "estimated" and self.outcome == "oom"

    @property
    def peak_bytes(self) -> int | None:
        """The peak of the metric; for an estimate that ran out of memory, what the step needs."""
        return (self.needed if self.is_cut_short else self.peaks).get(self.metric)

    @property
    def peak_is_unknown(self) -> bool:
        """Whether the peak of the metric is unknown for any GPU that was in use."""
        unknown = (device.peaks.get(self.metric) is None for device in self.devices)
        return self.peak_bytes is None or any(unknown)

    @property
    def place(self) -> str:
        """The device and, with several simulated GPUs, the index of this one."""
        if self.gpu_index is None or self.source != "simulated":
            return self.device
        return f"{self.device} cuda:{self.gpu_index}"

    @property
    def other_devices(self) -> tuple[DevicePeaks, ...]:
        """The other GPUs that were in use."""
        return tuple(device for device in self.devices if device.index != self.gpu_index)

    @property
    def headroom_bytes(self) -> int | None:
        """The limit minus the peak of the metric; negative if the peak is over the limit."""
        return _difference(self.limit_bytes, self.peak_bytes)

    @property
    def change_bytes(self) -> int | None:
        """The peak of the metric minus the baseline; positive if the peak has grown."""
        return _difference(self.peak_bytes, self.baseline_bytes)

    @property
    def rule_bytes(self) -> int | None:
        """The allocated peak according to the closed form."""
        return self.estimate.rules.peak_allocated_bytes if self.estimate else None

    @property
    def trace_bytes(self) -> int | None:
        """The allocated peak of the trace; ``None`` if the trace did not reach the end."""
        if self.estimate is None or self.estimate.trace.outcome != "ok":
            return None
        return self.estimate.trace.peaks.allocated

    @property
    def needed(self) -> Peaks:
        """The estimated peaks on a card with the same kernels and unlimited memory."""
        return self.estimate.trace.needed if self.estimate else Peaks()

    @property
    def trace_error_percent(self) -> float | None:
        """100 x (trace - peak) / peak, allocated.

        ``None`` for estimates, which have no run to compare with, and for runs that did not reach the end.
        """
        return self._trace_error(self.trace_bytes, self.peaks.allocated)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of a report; missing values are ``None``.

        The first row is `TOTAL`. Rows for each phase, for each process and, if several GPUs were in use,
        for each GPU (``cuda:1``) follow. Notes, limit, baseline, closed form, needed peaks and what was
        held before apply to the whole record, so only the first row has them.
        """
        about = self._about()
        total = {
            "gpu_index": self.gpu_index,
            "notes": "; ".join(self.notes) or None,
            "held_before_bytes": self.held_before_bytes,
            "rule_bytes": self.rule_bytes,
            **self.needed.to_dict("needed"),
            "unknown_bytes": self.unknown_bytes,
            "limit": self.limit,
            "limit_bytes": self.limit_bytes,
            "headroom_bytes": self.headroom_bytes,
            "baseline_bytes": self.baseline_bytes,
            "change_bytes": self.change_bytes,
            "step_seconds": self.step_seconds,
        }
        whole = PhaseResult(TOTAL, self.peaks, self.components)
        yield self._row(about | total, whole, self.trace_bytes)
        traced = self._traced_phases()
        for phase in self.phases:
            yield self._row(about, phase, traced.get(phase.phase))
        for process in self.processes:
            yield self._row(about, process, None)
        for device in self.devices if len(self.devices) > 1 else ():
            where: dict[str, Any] = {"gpu_index": device.index}
            if self.source == "measured":
                where["device"] = device.name
            yield self._row(about | where, PhaseResult(device.name, device.peaks), None)

    def _about(self) -> dict[str, Any]:
        """The columns that all rows of the record share."""
        return {
            "schema": SCHEMA,
            "test": self.test,
            **(_setup_columns(self.setup) if self.setup else {}),
            "device": self.device,
            "gpu": self.gpu,
            "source": self.source,
            "outcome": self.outcome,
            "message": self.message or None,
            "metric": self.metric,
            **{name: self.versions.get(name) for name in LIBRARIES},
        }

    def _row(self, known: dict[str, Any], phase: PhaseResult, trace: int | None) -> dict[str, Any]:
        peaks = phase.peaks
        context = _difference(peaks.process, peaks.reserved)
        components = {f"{name}_bytes": getattr(phase.components, name, None) for name in COMPONENTS}
        values = known | {
            "phase": phase.phase,
            **components,
            **peaks.to_dict(),
            "reserve_bytes": _difference(peaks.reserved, peaks.allocated),
            "context_bytes": context,
            "context_source": None if context is None else self.context_source,
            "trace_bytes": trace,
            "trace_error_percent": self._trace_error(trace, peaks.allocated),
        }
        return _storable_row(values)

    def _traced_phases(self) -> dict[str, int | None]:
        if self.estimate is None or self.estimate.trace.outcome != "ok":
            return {}
        return {phase.phase: phase.peaks.allocated for phase in self.estimate.trace.phases}

    def _trace_error(self, trace: int | None, peak: int | None) -> float | None:
        if self.source == "estimated" or self.outcome != "ok" or trace is None or not peak:
            return None
        return 100 * (trace - peak) / peak


_PLAIN = (
    "unknown_bytes",
    "device",
    "source",
    "outcome",
    "message",
    "test",
    "gpu",
    "metric",
    "context_source",
    "held_before_bytes",
    "limit",
    "limit_bytes",
    "baseline_bytes",
    "step_seconds",
    "gpu_index",
)


def incomplete_row(message: str) -> dict[str, Any]:
    """The row that marks a report as incomplete.

    Args:
        message: Why records are missing.
    """
    about = {"schema": SCHEMA, "phase": SESSION, "outcome": "incomplete", "message": message}
    return _storable_row(about)


def _storable_row(values: Mapping[str, Any]) -> dict[str, Any]:
    r"""A row with all columns, and only values that every file format can store.

    Lone surrogates and NUL become escapes such as ``\udcff``. Non-finite numbers and integers beyond 64
    bits become missing values; the notes of the row name such integers.
    """
    beyond = [name for name, value in values.items() if _is_beyond_64_bits(value)]
    row = {name: _storable(values.get(name)) for name in COLUMNS}
    if beyond:
        found = [f"{name} {values[name]} is beyond 64 bits" for name in beyond]
        row |= {"notes": "; ".join([*([row["notes"]] if row["notes"] else []), *found])}
        row |= dict.fromkeys(beyond)
    return row


def _is_beyond_64_bits(value: object) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _storable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return printable(value) if isinstance(value, str) else value


def _setup_columns(setup: Setup) -> dict[str, Any]:
    checkpointing = setup.gradient_checkpointing
    parallel = setup.parallel
    return {
        "setup": setup.key(),
        "model": setup.model,
        "task": setup.task,
        "mode": setup.mode,
        "method": setup.method,
        "quantization": _quantization_name(setup),
        "adapter": _adapter_name(setup.adapter),
        "optimizer": setup.optimizer,
        "dtype": setup.dtype,
        "batch_size": setup.batch_size,
        "seq_len": setup.seq_len,
        # A table has arguments for checkpointing, so it is enabled.
        "gradient_checkpointing": None if checkpointing is None else bool(checkpointing),
        "kv_cache": setup.kv_cache,
        "parallel": f"{parallel['strategy']}x{parallel['world_size']}" if parallel else "none",
    }


def _quantization_name(setup: Setup) -> str | None:
    """The name of the quantization, or the method of a table: ``"nf4"``, ``"bitsandbytes"``."""
    given = setup.quantization
    return setup.quantization_method if isinstance(given, Mapping) else given


def _adapter_name(adapter: Mapping[str, Any] | str | None) -> str | None:
    """``"none"``, or the kind of adapter with its rank if it has one: ``"LORA r=16"``."""
    if adapter is None or isinstance(adapter, str):
        return adapter
    rank = f" r={adapter['r']}" if "r" in adapter else ""
    return f"{adapter['peft_type']}{rank}"


def _difference(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left - right
