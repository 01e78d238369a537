"""The hooks of a session that measures; `pytest_llmmem.plugin` registers them where one does.

They may be registered before pytest's own plugins or after the collection. Wrappers around a test's phases
are therefore the innermost (``trylast``): an error of theirs leaves no other wrapper half done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmmem.gate import GATE, Gate
from pytest_llmmem.landing import land_in_test
from pytest_llmmem.leftovers import LEFTOVERS, Leftovers
from pytest_llmmem.options import runs_tests
from pytest_llmmem.reporter import Reporter
from pytest_llmmem.session import SESSION, Session, load_simulated_gpu
from pytest_llmmem.session_options import Options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

__all__ = ["begin"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugins that release leftovers and that report at the end."""
    session = begin(config, config.option)
    if not runs_tests(config):
        return
    config.pluginmanager.register(_BeforeFixtures(), "llmmem-before-fixtures")
    leftovers = config.stash[LEFTOVERS] = Leftovers(
        config, measures=session.options.measures_every_test
    )
    config.pluginmanager.register(leftovers, "llmmem-leftovers")
    if not hasattr(config, "workerinput"):  # under xdist, only the controller reports
        config.pluginmanager.register(Reporter(config, session.options), "llmmem-reporter")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close the session."""
    session = config.stash.get(SESSION, None)
    if session is not None:
        session.close()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Read the marker before anything else runs."""
    session = item.config.stash[SESSION]
    gate = item.stash[GATE] = Gate(item, session)
    if not runs_tests(item.config):
        yield
        return
    session.share_with_children()
    gate.read_marker()
    with gate.setup():
        yield


class _BeforeFixtures:
    """Runs after pytest has evaluated skip marks, and before the first fixture."""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Check that the test can be measured."""
        item.stash[GATE].before_fixtures()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Measure the call."""
    with item.stash[GATE].call():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Measure the teardown, if it counts."""
    with item.stash[GATE].teardown():
        yield


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Replace the error that the test raised by the verdict, before pytest makes the report.

    pytest's hook for unittest has run before (it is ``tryfirst``), so ``call`` has the errors that unittest
    caught. The hook that makes the report was registered earlier, so it runs later.
    """
    gate = item.stash.get(GATE, None)
    if gate is None or not runs_tests(item.config):
        return
    error = None if call.excinfo is None else call.excinfo.value
    verdict = gate.verdict(call.when, error)
    if verdict is not None and verdict is not error:
        call.excinfo = _raised(verdict)
    land_in_test(item, call)
    if call.when == "teardown":
        gate.leave()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Remember fixtures that read values that a simulated GPU does not know."""
    reads = request.config.stash[SESSION].value_reads
    before = reads.now()
    try:
        return (yield)
    finally:
        reads.note_fixture(fixturedef.argname, before)


def pytest_fixture_post_finalizer(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> None:
    """Forget such a fixture when it is torn down."""
    request.config.stash[SESSION].value_reads.forget_fixture(fixturedef.argname)


def _raised(error: BaseException) -> pytest.ExceptionInfo[BaseException]:
    """The error as pytest expects it, with a traceback."""
    try:
        raise error
    except BaseException:
        return pytest.ExceptionInfo.from_current()


def begin(config: pytest.Config, command_line: argparse.Namespace) -> Session:
    """The session of this process; the first call creates it and loads its simulated GPU."""
    session = config.stash.get(SESSION, None)
    if session is None:
        options = Options.read(command_line, config)
        load_simulated_gpu(options.device, config.invocation_params.args)
        session = config.stash[SESSION] = Session(options)
    return session
