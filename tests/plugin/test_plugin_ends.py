"""How sessions end: killed, interrupted, with odd names; and those that run no test at all."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import pandas as pd  # noqa: F401, before pytester, which forgets what tests import
import pytest

from llmmem import load_report

if TYPE_CHECKING:
    from collections.abc import Callable

REPORTS = ("--llmmem-report=out.csv", "--llmmem-report=out.json", "--llmmem-report=out.md")

ENDS = """
    import os
    import signal
    import pytest
    import torch

    @pytest.mark.max_vram("1GiB")
    def test_before():
        torch.empty(1 << 20, dtype=torch.uint8, device="cuda")

    def test_that_ends_the_session():
        {end}

    def test_after():
        torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
"""


@pytest.mark.parametrize(
    ("end", "workers"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", "-n0"),
        ("os.kill(os.getppid(), signal.SIGKILL)", "-n1"),
    ],
)
def test_a_session_that_ends_early_leaves_what_it_had_and_says_that_it_is_incomplete(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    simulated_gpu: None,
    end: str,
    workers: str,
) -> None:
    for suffix in ("csv", "json", "md"):
        pytester.path.joinpath(f"out.{suffix}").write_text("of an older session")

    run_pytest(ENDS.format(end=end), "--llmmem-device=sim:t4", workers, *REPORTS)

    for suffix in ("csv", "json"):
        report = load_report(pytester.path / f"out.{suffix}")
        assert list(report["phase"]) == ["session", "total"]
        assert list(report["outcome"]) == ["incomplete", "ok"]
        assert report["test"][1] == "test_it.py::test_before"
        assert report["peak_allocated_bytes"][1] == 2**20
    page = pytester.path.joinpath("out.md").read_text()
    assert page.startswith("**Incomplete**: the session ")
    assert "test_before" in page


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("import os; os._exit(1)", "the session did not reach its end"),
        ("def test_it(): import pytest; pytest.exit('enough', 0)", "interrupted (*enough)"),
        ("assert False", "interrupted (*1 error during collection)"),
        ("def test_it(): assert False", "stopped early (stopping after 1 failures)"),
    ],
)
def test_an_older_report_gives_way_to_one_that_says_why_it_is_incomplete(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester, end: str, message: str
) -> None:
    pytester.path.joinpath("out.csv").write_text("of an older session")

    run_pytest(end, "--llmmem-report=out.csv", "-n0", "--maxfail=1")

    (row,) = load_report(pytester.path / "out.csv").to_dict("records")
    assert row["outcome"] == "incomplete"
    assert fnmatch(row["message"], f"*{message}*")


ONLY_PLANNED = """
    import pytest

    @pytest.fixture
    def model():
        return bytearray(1 << 20)

    @pytest.mark.max_vram("1MiB")
    def test_marked(model):
        raise AssertionError("it is not run")

    @pytest.mark.max_vram("1 monkey")
    def test_invalid(vram):
        raise AssertionError("it is not run")
"""


@pytest.mark.parametrize("only", ["--setup-plan", "--setup-only", "--collect-only"])
def test_where_no_test_runs_nothing_is_measured_and_nothing_said(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester, no_gpu: None, only: str
) -> None:
    pytester.path.joinpath("out.csv").write_text("of an older session")

    result = run_pytest(ONLY_PLANNED, only, "--llmmem-report", "--llmmem-report=out.csv", "-n0")

    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("llmmem: *")
    assert pytester.path.joinpath("out.csv").read_text() == "of an older session"
    assert not pytester.path.joinpath("reports").exists()


FAILS = """
    import pytest
    import torch

    @pytest.mark.max_vram("64MB", metric="allocated")
    def test_over():
        torch.empty(1 << 28, dtype=torch.uint8, device="cuda")

    @pytest.mark.max_vram("64 monkeys")
    def test_invalid():
        pass

    @pytest.mark.max_vram("64MB")
    def test_fixture(vram):
        mine = 5
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLMMEM_SIMULATED_FAULTS", "oom_at=1")
            vram.run({"model": "openai-community/gpt2", "seq_len": 8, "mode": "forward"})

    @pytest.mark.max_vram("64MB")
    def test_own():
        own = 6
        assert torch.empty(1, device="cuda") is None
"""


def test_the_debugger_lands_in_the_test(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    simulated_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A debugger that says where it is, and goes on.
    pytester.makepyfile(
        says_where="""
        import pdb

        class Pdb(pdb.Pdb):
            def interaction(self, frame, place):
                self.setup(frame, getattr(place, "__traceback__", place))
                code = self.curframe.f_code
                print("LANDED", code.co_filename.rpartition("/")[2], code.co_name)

            def setup(self, frame, tb):
                self.reset()
                self.stack, self.curindex = self.get_stack(frame, tb)
                self.curframe = self.stack[self.curindex][0]
        """
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(pytester.path), os.environ.get("PYTHONPATH", "")])
    )
    result = run_pytest(FAILS, "--llmmem-device=sim:t4", "--pdb", "--pdbcls=says_where:Pdb", "-n0")
    landed = re.findall(r"^LANDED (\S+) (\S+)$", result.stdout.str(), re.MULTILINE)
    names = ("test_over", "test_invalid", "test_fixture", "test_own")
    assert landed == [("test_it.py", name) for name in names]


def test_odd_names_and_limits_end_a_session_as_any_other(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester, simulated_gpu: None
) -> None:
    pytester.makeini(
        "[pytest]\ndisable_test_id_escaping_and_forfeit_all_rights_to_community_support = true\n"
    )
    result = run_pytest(
        """
        import pytest
        import torch

        @pytest.mark.max_vram("1GiB")
        @pytest.mark.parametrize("name", ["\\udcff", "a|b", "c\\rd", "e\\\\|f", "[bold]"])
        def test_odd(name):
            torch.empty(1 << 20, dtype=torch.uint8, device="cuda")

        @pytest.mark.max_vram("9223372036854775807B")
        def test_as_large_as_can_be():
            torch.empty(1 << 20, dtype=torch.uint8, device="cuda")

        @pytest.mark.max_vram("9223372036854775808B")
        def test_larger():
            pass
        """,
        *("--llmmem-device=sim:t4", "--llmmem-report", "-n0", *REPORTS),
    )
    result.assert_outcomes(passed=6, errors=1)
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(
        [
            "* test_it.py::test_odd[[]a|b[]] *",
            "llmmem: 6 gated = *",
            "llmmem: report written to *out.csv (6 records)",
        ]
    )
    for suffix in ("csv", "json"):
        tests = load_report(pytester.path / f"out.{suffix}")["test"]
        assert list(tests) == [
            *(
                f"test_it.py::test_odd[{name}]"
                for name in ("\\udcff", "a|b", "c\rd", "e\\|f", "[bold]")
            ),
            "test_it.py::test_as_large_as_can_be",
        ]
    assert len(pytester.path.joinpath("out.md").read_text().splitlines()) == 2 + 6
