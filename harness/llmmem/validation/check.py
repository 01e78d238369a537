"""Runs and estimates each setup of the matrix, and adds a row to a table that can be resumed."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

from llmmem.errors import InputError
from llmmem.execution.runner import Runner
from llmmem.results import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from llmmem.results import RunResult
    from llmmem.validation.matrix import Case

__all__ = ["ROW_FIELDS", "Row", "validate"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case of the matrix, run and estimated. Sizes are bytes; ``None`` is not known.

    Attributes:
        setup: The setup, as `Setup.key`.
        model: Its model.
        task: Its task.
        mode: Its mode.
        method: Its quantization and adapter: ``full``, ``nf4 LORA``, ``IA3``.
        optimizer: Its optimizer.
        is_held_out: Whether the setup was kept back while the estimates were developed.
        run_outcome: The outcome of the run; ``invalid`` if the libraries reject the setup.
        trace_outcome: The outcome of the trace.
        message: Why, if one of them is not ok.
        run_allocated: The allocated peak of the run.
        trace_allocated: The same of the trace.
        run_reserved: The reserved peak of the run.
        trace_reserved: The same of the trace.
        weights_error: Weights at the allocated peak, trace minus run.
        gradients_error: The same of gradients.
        optimizer_error: The same of optimizer state.
        activations_error: The same of activations.
        temporaries_error: The same of temporaries.
        phases_equal: Whether all phases have the same allocated and reserved peaks and components.
        rule_allocated: The allocated peak according to the closed form.
    """

    setup: str
    model: str
    task: str
    mode: str
    method: str
    optimizer: str | None
    is_held_out: bool
    run_outcome: str
    trace_outcome: str
    message: str
    run_allocated: int | None = None
    trace_allocated: int | None = None
    run_reserved: int | None = None
    trace_reserved: int | None = None
    weights_error: int | None = None
    gradients_error: int | None = None
    optimizer_error: int | None = None
    activations_error: int | None = None
    temporaries_error: int | None = None
    phases_equal: bool | None = None
    rule_allocated: int | None = None


ROW_FIELDS = tuple(field.name for field in fields(Row))


def validate(
    cases: Iterable[Case],
    device: str,
    path: Path,
    *,
    jobs: int = 1,
    host_memory: int | None = None,
    progress: Callable[[Row], None] = lambda row: None,
) -> None:
    """Run and estimate the cases that are not yet in the table at `path`, and append their rows.

    An error or an interrupt kills the runs in progress; the rows so far remain.

    Args:
        cases: The cases.
        device: Where to run them.
        path: The table, a .csv; created if it does not exist.
        jobs: The number of cases to run in parallel, each in its own processes.
        host_memory: As in `Runner`, for each case.
        progress: Called with each new row.

    Raises:
        InputError: The device is not valid.
        UnsupportedError: The device is not available on this machine.
    """
    done = set(_setups_of(path))
    left = [case for case in cases if case.setup.key() not in done]
    lock = Lock()
    with ExitStack() as stack:
        runners = [
            stack.enter_context(Runner(device, host_memory=host_memory)) for _ in range(jobs)
        ]
        idle: SimpleQueue[Runner] = SimpleQueue()
        for runner in runners:
            idle.put(runner)

        def check(case: Case) -> None:
            runner = idle.get()
            try:
                row = _row(case, runner.run(case.setup))
            except InputError as error:
                row = _refused(case, str(error))
            finally:
                idle.put(runner)
            with lock:
                _append(path, row)
                progress(row)

        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        futures = [pool.submit(check, case) for case in left]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                for runner in runners:  # one may just have begun
                    runner.close()
                wait(futures, timeout=0.05)
            raise


def _setups_of(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            yield from (row["setup"] for row in csv.DictReader(file))


def _append(path: Path, row: Row) -> None:
    is_new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(ROW_FIELDS)
        writer.writerow("" if value is None else value for value in astuple(row))


def _refused(case: Case, message: str) -> Row:
    return _of_case(case, run_outcome="invalid", trace_outcome="invalid", message=message)


def _row(case: Case, run: RunResult) -> Row:
    trace = run.estimate.trace if run.estimate is not None else None
    messages = [run.message, trace.message if trace is not None else " ".join(run.notes)]
    errors: dict[str, int | None] = {}
    if run.outcome == "ok" and trace is not None and trace.components and run.components:
        for name in COMPONENTS:
            error = getattr(trace.components, name) - getattr(run.components, name)
            errors[f"{name}_error"] = error
    return _of_case(
        case,
        run_outcome=run.outcome,
        trace_outcome="none" if trace is None else trace.outcome,
        message="; ".join(dict.fromkeys(filter(None, messages))),
        run_allocated=run.peaks.allocated,
        trace_allocated=None if trace is None else trace.peaks.allocated,
        run_reserved=run.peaks.reserved,
        trace_reserved=None if trace is None else trace.peaks.reserved,
        phases_equal=None if trace is None else _phases(run) == _phases(trace),
        rule_allocated=None if run.estimate is None else run.estimate.rules.peak_allocated_bytes,
        **errors,
    )


def _of_case(case: Case, **found: Any) -> Row:
    setup = case.setup
    return Row(
        setup=setup.key(),
        model=setup.model,
        task=setup.task,
        mode=setup.mode,
        method=_method(case),
        optimizer=setup.optimizer,
        is_held_out=case.is_held_out,
        **found,
    )


def _method(case: Case) -> str:
    setup = case.setup
    parts = [] if setup.quantization == "none" else [str(setup.quantization)]
    if not isinstance(setup.adapter, str) and setup.adapter is not None:
        parts.append(str(setup.adapter["peft_type"]))
    return " ".join(parts) or "full"


def _phases(result: object) -> list[object]:
    return [
        (phase.phase, phase.peaks.allocated, phase.peaks.reserved, phase.components)
        for phase in getattr(result, "phases", ())
    ]
