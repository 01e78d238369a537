"""The object that the fixture `vram` returns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmmem.errors import InputError, UnsupportedError
from llmmem.execution.runner import DEFAULT_TIMEOUT
from llmmem.report import Record
from llmmem.results import PHASES, PhaseResult, RunResult
from llmmem.setups import Setup, load_setup
from pytest_llmmem.gate import GATE
from pytest_llmmem.session import SESSION
from pytest_llmmem.verdicts import run_failed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmmem.devices import Device
    from llmmem.execution.runner import Runner
    from llmmem.measurement.window import Window
    from llmmem.results import Estimate
    from pytest_llmmem.gate import Gate
    from pytest_llmmem.session import Session

__all__ = ["Vram", "vram_of"]


class Vram:
    """Runs, estimates and measures for one test, and applies the test's limit to the results."""

    def __init__(self, gate: Gate, session: Session, root: Path) -> None:
        self._gate = gate
        self._session = session
        self._root = root

    @property
    def device(self) -> Device:
        """The device that `run` uses; ``auto`` is already resolved."""
        return self._runner().device

    def run(
        self,
        setup: Setup | Mapping[str, Any] | str | Path,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> RunResult:
        """Run a setup in its own process and measure it.

        The outcomes ``oom``, ``crashed`` and ``timeout`` fail the test; ``unsupported`` skips it. If this
        machine cannot run the setup, the result is an estimate. The test's limit applies to estimates
        only with ``--llmmem-device=estimate``.

        Args:
            setup: A setup, its keys, or the path of a .toml or .json file (relative to rootdir).
            timeout: Seconds after which the run is killed.

        Raises:
            InputError: The setup is not valid.
        """
        __tracebackhide__ = True
        runner = self._runner()
        if runner.device.kind == "estimate":
            estimate = self._estimate(self._setup(setup))
            if estimate.trace.outcome == "oom" and self._is_estimate_asked_for:
                record = Record.from_estimate(estimate, **self._limit_fields())
                pytest.fail(run_failed(record, self._gate.limit), pytrace=False)
            return self._run_of_estimate(estimate)
        from llmmem.measurement.window import release_cached_memory

        release_cached_memory()
        try:
            result = runner.run(self._setup(setup), timeout=timeout, cap=self._cap())
        except UnsupportedError as error:
            self._gate.give_up(str(error))
        if result.outcome == "unsupported":
            self._gate.add(Record.from_run(result, test=self._gate.test))
            self._gate.give_up(result.message)
        record = Record.from_run(result, test=self._gate.test, **self._limit_fields())
        top_allocations = [
            (f"{each.component}, {each.module}", each.bytes) for each in result.holders
        ]
        self._gate.add(record, top_allocations)
        if result.outcome != "ok":
            pytest.fail(run_failed(record, self._gate.limit, top_allocations), pytrace=False)
        return result

    def estimate(
        self, setup: Setup | Mapping[str, Any] | str | Path, *, gpu: str | None = None
    ) -> Estimate:
        """Estimate a setup without running it.

        The test's limit applies to the estimate only with ``--llmmem-device=estimate``.

        Args:
            setup: A setup, its keys, or the path of a .toml or .json file (relative to rootdir).
            gpu: The card to assume; by default the session's.

        Raises:
            InputError: The setup or the card is not valid.
        """
        __tracebackhide__ = True
        return self._estimate(self._setup(setup), gpu)

    @contextmanager
    def measure(self, name: str) -> Iterator[Window]:
        """Measure a part of the test, in this process.

        Example:
            >>> with vram.measure("forward") as forward:
            ...     model(batch)
            >>> forward.measurement.peaks.allocated

        Args:
            name: What the report calls the part, in its column ``phase``.

        Raises:
            InputError: The name is empty or reserved: ``total``, a phase or a device such as ``cuda:0``.
        """
        __tracebackhide__ = True
        if not name or name == "total" or name in PHASES or re.fullmatch(r"cuda:\d+", name):
            raise InputError(
                f"invalid name {name!r}: expected a name that reports do not use themselves "
                f"(reserved: total, {', '.join(PHASES)}, cuda:N)"
            )
        if not self._session.has_gpu():
            self._gate.give_up_without_gpu(self._session.advice())
        from llmmem.measurement.window import Window

        self._session.initialise_cuda()
        window = Window(source_lines=True, metric=self._limit_fields().get("metric", "process"))
        with window:
            yield window
        seen = window.measurement
        self._gate.parts.append(PhaseResult(name, seen.peaks))

    def _runner(self) -> Runner:
        __tracebackhide__ = True
        try:
            return self._session.runner()
        except UnsupportedError as error:
            self._gate.give_up_without_gpu(str(error))

    def _setup(self, setup: Setup | Mapping[str, Any] | str | Path) -> Setup:
        __tracebackhide__ = True
        if isinstance(setup, Setup):
            return setup
        if isinstance(setup, Mapping):
            return Setup.from_mapping(setup)
        if isinstance(setup, (str, Path)) and Path(setup).suffix in (".toml", ".json"):
            return load_setup(self._root / setup)
        raise InputError(
            f"invalid setup {setup!r}: expected a Setup, its keys, or the path of a .toml or .json"
        )

    def _estimate(self, setup: Setup, gpu: str | None = None) -> Estimate:
        __tracebackhide__ = True
        try:
            estimate = self._runner().estimate(setup, gpu)
        except UnsupportedError as error:
            self._gate.give_up(str(error))
        limit_fields = self._limit_fields() if self._is_estimate_asked_for else {}
        self._gate.add(Record.from_estimate(estimate, test=self._gate.test, **limit_fields))
        return estimate

    def _run_of_estimate(self, estimate: Estimate) -> RunResult:
        """The result of an estimate, in the form of a run: requested, or because nothing can run here."""
        if not self._is_estimate_asked_for:
            self._gate.add_unmeasured(
                "it was only estimated, because there is neither a GPU nor a simulated one here; with "
                "--llmmem-device=estimate, limits apply to estimates"
            )
        trace = estimate.trace
        return RunResult(
            setup=estimate.setup,
            device="estimate",
            source="estimated",
            outcome=trace.outcome,
            message=trace.message,
            gpu=estimate.gpu,
            peaks=trace.peaks,
            components=trace.components,
            phases=trace.phases,
            context_bytes=trace.context_bytes,
            context_source="modelled",
            versions=estimate.versions,
            notes=trace.assumptions,
            unknown_bytes=trace.unknown_bytes,
            estimate=estimate,
        )

    @property
    def _is_estimate_asked_for(self) -> bool:
        return self._session.options.device.kind == "estimate"

    def _cap(self) -> str | None:
        """The card of the marker, whose memory is the most that the test can use."""
        limit = self._gate.limit
        return limit.gpu.name if limit is not None and limit.gpu is not None else None

    def _limit_fields(self) -> dict[str, Any]:
        limit = self._gate.limit
        if limit is None:
            return {}
        return {"metric": limit.metric, "limit": limit.written, "limit_bytes": limit.bytes}


def vram_of(item: pytest.Item) -> Vram:
    """The fixture of a test."""
    return Vram(item.stash[GATE], item.config.stash[SESSION], item.config.rootpath)
