"""Figures do not depend on the order of the tests, nor on what failed before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("simulated_gpu")

CONFTEST = """
    import os
    import random

    import pytest
    import torch

    KEPT = []

    def hold(mib):
        return torch.empty(mib << 20, dtype=torch.uint8, device="cuda")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(call):
        KEPT.append(call.excinfo)  # as plugins do that run tests again
        return (yield)

    def pytest_collection_modifyitems(items):
        random.Random(int(os.environ["ORDER"])).shuffle(items)

    @pytest.fixture(scope="session", autouse=True)
    def of_session():
        hold(300)
        yield hold(3)

    @pytest.fixture
    def hold_():
        return hold

    @pytest.fixture
    def small(hold_):
        return hold_(12)
"""

SUITE = """
    import pytest
    import torch

    class Cycle:
        def __init__(self, tensor):
            self.tensor = tensor
            self.itself = self

    @pytest.fixture(scope="module", autouse=True)
    def of_module(hold_):
        hold_(200)
        yield Cycle(hold_(5))

    @pytest.fixture(scope="module")
    def hold_():
        def hold(mib):
            return torch.empty(mib << 20, dtype=torch.uint8, device="cuda")
        return hold

    @pytest.mark.parametrize("mib", [1, 30, 500])
    def test_passes(hold_, mib):
        hold_(mib)

    @pytest.mark.max_vram("1GiB")
    @pytest.mark.parametrize("mib", [1, 30, 500])
    def test_fails(hold_, mib):
        held_by_the_test = hold_(mib)
        assert not mib

    @pytest.mark.parametrize("mib", [1, 500])
    def test_fails_in_a_chain(hold_, mib):
        def deeper():
            held = hold_(mib)
            raise ValueError(mib)
        try:
            deeper()
        except ValueError as error:
            raise ExceptionGroup("several", [error, KeyError(mib)])

    def test_makes_garbage(hold_):
        for _ in range(5):
            Cycle(hold_(100))

    @pytest.mark.max_vram("1GiB", metric="reserved")
    def test_is_held_to_a_limit(small):
        pass

    @pytest.fixture
    def broken(hold_):
        held = hold_(70)
        raise RuntimeError("broken")

    def test_has_a_broken_fixture(broken):
        pass

    @pytest.fixture(scope="class")
    def of_class(hold_):
        yield Cycle(hold_(7))

    @pytest.mark.usefixtures("of_class")
    class TestClass:
        def test_uses_a_small_one(self, small, hold_):
            hold_(2)

        def test_skips(self, hold_):
            hold_(600)
            pytest.skip("enough")

        def test_trains(self):
            model = torch.nn.Linear(512, 512).cuda()
            model(torch.randn(8, 512, device="cuda")).sum().backward()

        def test_allocates_twice(self, hold_):
            hold_(20)
            hold_(40)
"""


METRICS = ("allocated", "reserved", "process")


def test_a_suite_has_the_same_figures_in_any_order(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_other=SUITE)
    found = []
    for order in (1, 2, 3):
        monkeypatch.setenv("ORDER", str(order))
        # Locals are shown before they are let go of.
        traceback = "-l" if order == 1 else "--tb=no"
        options = ("--llmmem-device=sim:h100", f"--llmmem-report={order}.json", traceback)
        result = run_pytest(SUITE, *options)
        if order == 1:
            result.stdout.fnmatch_lines(["*held_by_the_test = tensor(*"])
        rows = json.loads((pytester.path / f"{order}.json").read_text())
        names = ("outcome", "held_before_bytes", *(f"peak_{m}_bytes" for m in METRICS))
        found.append({row["test"]: [row[name] for name in names] for row in rows})
    assert len(found[0]) == 28  # all but those that fail in a fixture
    assert found[0] == found[1] == found[2]
