"""The options, ini keys and the marker that the plugin registers with pytest.

Every session imports this module, including those that never measure anything, so it imports very little.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llmmem.devices import ACCEPTED_DEVICES

if TYPE_CHECKING:
    import argparse

    import pytest

__all__ = [
    "DEFAULT_REPORT",
    "MARKER",
    "add_options",
    "is_asked_for",
    "runs_tests",
    "separate_report_option",
]

REPORT = "--llmmem-report"
DEFAULT_REPORT = "reports/llmmem.csv"

#: The marker as ``pytest --markers`` shows it.
MARKER = (
    "max_vram(limit=None, *, gpu=None, metric='process', scope='call', tolerance=None): "
    "Fail the test if its peak of GPU memory is over the limit."
)

_KEYS = ("llmmem_report", "llmmem_device", "llmmem_require_gpu", "llmmem_max_vram")


def add_options(parser: pytest.Parser) -> None:
    """Register the options, each with its key of the ini file."""
    group = parser.getgroup("llmmem", "GPU memory (llmmem)")
    group.addoption(
        REPORT,
        action="append",
        nargs="?",
        const="",
        metavar="PATH",
        help="Write what was measured to PATH (.csv, .json or .md; relative to rootdir; can be "
        f"given more than once). Without =PATH: a table at the end, and {DEFAULT_REPORT}.",
    )
    group.addoption(
        "--llmmem-device",
        metavar="DEVICE",
        help=f"Where to measure: {ACCEPTED_DEVICES}. Default auto: vram.run uses a real GPU if there is "
        "one, else a simulated one; tests that allocate in the pytest process need a real GPU or an "
        "explicit sim:GPU.",
    )
    group.addoption(
        "--llmmem-require-gpu",
        action="store_true",
        default=None,
        help="Fail tests, instead of skipping them, if memory cannot be measured on a real GPU.",
    )
    group.addoption(
        "--llmmem-max-vram",
        metavar="SIZE",
        help='Limit on the peak of every test that has no max_vram marker, such as "24GB".',
    )
    parser.addini(
        "llmmem_report",
        "Default of --llmmem-report, one path per line.",
        type="linelist",
        default=None,
    )
    parser.addini("llmmem_device", "Default of --llmmem-device.", default=None)
    parser.addini(
        "llmmem_require_gpu", "Default of --llmmem-require-gpu.", type="bool", default=None
    )
    parser.addini("llmmem_max_vram", "Default of --llmmem-max-vram.", default=None)


def separate_report_option(args: list[str]) -> bool:
    """Keep ``--llmmem-report`` from using the next argument, such as ``tests/``, as its path.

    argparse cannot tell ``--option PATH`` from ``--option=PATH``, so the option alone is rewritten
    to have an empty path, which stands for none.

    Args:
        args: The command line, changed in place.

    Returns:
        Whether anything was rewritten.
    """
    end = args.index("--") if "--" in args else len(args)
    alone = [position for position in range(end) if args[position] == REPORT]
    for position in alone:
        args[position] = f"{REPORT}="
    return bool(alone)


def is_asked_for(command_line: argparse.Namespace, config: pytest.Config) -> bool:
    """Whether an option, a key of the ini file or the environment asks for anything."""
    return (
        any(getattr(command_line, key, None) is not None for key in _KEYS)
        or any(config.getini(key) is not None for key in _KEYS)
        or any(name.startswith("LLMMEM_") for name in os.environ)
    )


def runs_tests(config: pytest.Config) -> bool:
    """Whether tests are run, not only collected or set up. If not, nothing is measured or reported."""
    only = ("collectonly", "setuponly", "setupplan")
    return not any(config.getoption(name, default=False) for name in only)
