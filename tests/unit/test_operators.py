"""The table of operators, resolved for the installed PyTorch."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch

from llmmem.errors import UnsupportedError
from llmmem.estimation.operators import autograd
from llmmem.estimation.operators.common import Entry
from llmmem.estimation.operators.table import (
    ENTRIES,
    missing_names,
    operator_handlers,
    operators_named,
)


def handle(tracer: Any, func: Any, args: Any, kwargs: Any) -> Any:
    raise AssertionError


def test_the_installed_pytorch_has_every_operator_of_its_release() -> None:
    assert missing_names() == []
    assert operator_handlers()[torch.ops.aten.mm.default] is not None


def test_no_operator_has_two_entries() -> None:
    operators = Counter(
        operator
        for entry in ENTRIES
        for name in entry.operators.split()
        for operator in operators_named(name)
    )
    assert [str(operator) for operator, count in operators.items() if count > 1] == []


def test_operators_that_are_missing_are_named() -> None:
    made_up = Entry("mm no_such_operator mm.no_such_overload", handle)
    names = "aten::no_such_operator, aten::mm.no_such_overload"
    with pytest.raises(
        UnsupportedError, match=f"torch {re.escape(torch.__version__)}.* no {names}$"
    ):
        operator_handlers([made_up])


@pytest.mark.parametrize(("releases", "missing"), [(">=99", 0), ("<2", 0), (">=2.6", 1)])
def test_an_operator_may_be_missing_in_other_releases(releases: str, missing: int) -> None:
    made_up = Entry("no_such_operator", handle, releases=releases)
    assert missing_names([made_up]) == missing * ["aten::no_such_operator"]


def test_grouped_products_are_optional_before_their_first_release() -> None:
    (entry,) = [entry for entry in ENTRIES if "_grouped_mm.default" in entry.operators]
    assert [entry.is_required_by(release) for release in ("2.6.0", "2.7.1+cu126", "2.8.0")] == [
        False,
        False,
        True,
    ]


def test_a_node_of_autograd_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        autograd._IN_PLACE_IN_BACKWARD, torch.ops.aten.mm.default, {"NoSuchBackward0"}
    )
    assert missing_names() == ["NoSuchBackward0"]
    with pytest.raises(UnsupportedError, match="has no NoSuchBackward0"):
        operator_handlers()
