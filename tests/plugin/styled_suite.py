"""Every style of test that pytest runs, on a simulated GPU: the suite of `test_plugin_styles`.

A copy of this file is run by pytest in a process of its own, so nothing here is collected.
"""

# ruff: noqa: PT009, unittest's assertions are what is tried

from __future__ import annotations

import unittest
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

TOO_MUCH = 1 << 20
limited = pytest.mark.max_vram("1GiB", metric="allocated")
limited_with_fixtures = pytest.mark.max_vram("1GiB", metric="allocated", scope="test")


def hold(mib: int) -> torch.Tensor:
    return torch.empty(mib << 20, dtype=torch.uint8, device="cuda")


def unknown() -> torch.Tensor:
    return torch.randn(3, device="cuda")


# ---- tests that are held to a limit ----


@limited
class Limited(unittest.TestCase):
    def setUp(self) -> None:
        self.held = hold(64)

    def tearDown(self) -> None:
        del self.held

    def test_within(self) -> None:
        hold(64)

    def test_over(self) -> None:
        hold(1024)

    def test_runs_out(self) -> None:
        hold(TOO_MUCH)

    def test_fails(self) -> None:
        self.assertEqual(unknown().sum().item(), 3)

    def test_fails_over(self) -> None:
        hold(1024)
        self.fail("my own reason")

    def test_skips(self) -> None:
        self.skipTest("my own reason")

    def test_xfails_over(self) -> None:
        hold(1024)
        pytest.xfail("imperative")

    @unittest.expectedFailure
    def test_expected_failure(self) -> None:
        self.fail("as ever")

    @unittest.expectedFailure
    def test_expected_failure_over(self) -> None:
        hold(1024)
        self.fail("as ever")

    @unittest.expectedFailure
    def test_expected_to_run_out(self) -> None:
        hold(TOO_MUCH)

    @unittest.expectedFailure
    def test_unexpected_success_over(self) -> None:
        hold(1024)

    def test_subtests(self) -> None:
        for mib in (1, 1024):
            with self.subTest(mib=mib):
                hold(mib)

    def test_subtest_runs_out(self) -> None:
        for mib in (1, TOO_MUCH, 2):
            with self.subTest(mib=mib):
                hold(mib)


@limited
class SetUpRunsOut(unittest.TestCase):
    def setUp(self) -> None:
        hold(TOO_MUCH)

    def test_body(self) -> None:
        pass


@limited
class TearDownRunsOut(unittest.TestCase):
    def tearDown(self) -> None:
        hold(TOO_MUCH)

    def test_body(self) -> None:
        pass


@limited
class HeldByTheClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.held = hold(1000)

    @classmethod
    def tearDownClass(cls) -> None:
        del cls.held

    def test_within(self) -> None:
        hold(22)

    def test_over(self) -> None:
        hold(25)


@limited
class LimitedAsync(unittest.IsolatedAsyncioTestCase):
    async def test_over(self) -> None:
        hold(1025)

    async def test_runs_out(self) -> None:
        hold(TOO_MUCH)


def limited_doctest_over() -> None:
    """
    >>> held = hold(1025)
    """


def limited_doctest_runs_out() -> None:
    """
    >>> held = hold(TOO_MUCH)
    """


def limited_doctest_fails_over() -> None:
    """
    >>> hold(1025).shape
    nothing
    """


@limited
def test_fail_over() -> None:
    hold(1025)
    pytest.fail("my own reason", pytrace=False)


@limited
def test_xfail_over() -> None:
    hold(1025)
    pytest.xfail("imperative")


@pytest.mark.xfail(strict=True)
@limited
def test_marked_xfail_over() -> None:
    hold(1025)


@limited
def test_skips_over() -> None:
    hold(1025)
    pytest.skip("my own reason")


@limited
def test_a_group_with_one_that_ran_out() -> None:
    errors: list[Exception] = [ValueError("one")]
    try:
        hold(TOO_MUCH)
    except torch.OutOfMemoryError as error:
        errors.append(error)
    raise ExceptionGroup("several", errors)


@limited
def test_an_error_from_running_out() -> None:
    try:
        hold(TOO_MUCH)
    except torch.OutOfMemoryError as error:
        raise ValueError("too small a card") from error


@limited
def test_subtests_of_pytest(subtests: pytest.Subtests) -> None:
    with subtests.test("fits"):
        hold(1)
    with subtests.test("runs out"):
        hold(TOO_MUCH)


@pytest.fixture
def takes_more_at_the_end() -> Iterator[None]:
    yield
    hold(1026)


@limited_with_fixtures
def test_teardown_over(takes_more_at_the_end: None) -> None:
    hold(512)


@limited_with_fixtures
def test_teardown_alone_over(takes_more_at_the_end: None) -> None:
    pass


@limited
def test_teardown_does_not_count(takes_more_at_the_end: None) -> None:
    hold(512)


@pytest.fixture
def runs_out_at_the_end() -> Iterator[None]:
    yield
    hold(TOO_MUCH)


@limited_with_fixtures
def test_teardown_runs_out(runs_out_at_the_end: None) -> None:
    hold(512)


# ---- tests that nothing is asked of: only a failed comparison of values is skipped ----


def test_values_passes() -> None:
    assert unknown().sum().item() < 3


def test_values_assert() -> None:
    assert unknown().sum().item() == 3


def test_values_guess() -> None:
    assert torch.equal(unknown(), unknown())


def test_values_torch_testing() -> None:
    torch.testing.assert_close(unknown().cpu(), torch.ones(3))


def test_values_numpy_testing() -> None:
    np.testing.assert_allclose(unknown().cpu().numpy(), np.ones(3))


def test_values_torch_testing_beside_memory() -> None:
    assert torch.cuda.memory_allocated() >= 0
    torch.testing.assert_close(unknown().cpu(), torch.ones(3))


def test_values_group() -> None:
    try:
        assert unknown().sum().item() == 3
    except AssertionError as error:
        raise ExceptionGroup("several", [error]) from None


def test_values_an_index_that_follows_from_a_guess() -> None:
    assert unknown().nonzero().tolist()[2] == [2]


def test_values_fail_that_follows_from_a_guess() -> None:
    if not torch.equal(unknown(), unknown()):
        pytest.fail("they differ")


def test_values_subtests_of_pytest(subtests: pytest.Subtests) -> None:
    with subtests.test("compares"):
        assert unknown().sum().item() == 3


class Values(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.expected = unknown().tolist()

    def test_assert(self) -> None:
        self.assertEqual(unknown().sum().item(), 3)

    def test_fixture(self) -> None:
        self.assertEqual(self.expected, [1, 2, 3])

    def test_subtests(self) -> None:
        for expected in (0, 3):
            with self.subTest(expected=expected):
                self.assertEqual(unknown().sum().item(), expected)

    @unittest.expectedFailure
    def test_expected_failure(self) -> None:
        self.assertEqual(unknown().sum().item(), 3)

    def test_error(self) -> None:
        unknown().sum().item().no_such_attribute  # noqa: B018


class ValuesAsync(unittest.IsolatedAsyncioTestCase):
    async def test_assert(self) -> None:
        self.assertEqual(unknown().sum().item(), 3)


def values_doctest() -> None:
    """
    >>> unknown()
    tensor([1., 2., 3.], device='cuda:0')
    """


@pytest.fixture
def compares() -> Iterator[torch.Tensor]:
    value = unknown()
    assert value.sum().item() == 3
    return value


def test_values_in_setup(compares: torch.Tensor) -> None:
    pass


@pytest.fixture
def compares_at_the_end() -> Iterator[None]:
    yield
    assert unknown().sum().item() == 3


def test_values_in_teardown(compares_at_the_end: None) -> None:
    pass


# ---- all else fails as it is ----


def test_host_values() -> None:
    unknown()
    assert 1 + 1 == 3


def test_host_values_beside_a_tensor() -> None:
    value = unknown()
    assert value.requires_grad  # the message shows the tensor


def test_host_shape_after_a_read() -> None:
    unknown().tolist()
    torch.testing.assert_close(torch.ones(3), torch.ones(4))


def test_host_memory_after_a_read() -> None:
    def taken() -> int:
        before = torch.cuda.memory_allocated()
        kept = torch.zeros(1 << 20, device="cuda")
        return torch.cuda.memory_allocated() - before - kept.numel()

    unknown().tolist()
    assert taken() == 0


def test_error_attribute() -> None:
    unknown().tolist()
    unknown().no_such_attribute  # noqa: B018


def test_error_attribute_in_an_assertion() -> None:
    unknown().tolist()
    try:
        unknown().no_such_attribute  # noqa: B018
    except AttributeError as error:
        raise AssertionError("has no such attribute") from error


def test_error_import() -> None:
    unknown().tolist()
    import no_such_module  # noqa: F401


def test_error_out_of_memory() -> None:
    torch.equal(unknown(), unknown())
    hold(TOO_MUCH)


def test_error_value_after_a_float() -> None:
    unknown().tolist()
    raise ValueError("has nothing to do with it")


@pytest.fixture
def broken() -> None:
    unknown().tolist()
    raise AttributeError("from the fixture")


def test_error_in_setup(broken: None) -> None:
    pass
