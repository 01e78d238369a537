from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

MARKED = """
    import pytest
    import torch

    @pytest.mark.parametrize("mib", [1, 2])
    @pytest.mark.max_vram("1GiB")
    def test_marked(mib):
        torch.empty(mib << 20, dtype=torch.uint8, device="cuda")
"""


def test_with_plugins_named_one_by_one_every_worker_has_its_simulated_gpu(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    simulated_gpu: None,
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = run_pytest(
        MARKED,
        "-p",
        "pytest_llmmem.plugin",
        "-p",
        "xdist",
        "-n2",
        "--llmmem-device=sim:t4",
        "--llmmem-report=report.json",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["llmmem: 2 gated = 0 measured + 2 simulated + 0 estimated, 0 not measured"]
    )
    rows = json.loads(pytester.path.joinpath("report.json").read_text())
    assert sorted(row["peak_allocated_bytes"] >> 20 for row in rows) == [1, 2]


def test_a_worker_that_crashes_is_named_and_the_others_are_reported(
    run_pytest: Callable[..., pytest.RunResult], no_gpu: None
) -> None:
    result = run_pytest(
        """
        import os
        import pytest

        def test_crash():
            os._exit(3)

        @pytest.mark.max_vram("1GiB")
        def test_marked():
            pass
        """,
        "-n1",
        "--llmmem-report=report.csv",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "llmmem: 0 gated = 0 measured + 0 simulated + 0 estimated, 1 not measured",
            "llmmem: worker gw0 crashed: the test it was running is not measured",
            "llmmem: report written to *report.csv (0 records)",
        ]
    )


def test_it_works_without_xdist(run_pytest: Callable[..., pytest.RunResult], no_gpu: None) -> None:
    result = run_pytest("def test_plain(vram): pass", "-p", "no:xdist", "--llmmem-report=a.csv")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
