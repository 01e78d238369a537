"""PyTorch's operators, with sample inputs of its own tests: the peak of the run and of the estimate.

    python benchmarks/operators.py [OPERATOR ...]

Takes the operators of ``torch.testing._internal.common_methods_invocations.op_db`` and the first
:data:`SAMPLES` inputs of each, forward and backward, on a simulated GPU and in `llmmem.estimate`,
and writes ``reports/operators.md`` and ``.csv``. With names of operators only these are compared,
and the page is printed. The samples are small: a block of 512 bytes too many or too few shows.
PyTorch's test library needs expecttest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tabulate import tabulate
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GPU = "h100"
SAMPLES = 4
SECONDS = 60  # for one operator
REPORT = Path(__file__).parents[1] / "reports" / "operators.md"


@dataclass(frozen=True)
class Peak:
    """What one operator took with one input: bytes, or why there are none."""

    allocated: int | None
    reserved: int | None
    error: str = ""


def main(chosen: Sequence[str]) -> None:
    """Compare, and write or print the report."""
    ran, estimated = (peaks_of(kind, chosen) for kind in ("run", "estimate"))
    lines = pd.DataFrame(
        {"operator": name, "outcome": outcome, "reason": reason}
        for name in ran
        for outcome, reason in [compared(ran[name], estimated.get(name, []))]
    )
    if chosen:
        print(lines.to_string())
        return
    REPORT.write_text(page(lines), encoding="utf-8")
    lines.to_csv(REPORT.with_suffix(".csv"), index=False, lineterminator="\n")


def peaks_of(kind: str, chosen: Sequence[str]) -> dict[str, list[Peak]]:
    """The peaks of all operators, taken in a process of their own, which has a simulated GPU or none."""
    program = [sys.executable, __file__, f"--{kind}", *chosen]
    if kind == "run":
        program = [sys.executable, "-m", "llmmem", "exec", "--device", f"sim:{GPU}", "--", *program]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"operator')]
    return {row["operator"]: [Peak(**peak) for peak in row["peaks"]] for row in rows}


def compared(ran: Sequence[Peak], estimated: Sequence[Peak]) -> tuple[str, str]:
    """The outcome of the least equal input, and what is known of it."""
    worst = ("not run", ran[0].error if ran else "")
    order = ["not run", "equal", "refused", "differs"]
    for run, estimate in zip(ran, estimated, strict=False):
        if run.error:
            continue
        if estimate.error:
            found = "refused", estimate.error
        elif (run.allocated, run.reserved) == (estimate.allocated, estimate.reserved):
            found = "equal", ""
        else:
            sizes = f"run {run.allocated:,} B, estimate {estimate.allocated:,} B"
            found = "differs", sizes
        worst = max(worst, found, key=lambda outcome: order.index(outcome[0]))
    return worst


def page(lines: pd.DataFrame) -> str:
    """The report as Markdown."""
    counts = Counter(lines["outcome"])
    compared_ones = sum(counts.values()) - counts["not run"]
    sections = [
        section("Operators that differ", lines[lines["outcome"] == "differs"]),
        section("Operators that are refused", lines[lines["outcome"] == "refused"]),
        section("Operators that do not run", lines[lines["outcome"] == "not run"]),
    ]
    return (
        f"# Operators on sim:{GPU}, run and estimated\n\n"
        f"Made by `python benchmarks/operators.py` (torch {torch.__version__}): the operators that "
        f"PyTorch tests, each with the first {SAMPLES} inputs of PyTorch's tests, forward and "
        "backward. *Equal*: the estimate has the run's allocated and reserved peaks, to the byte, "
        "with all of these inputs. Of those that differ, many are named in the assumptions of an "
        "estimate that they are part of.\n\n"
        f"{compared_ones} operators run: {counts['equal']} are equal, {counts['refused']} refused, "
        f"{counts['differs']} differ.\n" + "".join(sections)
    )


def section(title: str, lines: pd.DataFrame) -> str:
    """A table of operators with their reasons."""
    if lines.empty:
        return ""
    table = lines[["operator", "reason"]].map(lambda text: str(text).replace("|", "\\|"))
    return f"\n## {title}\n\n{tabulate(table, 'keys', 'pipe', showindex=False)}\n"


# In the processes that run and that estimate.


def print_peaks(kind: str, chosen: Sequence[str]) -> None:
    """Print one JSON document for each operator, each from a fork of this process."""
    warnings.simplefilter("ignore")
    import llmmem

    operators = test_operators()
    if kind == "estimate":  # what is imported for a first estimate is shared
        llmmem.estimate(lambda: torch.ones(2, device="cuda"), GPU)
    take = run if kind == "run" else estimate
    for operator in operators:
        name = operator.name + f".{operator.variant_test_name}".rstrip(".")
        if chosen and operator.name not in chosen:
            continue
        sys.stdout.flush()
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            code = 1
            try:
                peaks = [vars(take(operator, sample)) for sample in samples(operator)]
                print(json.dumps({"operator": name, "peaks": peaks}), flush=True)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if status:
            failed = Peak(None, None, f"ended with status {status}")
            print(json.dumps({"operator": name, "peaks": [vars(failed)]}))


def test_operators() -> list[Any]:
    """PyTorch's list of operators, without the start of CUDA and the locks that come with it."""
    is_available, disable = torch.cuda.is_available, torch.backends.disable_global_flags
    torch.cuda.is_available = lambda: False
    torch.backends.disable_global_flags = lambda: None
    try:
        from torch.testing._internal.common_methods_invocations import op_db
    finally:
        torch.cuda.is_available = is_available
        torch.backends.disable_global_flags = disable
    listed: list[Any] = op_db
    return listed


def samples(operator: Any) -> Iterator[Any]:
    """The first inputs of an operator, on the host."""
    dtypes = [d for d in (torch.float32, torch.complex64, torch.int64) if d in operator.dtypes]
    torch.manual_seed(0)
    has_gradient = operator.supports_autograd and dtypes[0] != torch.int64
    given = operator.sample_inputs("cpu", dtypes[0], requires_grad=has_gradient)
    for _, sample in zip(range(SAMPLES), given, strict=False):
        yield sample


def call(operator: Any, sample: Any) -> None:
    """Forward and backward on the GPU."""

    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().to("cuda").requires_grad_(value.requires_grad)

    first, args, kwargs = tree_map(move, (sample.input, sample.args, sample.kwargs))
    outputs = [
        value
        for value in tree_leaves(operator(first, *args, **kwargs))
        if isinstance(value, torch.Tensor) and value.requires_grad and value.dtype.is_floating_point
    ]
    if operator.supports_autograd and outputs:
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def run(operator: Any, sample: Any) -> Peak:
    """The peak on the simulated GPU."""
    torch.cuda.init()
    torch.cuda.empty_cache()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.reset_peak_memory_stats()
    try:
        call(operator, sample)
    except Exception as error:
        return Peak(None, None, shortened(error))
    return Peak(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())


def estimate(operator: Any, sample: Any) -> Peak:
    """The peak in the trace."""
    import llmmem

    try:
        trace = llmmem.estimate(lambda: call(operator, sample), GPU)
    except Exception as error:
        return Peak(None, None, shortened(error))
    if trace.outcome != "ok":
        return Peak(None, None, shortened(trace.message))
    return Peak(trace.peaks.allocated, trace.peaks.reserved)


def shortened(error: object) -> str:
    """The first line, up to 160 characters."""
    name = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    return (name + str(error).partition("\n")[0])[:160]


if __name__ == "__main__":
    if sys.argv[1:2] in (["--run"], ["--estimate"]):
        print_peaks(sys.argv[1].removeprefix("--"), sys.argv[2:])
    else:
        main(sys.argv[1:])
