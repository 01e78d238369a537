"""The entry point: registers the options, the marker and the fixture, and little else.

The hooks that measure, and the modules that they need, are imported only in sessions that ask for
them by an option, the ini file or the environment, or that have a test with the marker or the
fixture.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

from pytest_llmmem.options import (
    MARKER,
    add_options,
    is_asked_for,
    runs_tests,
    separate_report_option,
)

if TYPE_CHECKING:
    import argparse

    from pytest_llmmem.fixture import Vram

__all__ = ["vram"]

HOOKS = "llmmem-hooks"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    """Load the simulated GPU if asked for, before a conftest can import torch."""
    command_line = early_config.known_args_namespace
    if separate_report_option(args):
        again = parser.parse_known_args(args)
        # pytest reads the conftests of these paths next.
        command_line.file_or_dir = again.file_or_dir
        command_line.llmmem_report = again.llmmem_report
    if is_asked_for(command_line, early_config):
        _register_hooks(early_config, command_line)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and, if they are already known to be needed, the hooks."""
    config.addinivalue_line("markers", MARKER)
    if is_asked_for(config.option, config) or _controls_workers(config):
        _register_hooks(config, config.option)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Register the hooks if a test is about memory."""
    config = session.config
    if config.pluginmanager.has_plugin(HOOKS) or not runs_tests(config):
        return
    if any(map(_may_be_about_memory, session.items)):
        _register_hooks(config, config.option)
        from pytest_llmmem.leftovers import LEFTOVERS

        config.stash[LEFTOVERS].pytest_collection_finish(session)


@pytest.fixture
def vram(request: pytest.FixtureRequest) -> Vram:
    """GPU memory: run or estimate a setup, measure a part of the test."""
    if not request.config.pluginmanager.has_plugin(HOOKS):
        pytest.fail(
            "no test of this session names the fixture vram, so nothing is measured: request it as an "
            "argument of the test, or with pytest.mark.usefixtures",
            pytrace=False,
        )
    from pytest_llmmem.fixture import vram_of

    return vram_of(request.node)


def _controls_workers(config: pytest.Config) -> bool:
    """Whether this is the controller of pytest-xdist, which has reports and no tests."""
    is_worker = hasattr(config, "workerinput")
    return not is_worker and config.getoption("dist", "no") != "no" and runs_tests(config)


def _may_be_about_memory(item: pytest.Item) -> bool:
    """Whether a test has the marker or the fixture, or may ask for the fixture as it runs."""
    if item.get_closest_marker("max_vram") is not None:
        return True
    if "vram" in getattr(item, "fixturenames", ()):
        return True
    # Not its signature, which would evaluate annotations.
    function = getattr(item, "function", None)
    code = getattr(function and inspect.unwrap(function), "__code__", None)
    return code is not None and "request" in code.co_varnames


def _register_hooks(config: pytest.Config, command_line: argparse.Namespace) -> None:
    from pytest_llmmem import hooks

    hooks.begin(config, command_line)
    if not config.pluginmanager.has_plugin(HOOKS):
        config.pluginmanager.register(hooks, HOOKS)
