"""What the plugin adds to a session that does not use it: ``pytest --co`` of a small suite.

    python benchmarks/plugin_startup.py

Writes ``reports/plugin-startup.md``. Sessions with the plugin and without it take turns; the report
has the median of the differences of the pairs, by the clock and of the processor. Plugins are named
on the command line, not found: the search through all installed packages takes longer, and varies
more, than what is measured here.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate
from timing import Seconds, of_ended_children, speed_of_machine, timed

from llmmem.versions import library_versions

REPORT = Path(__file__).parents[1] / "reports" / "plugin-startup.md"
PAIRS = 31
#: The suite is collected, or run; its one test uses nothing of the plugin.
SESSIONS = {"pytest --co": ("--co",), "pytest": ()}
SUITE = "def test_it(tmp_path):\n    assert tmp_path.is_dir()\n"


def session(directory: str, *options: str) -> tuple[float, float]:
    """The seconds that a session takes, by the clock and of the processor."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return timed(
        lambda: subprocess.run(
            command, cwd=directory, check=True, capture_output=True, env=environment
        ),
        of_ended_children,
    )


def added(options: tuple[str, ...]) -> Seconds:
    """The median of what the plugin adds."""
    taken = []
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "test_suite.py").write_text(SUITE)
        session(directory, *options)  # which compiles what is not compiled yet
        for _ in range(PAIRS):
            without = session(directory, *options)
            with_it = session(directory, *options, "-p", "pytest_llmmem.plugin")
            taken.append((with_it[0] - without[0], with_it[1] - without[1]))
    return Seconds.of(taken)


def main() -> None:
    """Measure and write the report."""
    loads = [os.getloadavg()[0]]
    rows = [(name, added(options)) for name, options in SESSIONS.items()]
    shown = [
        [name, f"{1000 * found.wall:.1f}", f"{1000 * found.processor:.1f}"] for name, found in rows
    ]
    loads.append(os.getloadavg()[0])
    versions = ", ".join(f"{name} {value}" for name, value in library_versions().items() if value)
    REPORT.write_text(
        f"""# What the plugin adds to sessions that do not use it

Made by `python benchmarks/plugin_startup.py`: milliseconds that a session of one test takes longer with
`-p pytest_llmmem.plugin` than without; medians of {PAIRS} pairs, with `PYTEST_DISABLE_PLUGIN_AUTOLOAD=1`.

- machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()};
  load average {loads[0]:.1f} at the start, {loads[1]:.1f} at the end;
  {speed_of_machine()}
- versions: {versions}

{tabulate(shown, headers=["session", "clock", "processor"], tablefmt="github")}
"""
    )
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
