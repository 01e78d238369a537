"""The hooks: what pytest calls, and whom that is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmmem.fixture import vram
from pytest_llmmem.gate import GATE, Gate
from pytest_llmmem.leftovers import LEFTOVERS, Leftovers
from pytest_llmmem.marker import marker_line
from pytest_llmmem.options import Options, add_options
from pytest_llmmem.reporter import Reporter
from pytest_llmmem.session import SESSION, Session, load_simulated_gpu

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

__all__ = ["vram"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Load the simulated GPU if asked for, before a conftest can import torch."""
    _begin(early_config, early_config.known_args_namespace)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and what reports at the end."""
    config.addinivalue_line("markers", marker_line())
    session = _begin(config, config.option)
    config.pluginmanager.register(_BeforeFixtures(), "llmmem-before-fixtures")
    leftovers = config.stash[LEFTOVERS] = Leftovers(
        config, measures=session.options.measures_every_test
    )
    config.pluginmanager.register(leftovers, "llmmem-leftovers")
    if not hasattr(config, "workerinput"):  # under xdist, only the controller reports
        config.pluginmanager.register(Reporter(config, session.options), "llmmem-reporter")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the session started."""
    session = config.stash.get(SESSION, None)
    if session is not None:
        session.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Read the marker first of all; afterwards say what an error in a fixture is worth."""
    gate = item.stash[GATE] = Gate(item, item.config.stash[SESSION])
    gate.read_marker()
    try:
        yield
    except BaseException as error:
        gate.after_failed_setup(error)
        raise


class _BeforeFixtures:
    """What is done after pytest's own skip marks had their say, and before the first fixture."""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """See that the test can be measured at all."""
        item.stash[GATE].before_fixtures()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Measure the call, and judge it."""
    gate = item.stash[GATE]
    gate.before_call()
    try:
        yield
    except BaseException as error:
        gate.after_call(error)
        raise
    gate.after_call(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Leave what the reports carry."""
    item.stash[GATE].after_test()
    yield


def _begin(config: pytest.Config, command_line: argparse.Namespace) -> Session:
    """The session of this process; made, with its GPU, when it is first asked for."""
    session = config.stash.get(SESSION, None)
    if session is None:
        options = Options.read(command_line, config)
        if options.device.kind == "sim":
            load_simulated_gpu(options.device)
        session = config.stash[SESSION] = Session(options)
    return session
