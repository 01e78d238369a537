from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HEAVY = ("torch", "pandas", "transformers", "pynvml", "peft", "bitsandbytes", "rich")

# Prints what is loaded when the session ends.
REPORT_IMPORTS = f"""
    import sys
    def pytest_unconfigure():
        print("LOADED", sorted(set({HEAVY!r}) & set(sys.modules)))
"""

PLAIN = """
    def test_plain():
        assert True
"""

MARKED = """
    import pytest

    @pytest.mark.max_vram("1GiB")
    def test_marked():
        pass

    def test_with_fixture(vram):
        pass
"""


@pytest.mark.parametrize(
    ("source", "arguments"),
    [(PLAIN, ["--co"]), (MARKED, ["--co"]), (PLAIN, []), (PLAIN, ["--llmmem-max-vram=1GB"])],
)
def test_nothing_heavy_is_imported_before_a_test_needs_it(
    pytester: pytest.Pytester,
    run_pytest: Callable[..., pytest.RunResult],
    source: str,
    arguments: list[str],
) -> None:
    pytester.makeconftest(REPORT_IMPORTS)
    result = run_pytest(source, *arguments)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["LOADED []"])


def test_an_idle_session_says_nothing_of_the_plugin(
    pytester: pytest.Pytester, run_pytest: Callable[..., pytest.RunResult]
) -> None:
    result = run_pytest(PLAIN)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("llmmem:*")
    assert not pytester.path.joinpath("reports").exists()


def test_the_plugin_can_be_switched_off_and_then_the_marker_does_nothing(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    allowed = ("-W", "ignore::pytest.PytestUnknownMarkWarning")
    run_pytest(MARKED, "-p", "no:llmmem", "-k", "marked", *allowed).assert_outcomes(passed=1)
