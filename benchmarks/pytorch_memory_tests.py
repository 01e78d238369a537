"""PyTorch's own tests of GPU memory on the simulated GPU.

    python benchmarks/pytorch_memory_tests.py CHECKOUT [TEST ...]

Runs ``test/test_cuda.py`` of a checkout of PyTorch that fits the installed one, with each of
:data:`SETTINGS`, and writes ``reports/pytorch-memory-tests.md`` and ``.csv``. Only tests that assert
memory run: those whose source, or the source of a helper in the same file that they call, has one
of :data:`MEMORY_NAMES`. With names of tests only these run, and the page is printed and not written.

The exit code is 1 where a test fails that :data:`KNOWN` does not explain, or where an explanation
is stale. The tests need expecttest, and psutil; some skip without torchvision or nvidia-ml-py.
"""

from __future__ import annotations

import ast
import csv
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEVICE = "sim:h100"
REPORT = Path(__file__).parents[1] / "reports" / "pytorch-memory-tests.md"
LONGEST_MESSAGE = 160
#: Seconds after which a test counts as failed.
TIMEOUT = 240

#: The settings that the tests run with: environment variables, by name.
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "expandable segments": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    "side streams late": {"LLMMEM_SIDE_STREAMS": "late"},
}

#: What a test that asserts memory has in its source.
MEMORY_NAMES = re.compile(
    r"""
    memory_(allocated|reserved|cached|stats|summary|snapshot|fraction|used|usage|use|history)
    | mem_get_info | list_gpu_processes | caching_?allocator | allocator_settings | alloc_conf
    | _snapshot\b | reset_peak | get_allocator_backend | out_?of_?memory | out\ of\ memory | oom\b
    | mem_?pool | pool_id | pluggable | expandable_segments | gc_threshold | garbage_collect
    | max_split | roundup_power2 | record_stream | cudaHost | cudagraph_segments | memory_leak
    | pinned_memory | pin_memory | is_pinned | LiveAllocations | CheckpointState
    """,
    re.VERBOSE | re.IGNORECASE,
)

DONE_AT_ONCE = "needs a side stream that is busy: passes with LLMMEM_SIDE_STREAMS=late"
BUSY_GPU = "needs a main stream that is busy: the simulated GPU's work is done at once"
NO_VALUES = "asserts what a kernel computes"

#: Why a test fails on the simulated GPU, by its name without parameters.
KNOWN: Mapping[str, str] = {
    "test_assigning_back_deleter_fns_to_tensor": NO_VALUES,
    "test_caching_pinned_memory": BUSY_GPU,
    "test_graph_two_successive": NO_VALUES,
    "test_record_stream": DONE_AT_ONCE,
    "test_record_stream_on_shifted_view": DONE_AT_ONCE,
    "test_to_non_blocking": DONE_AT_ONCE,
}

RANDOM_STATE = "a graph's random state has since come to take other blocks"
POOL_CONTEXT = "MemPoolContext is gone, and the pool's functions have changed"

#: Why a test fails on any GPU: the checkout is older than the installed PyTorch, or no network.
NOT_THE_GPU: Mapping[str, str] = {
    "test_allocate_in_thread_to_pool": "private functions that it calls are gone",
    "test_allocator_settings": "settings that are wrong raise ValueError since",
    "test_cublas_workspace_explicit_allocation": "CUBLAS_WORKSPACE_CONFIG is read only once since",
    "test_graph_memory_stats_and_use_result_after_destroy_graph": RANDOM_STATE,
    "test_memory_stats_of_multiple_generators_and_graphs": RANDOM_STATE,
    "test_memory_snapshot": "PyTorch downloads flamegraph.pl, and there is no network",
    "test_mempool_context": POOL_CONTEXT,
    "test_mempool_multithread": POOL_CONTEXT,
    "test_mempool_with_allocator": POOL_CONTEXT,
}


@dataclass(frozen=True)
class Result:
    """How one test ended with one setting."""

    settings: str
    test: str  #: ``class::name``, with parameters
    outcome: str  #: ``passed``, ``failed``, ``not the GPU`` or ``skipped``
    message: str  #: what a failure or a skip says
    explanation: str  #: why it fails, from :data:`KNOWN` or :data:`NOT_THE_GPU`


def main(checkout: Path, chosen: list[str]) -> int:
    """Run the tests and write or print the report; the exit code."""
    path = checkout / "test" / "test_cuda.py"
    methods = memory_tests(path.read_text(encoding="utf-8"))
    if chosen:
        methods = [method for method in methods if method.split("::")[1] in chosen]
    results = [result for settings in SETTINGS for result in run_tests(path, methods, settings)]
    markdown = page(checkout, results)
    if chosen:
        print(markdown)
    else:
        REPORT.write_text(markdown, encoding="utf-8")
        write_csv(results, REPORT.with_suffix(".csv"))
    for result in unexplained(results):
        print(f"not explained: {result.test} ({result.settings})")
    for name in () if chosen else stale(results):
        print(f"explained, and passes: {name}")
    return 1 if unexplained(results) or (not chosen and stale(results)) else 0


def memory_tests(source: str) -> list[str]:
    """The tests of a file that assert memory, as ``class::name`` without parameters."""
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [
        f"{group.name}::{name}"
        for group in tree.body
        if isinstance(group, ast.ClassDef)
        for methods in [{n.name: n for n in group.body if isinstance(n, ast.FunctionDef)}]
        for name in methods
        if name.startswith("test") and asserts_memory(name, functions | methods)
    ]


def asserts_memory(name: str, functions: Mapping[str, ast.FunctionDef]) -> bool:
    """Whether a function, or one of these that it calls, names memory; comments do not count."""
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        if MEMORY_NAMES.search(ast.unparse(functions[current])):
            return True
        waiting += names(functions[current]) & functions.keys() - seen
    return False


def names(function: ast.FunctionDef) -> set[str]:
    """The names and attributes that a function uses."""
    nodes = list(ast.walk(function))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def run_tests(path: Path, methods: list[str], settings: str) -> list[Result]:
    """Run these tests of a file with one setting.

    Those that fail for no known reason run again, without the others: one that fails can leave
    tensors behind.
    """
    names = " or ".join(sorted({method.split("::")[1] for method in methods}))
    results = run_pytest(path, ["-k", names, str(path)], methods, settings)
    if not results:
        sys.exit(f"no test of {path} ran")
    again = [f"{path}::{result.test}" for result in unexplained(results)]
    if not again:
        return results
    second = {result.test: result for result in run_pytest(path, again, methods, settings)}
    return [second.get(result.test, result) for result in results]


def run_pytest(path: Path, tests: list[str], methods: list[str], settings: str) -> list[Result]:
    """Run pytest on a simulated GPU; the results of the chosen tests.

    pytest-xdist keeps a test that ends its interpreter, or that hangs, from ending the run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        junit = Path(scratch) / "results.xml"
        # The checkout's own configuration and conftest.py are made for PyTorch's CI.
        options = ["--noconftest", "-c", os.devnull, "--rootdir", str(path.parent)]
        options += ["-p", "no:llmmem", "-p", "no:cacheprovider", "-q", "--junitxml", str(junit)]
        options += ["-n1", "--max-worker-restart=100"]
        options += ["-o", f"faulthandler_timeout={TIMEOUT}"]
        options += ["-o", "faulthandler_exit_on_timeout=true"]
        program = [sys.executable, "-m", "pytest", *options, *tests]
        simulated = [sys.executable, "-m", "llmmem", "exec", "--device", DEVICE, "--", *program]
        environment = os.environ | SETTINGS[settings]
        subprocess.run(simulated, check=False, cwd=path.parent, env=environment)
        return read_results(junit, methods, settings)


def read_results(junit: Path, methods: list[str], settings: str) -> list[Result]:
    """The results of the chosen tests in pytest's XML report.

    ``-k`` selects by parts of names, so there can be others. A test that fails and whose teardown
    fails too is there twice: the first counts.
    """
    results: dict[str, Result] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        group, name = case.attrib["classname"].split(".")[-1], case.attrib["name"]
        method = method_of(group, name, methods)
        if method is not None:
            test = f"{group}::{name}"
            results.setdefault(test, ending(case, test, method.split("::")[1], settings))
    return list(results.values())


def ending(case: ElementTree.Element, test: str, name: str, settings: str) -> Result:
    """How a test ended, and what explains it."""
    problem = next((child for child in case if child.tag in OUTCOMES), None)
    if problem is None:
        return Result(settings, test, "passed", "", "")
    outcome, message = OUTCOMES[problem.tag], " ".join(problem.attrib.get("message", "").split())
    if outcome == "failed" and name in NOT_THE_GPU:
        return Result(settings, test, "not the GPU", message, NOT_THE_GPU[name])
    return Result(settings, test, outcome, message, KNOWN.get(name, "") * (outcome == "failed"))


#: What an element of pytest's XML report says of a test.
OUTCOMES: Mapping[str, str] = {"failure": "failed", "error": "failed", "skipped": "skipped"}


def method_of(group: str, name: str, methods: Iterable[str]) -> str | None:
    """The test that a name with parameters comes from.

    PyTorch appends parameters to the name, and the device type to both names.
    """
    for method in sorted(methods, key=len, reverse=True):
        group_start, name_start = method.split("::")
        if group.startswith(group_start) and re.match(rf"{name_start}(_|$)", name):
            return method
    return None


def unexplained(results: Iterable[Result]) -> list[Result]:
    """The tests that fail, and nothing says why."""
    return [result for result in results if result.outcome == "failed" and not result.explanation]


def stale(results: Iterable[Result]) -> list[str]:
    """The tests that :data:`KNOWN` explains and that no longer fail."""
    names = [f"::{name}" for name in KNOWN]
    failing = [result.test.split("::")[1] for result in results if result.outcome == "failed"]
    used = {method_of("", name, names) for name in failing}
    return [name for name in KNOWN if f"::{name}" not in used]


def write_csv(results: Iterable[Result], path: Path) -> None:
    """Write a row for each test and setting."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Result.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)


def page(checkout: Path, results: list[Result]) -> str:
    """The report as Markdown."""
    tests_of = (checkout / "version.txt").read_text(encoding="utf-8").strip()
    return "\n".join(
        [
            f"# PyTorch's own memory tests on {DEVICE}",
            "",
            f"Made by `python benchmarks/{Path(__file__).name} CHECKOUT`: the tests of `test/test_cuda.py` "
            f"of PyTorch {tests_of} that assert memory, run with PyTorch {version('torch')}. A test is "
            "one of these if its source, or that of a helper in the same file that it calls, names a "
            "function, an error or a setting of memory; the script has the rule. Nothing in them is "
            "changed. Tests that fail for no known reason run again without the others, and that "
            "counts. *Failed on a value*: the assertion that fails compares what a kernel computes, "
            "which is not simulated. *Not the GPU*: a test that fails on any GPU here, since PyTorch "
            "itself has changed after the checkout, or for want of a network.",
            "",
            tabulate(counts(results), "keys", "pipe"),
            *section("Tests that fail", [r for r in results if r.outcome == "failed"]),
            *section(
                "Tests that fail on any GPU", [r for r in results if r.outcome == "not the GPU"]
            ),
            *section("Tests that skip themselves", [r for r in results if r.outcome == "skipped"]),
            "",
        ]
    )


def counts(results: Sequence[Result]) -> list[dict[str, object]]:
    """How the tests ended, for each setting."""
    totals = Counter((result.settings, result.outcome) for result in results)
    values = Counter(result.settings for result in results if result.explanation == NO_VALUES)
    return [
        {
            "setting": settings,
            "passed": passed,
            "failed on memory": failed,
            "failed on a value": values[settings],
            "not the GPU": totals[settings, "not the GPU"],
            "skipped": totals[settings, "skipped"],
            "passed of those decided by memory": f"{100 * passed / max(passed + failed, 1):.1f}%",
        }
        for settings in SETTINGS
        for passed in [totals[settings, "passed"]]
        for failed in [totals[settings, "failed"] - values[settings]]
    ]


def section(title: str, results: list[Result]) -> list[str]:
    """A table of tests that did not pass, each with its reason; one row where settings agree."""
    if not results:
        return []
    rows: dict[tuple[str, str], list[str]] = {}
    for result in results:
        reason = result.explanation or textwrap.shorten(result.message, LONGEST_MESSAGE)
        rows.setdefault((result.test, reason.replace("|", "\\|")), []).append(result.settings)
    lines = [
        {"test": f"`{test}`", "setting": ", ".join(settings), "reason": reason}
        for (test, reason), settings in rows.items()
    ]
    return ["", f"## {title}", "", tabulate(lines, "keys", "pipe", disable_numparse=True)]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
