"""What becomes of every style of test that allocates in the pytest process, on a simulated GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.usefixtures("simulated_gpu"),
    pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="pytest has subtests from 9.0 on"),
]

SUITE = Path(__file__).with_name("styled_suite.py")

CONFTEST = """
    import json
    import pytest

    reports = []

    def pytest_collection_modifyitems(items):
        for item in items:
            if "limited_doctest" in item.name:
                item.add_marker(pytest.mark.max_vram("1GiB", metric="allocated"))

    def pytest_runtest_logreport(report):
        if report.when == "call" or not report.passed:
            reports.append(report)

    def pytest_sessionfinish():
        told = [
            {
                "test": report.nodeid.removeprefix("test_it.py::").removeprefix("test_it."),
                "became": "xfailed" if hasattr(report, "wasxfail") else report.outcome,
                "when": report.when,
                "text": f"{report.longrepr} {getattr(report, 'wasxfail', '')} {report.sections}",
            }
            for report in reports
        ]
        with open("told.json", "w") as file:
            json.dump(told, file)
"""

INCOMPLETE = "the test did not reach its end"
OOM = "CUDA out of memory"
OVER = "over the limit of 1.00 GiB by"
LIMIT = "llmmem: the limit of this test is 1.00 GiB"
VALUES = "values are not computed on a simulated GPU: "
# Added to an error that stands as it is.
NOTE = "llmmem: values are not computed"

#: What becomes of each test (of its subtests first), its outcome and message in the report, and
#: what its own report says.
EXPECTED: dict[str, tuple[str, str, str, str]] = {
    "Limited::test_within": ("passed", "ok", "", ""),
    "Limited::test_over": ("failed", "ok", "", OVER),
    "Limited::test_runs_out": ("failed", "oom", OOM, LIMIT),
    "Limited::test_fails": ("failed", "ok", INCOMPLETE, "AssertionError: 0.0 != 3"),
    "Limited::test_fails_over": ("failed", "ok", INCOMPLETE, OVER),
    "Limited::test_skips": ("skipped", "ok", INCOMPLETE, "my own reason"),
    "Limited::test_xfails_over": ("xfailed", "ok", INCOMPLETE, OVER),
    "Limited::test_expected_failure": ("xfailed", "ok", INCOMPLETE, ""),
    "Limited::test_expected_failure_over": ("xfailed", "ok", INCOMPLETE, OVER),
    "Limited::test_expected_to_run_out": ("xfailed", "oom", OOM, ""),
    "Limited::test_unexpected_success_over": ("failed", "ok", INCOMPLETE, OVER),
    "Limited::test_subtests": ("passed passed failed", "ok", "", OVER),
    "Limited::test_subtest_runs_out": ("passed failed passed passed", "oom", OOM, LIMIT),
    "SetUpRunsOut::test_body": ("failed", "oom", OOM, LIMIT),
    "TearDownRunsOut::test_body": ("failed", "oom", OOM, LIMIT),
    "HeldByTheClass::test_within": ("passed", "ok", "", ""),
    "HeldByTheClass::test_over": ("failed", "ok", "", OVER),
    "LimitedAsync::test_over": ("failed", "ok", "", OVER),
    "LimitedAsync::test_runs_out": ("failed", "oom", OOM, LIMIT),
    "limited_doctest_over": ("failed", "ok", "", OVER),
    "limited_doctest_runs_out": ("failed", "oom", OOM, LIMIT),
    "limited_doctest_fails_over": ("failed", "ok", INCOMPLETE, OVER),
    "test_fail_over": ("failed", "ok", INCOMPLETE, OVER),
    "test_xfail_over": ("xfailed", "ok", INCOMPLETE, OVER),
    "test_marked_xfail_over": ("xfailed", "ok", "", OVER),
    "test_skips_over": ("skipped", "ok", INCOMPLETE, "my own reason"),
    "test_a_group_with_one_that_ran_out": ("failed", "oom", OOM, LIMIT),
    "test_an_error_from_running_out": ("failed", "oom", OOM, LIMIT),
    "test_subtests_of_pytest": ("passed failed failed", "oom", OOM, LIMIT),
    "test_teardown_over": ("passed teardown-failed", "ok", "", OVER),
    "test_teardown_alone_over": ("passed teardown-failed", "ok", "", OVER),
    "test_teardown_does_not_count": ("passed", "ok", "", ""),
    "test_teardown_runs_out": ("passed teardown-failed", "oom", OOM, LIMIT),
    # Not about memory: only a failed comparison of values is skipped.
    "test_values_passes": ("passed", "ok", "", ""),
    "test_values_assert": ("skipped", "ok", INCOMPLETE, f"{VALUES}AssertionError: assert 0.0 == 3"),
    "test_values_guess": ("skipped", "ok", INCOMPLETE, VALUES),
    "test_values_torch_testing": ("skipped", "ok", INCOMPLETE, VALUES),
    "test_values_numpy_testing": ("skipped", "ok", INCOMPLETE, VALUES),
    "test_values_torch_testing_beside_memory": ("skipped", "ok", INCOMPLETE, VALUES),
    "test_values_group": ("skipped", "ok", INCOMPLETE, VALUES),
    "test_values_an_index_that_follows_from_a_guess": ("skipped", "ok", INCOMPLETE, VALUES),
    "test_values_fail_that_follows_from_a_guess": ("skipped", "ok", INCOMPLETE, VALUES),
    "test_values_subtests_of_pytest": ("skipped passed", "ok", INCOMPLETE, VALUES),
    "Values::test_assert": ("skipped", "ok", INCOMPLETE, f"{VALUES}AssertionError: 0.0 != 3"),
    "Values::test_fixture": ("skipped", "", "", VALUES),
    "Values::test_subtests": ("passed skipped passed", "ok", INCOMPLETE, VALUES),
    "Values::test_expected_failure": ("xfailed", "ok", INCOMPLETE, ""),
    "Values::test_error": ("failed", "ok", INCOMPLETE, "AttributeError"),
    "ValuesAsync::test_assert": ("skipped", "ok", INCOMPLETE, VALUES),
    "values_doctest": ("skipped", "ok", INCOMPLETE, f"{VALUES}DocTestFailure: unknown()"),
    "test_values_in_setup": ("setup-skipped", "", "", VALUES),
    "test_values_in_teardown": ("passed teardown-skipped", "", "", VALUES),
    # All else fails as it is.
    "test_host_values": ("failed", "ok", INCOMPLETE, "AssertionError"),
    "test_host_values_beside_a_tensor": ("failed", "ok", INCOMPLETE, "where False = tensor("),
    "test_host_shape_after_a_read": ("failed", "ok", INCOMPLETE, NOTE),
    "test_host_memory_after_a_read": ("failed", "ok", INCOMPLETE, NOTE),
    "test_error_attribute": ("failed", "ok", INCOMPLETE, "AttributeError"),
    "test_error_attribute_in_an_assertion": ("failed", "ok", INCOMPLETE, "AssertionError"),
    "test_error_import": ("failed", "ok", INCOMPLETE, "ModuleNotFoundError"),
    "test_error_out_of_memory": ("failed", "oom", OOM, "torch.OutOfMemoryError"),
    "test_error_value_after_a_float": ("failed", "ok", INCOMPLETE, NOTE),
    "test_error_in_setup": ("setup-failed", "", "", "AttributeError"),
}

GIB = 2**30


def test_every_style_of_test_has_its_outcome_its_record_and_its_verdict(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(CONFTEST)
    arguments = ("--llmmem-report=report.json", "--doctest-modules", "-opython_files=test_it.py")
    result = run_pytest(SUITE.read_text(), "--llmmem-device=sim:rtx4090", *arguments)

    told = json.loads(pytester.path.joinpath("told.json").read_text())
    became = {name: " ".join(_became(told, name)) for name in {each["test"] for each in told}}
    assert became == {name: expected[0] for name, expected in EXPECTED.items()}

    rows = json.loads(pytester.path.joinpath("report.json").read_text())
    records = {_name(row["test"]): (row["outcome"], row["message"] or "") for row in rows}
    assert set(records) == {name for name, expected in EXPECTED.items() if expected[1]}
    for name, (_, outcome, message, text) in EXPECTED.items():
        if outcome:
            assert records[name][0] == outcome, name
            assert records[name][1].startswith(message), name
            assert bool(records[name][1]) == bool(message), name
        assert any(text in each["text"] for each in told if each["test"] == name), name

    assert _peak(rows, "test_teardown_over") == 1026 << 20
    assert _peak(rows, "test_teardown_does_not_count") == 512 << 20
    for name in ("test_error_attribute", "Values::test_error", "test_error_import"):
        assert not any(NOTE in each["text"] for each in told if each["test"] == name)
    compared = sum(VALUES in each["text"] for each in told)
    result.stdout.fnmatch_lines(
        [
            "llmmem: 33 gated = 0 measured + 33 simulated + 0 estimated, 0 not measured",
            f"llmmem: {compared} skipped: values are not computed on a simulated GPU",
        ]
    )


def _became(told: list[dict[str, str]], name: str) -> list[str]:
    return [
        each["became"] if each["when"] == "call" else f"{each['when']}-{each['became']}"
        for each in told
        if each["test"] == name
    ]


def _name(test: str) -> str:
    return test.removeprefix("test_it.py::").removeprefix("test_it.")


def _peak(rows: list[dict[str, int]], name: str) -> int:
    """The peak of a test, without what is rounded up to the allocator's blocks."""
    (row,) = (row for row in rows if _name(str(row["test"])) == name)
    return row["peak_allocated_bytes"] >> 20 << 20
