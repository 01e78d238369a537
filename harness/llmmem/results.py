"""Results of estimates and runs: frozen dataclasses that can be written to JSON and read back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from llmmem.setups import Setup

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "COMPONENTS",
    "METRICS",
    "PHASES",
    "Components",
    "DevicePeaks",
    "Estimate",
    "Holder",
    "Outcome",
    "Peaks",
    "PhaseResult",
    "Rules",
    "RunResult",
    "Source",
    "Trace",
]

Source = Literal["estimated", "simulated", "measured"]
Outcome = Literal["ok", "oom", "crashed", "timeout", "unsupported"]

PHASES = ("load", "forward", "backward", "optimizer", "prefill", "decode")
METRICS = ("allocated", "reserved", "process")


@dataclass(frozen=True)
class Peaks:
    """Peak bytes of a run or of a phase; ``None`` if a peak is not known.

    Attributes:
        allocated: Bytes of tensors, as PyTorch's caching allocator counts them.
        reserved: Bytes that the caching allocator took from the device.
        process: Bytes that the whole process held on the device: reserved, the CUDA context and
            what other libraries took.
    """

    allocated: int | None = None
    reserved: int | None = None
    process: int | None = None

    def get(self, metric: str) -> int | None:
        """Bytes of one of `METRICS`."""
        value: int | None = getattr(self, metric)
        return value

    def highest(self, other: Peaks) -> Peaks:
        """The larger value of each metric; ``None`` if either is."""
        pairs = ((self.get(metric), other.get(metric)) for metric in METRICS)
        return Peaks(*(None if a is None or b is None else max(a, b) for a, b in pairs))

    def to_dict(self, prefix: str = "peak") -> dict[str, int | None]:
        """The peaks in bytes, under the names used in all JSON documents of llmmem."""
        return {f"{prefix}_{metric}_bytes": self.get(metric) for metric in METRICS}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Peaks:
        """Read what `to_dict` wrote; other keys are ignored."""
        return cls(*(document[f"peak_{metric}_bytes"] for metric in METRICS))


@dataclass(frozen=True)
class DevicePeaks:
    """The peaks of one of several GPUs.

    Attributes:
        index: The index of the GPU in PyTorch.
        peaks: Its peaks in bytes.
    """

    index: int
    peaks: Peaks

    @property
    def name(self) -> str:
        """Its name in PyTorch, such as ``"cuda:1"``."""
        return f"cuda:{self.index}"

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping with the peaks in bytes."""
        return {"index": self.index, **self.peaks.to_dict()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> DevicePeaks:
        """Read what `to_dict` wrote."""
        return cls(document["index"], Peaks.from_dict(document))


@dataclass(frozen=True)
class Components:
    """The allocated peak by what the memory was for, in bytes; the components sum to the peak."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    temporaries: int = 0

    @property
    def total(self) -> int:
        """The sum in bytes."""
        return sum(asdict(self).values())


COMPONENTS = tuple(each.name for each in fields(Components))


@dataclass(frozen=True)
class PhaseResult:
    """Peaks of one phase over all steps, and what held its allocated peak."""

    phase: str
    peaks: Peaks
    components: Components | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping with the peaks in bytes and the components."""
        components = asdict(self.components) if self.components else None
        return {"phase": self.phase, **self.peaks.to_dict(), "components": components}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> PhaseResult:
        """Read what `to_dict` wrote."""
        return cls(
            document["phase"], Peaks.from_dict(document), _components(document["components"])
        )


@dataclass(frozen=True)
class Holder:
    """Bytes of one component at the allocated peak that one module (or phase) allocated."""

    component: str
    module: str
    bytes: int


@dataclass(frozen=True)
class Rules:
    """Closed forms computed from parameter counts, in bytes; ``None`` if a form does not apply.

    Attributes:
        peak_allocated_bytes: The form for the setup's mode and method (what `rule_bytes` reports).
        formula: That form as text, with the numbers filled in.
        table: Further known forms by name (such as the accelerate-style rows), in bytes.
    """

    peak_allocated_bytes: int | None
    formula: str
    table: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """The result of tracing the step on the meta device: peaks per component and phase, in bytes.

    Attributes:
        outcome: ``ok``, ``oom`` or ``unsupported``, on the card.
        message: Why, when the outcome is not ok; else empty.
        peaks: The peaks on the card; with ``oom``, up to where the card was full.
        components: What held the allocated peak.
        phases: The same per phase.
        context_bytes: What the process holds in addition to what the allocator reserves.
        assumptions: What the trace assumes.
        unknown_bytes: The most by which the peaks may be higher, in bytes, according to an assumption;
            0 if none states an amount.
        needed: The peaks on a card with the same kernels and unlimited memory; unknown if the step
            cannot be traced to its end, or the program itself handles out-of-memory errors.
    """

    outcome: Outcome
    message: str
    peaks: Peaks
    components: Components | None = None
    phases: tuple[PhaseResult, ...] = ()
    context_bytes: int | None = None
    assumptions: tuple[str, ...] = ()
    unknown_bytes: int = 0
    needed: Peaks = field(default_factory=Peaks)

    @property
    def fits_by_memory(self) -> tuple[str, ...] | None:
        """Cards of the catalogue with enough memory; ``None`` if what is needed is not known.

        Memory alone is compared: each card has its own kernels, so what it needs may differ.
        """
        from llmmem.catalogue.gpus import gpus

        reserved = self.needed.reserved
        if reserved is None:
            return None
        return tuple(gpu.name for gpu in gpus() if reserved <= gpu.total_bytes - gpu.context_bytes)


@dataclass(frozen=True)
class Estimate:
    """Rules and trace of a setup, side by side, for one card of the GPU catalogue."""

    setup: Setup
    gpu: str
    rules: Rules
    trace: Trace
    versions: Mapping[str, str | None] = field(default_factory=dict)

    source: Source = "estimated"

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, ready for JSON."""
        fits = self.trace.fits_by_memory
        return {
            "source": self.source,
            "setup": self.setup.to_dict(),
            "gpu": self.gpu,
            "rules": {
                "peak_allocated_bytes": self.rules.peak_allocated_bytes,
                "peak_reserved_bytes": None,
                "peak_process_bytes": None,
                "formula": self.rules.formula,
                "table": {name: dict(row) for name, row in self.rules.table.items()},
            },
            "trace": {
                "outcome": self.trace.outcome,
                "message": self.trace.message,
                **self.trace.needed.to_dict("needed"),
                "fits_by_memory": None if fits is None else list(fits),
                **self.trace.peaks.to_dict(),
                "components": asdict(self.trace.components) if self.trace.components else None,
                "phases": [phase.to_dict() for phase in self.trace.phases],
                "context_bytes": self.trace.context_bytes,
                "assumptions": list(self.trace.assumptions),
                "unknown_bytes": self.trace.unknown_bytes,
            },
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Estimate:
        """Read what `to_dict` wrote."""
        rules, trace = document["rules"], document["trace"]
        return cls(
            setup=Setup.from_mapping(document["setup"]),
            gpu=document["gpu"],
            rules=Rules(rules["peak_allocated_bytes"], rules["formula"], rules["table"]),
            trace=Trace(
                outcome=trace["outcome"],
                message=trace["message"],
                peaks=Peaks.from_dict(trace),
                components=_components(trace["components"]),
                phases=tuple(PhaseResult.from_dict(phase) for phase in trace["phases"]),
                context_bytes=trace["context_bytes"],
                assumptions=tuple(trace["assumptions"]),
                # Earlier versions wrote neither.
                unknown_bytes=trace.get("unknown_bytes", 0),
                needed=Peaks(*(trace.get(f"needed_{metric}_bytes") for metric in METRICS)),
            ),
            versions=document["versions"],
        )


@dataclass(frozen=True)
class RunResult:
    """The result of running a setup on a device.

    Attributes:
        setup: What ran.
        device: Where, such as ``"sim:h100"`` or ``"cuda:0"``.
        source: ``simulated`` or ``measured``.
        outcome: ``ok``, ``oom``, ``crashed``, ``timeout`` or ``unsupported``.
        message: Why, when the outcome is not ok; else empty.
        gpu: The name of the card, as the driver gives it.
        peaks: The peaks from before the build to the end of the last step. With an outcome other than
            ok, the peaks up to then.
        components: What held the allocated peak.
        phases: The same per phase.
        holders: The largest allocations at the allocated peak by component and module, largest first.
        trainable_parameters: The number of trainable parameters; ``None`` if the model was not built.
        step_seconds: Wall time of the last step; ``None`` on a simulated GPU (it computes nothing).
        context_bytes: peak process - peak reserved.
        context_source: ``modelled`` or ``measured``.
        held_before_bytes: What the device held for the process before the run, in bytes.
        versions: Versions of the libraries, CUDA and the driver.
        allocator: The allocator settings of the run.
        notes: Caveats about the figures.
        unknown_bytes: The most by which the peaks may be higher, in bytes, according to a note; 0 if
            none states an amount.
        estimate: The estimate of the same setup, if one was requested.
    """

    setup: Setup
    device: str
    source: Source
    outcome: Outcome
    message: str = ""
    gpu: str | None = None
    peaks: Peaks = field(default_factory=Peaks)
    components: Components | None = None
    phases: tuple[PhaseResult, ...] = ()
    holders: tuple[Holder, ...] = ()
    trainable_parameters: int | None = None
    step_seconds: float | None = None
    context_bytes: int | None = None
    context_source: Literal["modelled", "measured"] | None = None
    held_before_bytes: int | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    allocator: str = ""
    notes: tuple[str, ...] = ()
    unknown_bytes: int = 0
    estimate: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, ready for JSON."""
        return {
            "outcome": self.outcome,
            "message": self.message,
            "source": self.source,
            "device": self.device,
            "gpu": self.gpu,
            "setup": self.setup.to_dict(),
            **self.peaks.to_dict(),
            "components": asdict(self.components) if self.components else None,
            "phases": [phase.to_dict() for phase in self.phases],
            "holders": [asdict(holder) for holder in self.holders],
            "trainable_parameters": self.trainable_parameters,
            "step_seconds": self.step_seconds,
            "context_bytes": self.context_bytes,
            "context_source": self.context_source,
            "held_before_bytes": self.held_before_bytes,
            "versions": dict(self.versions),
            "allocator": self.allocator,
            "notes": list(self.notes),
            "unknown_bytes": self.unknown_bytes,
            "estimate": self.estimate.to_dict() if self.estimate else None,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunResult:
        """Read what `to_dict` wrote."""
        plain = ("outcome", "message", "source", "device", "gpu")
        figures = ("trainable_parameters", "step_seconds")
        account = ("context_bytes", "context_source", "held_before_bytes")
        estimate = document["estimate"]
        return cls(
            setup=Setup.from_mapping(document["setup"]),
            peaks=Peaks.from_dict(document),
            components=_components(document["components"]),
            phases=tuple(PhaseResult.from_dict(phase) for phase in document["phases"]),
            holders=tuple(Holder(**holder) for holder in document["holders"]),
            notes=tuple(document["notes"]),
            unknown_bytes=document.get("unknown_bytes", 0),
            estimate=Estimate.from_dict(estimate) if estimate else None,
            **{key: document[key] for key in (*plain, *figures, *account, "versions", "allocator")},
        )


def _components(document: Mapping[str, int] | None) -> Components | None:
    return Components(**document) if document is not None else None
