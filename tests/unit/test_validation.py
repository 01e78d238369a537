"""The accuracy matrix: what stands in its table, and that it can be continued."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pytest

from llmmem.setups import Setup
from llmmem.validation.check import validate
from llmmem.validation.matrix import Case, matrix
from llmmem.validation.summary import summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_matrix_is_large_and_a_third_of_it_is_held_out() -> None:
    cases = matrix()
    assert len(cases) >= 150
    assert len({case.setup.key() for case in cases}) == len(cases)
    assert len({case.setup.model for case in cases}) >= 30
    assert sum(case.is_held_out for case in cases) * 3 >= len(cases)


@pytest.mark.usefixtures("simulated_gpu")
def test_a_setup_that_is_refused_is_a_row_and_the_others_follow(
    tmp_path: Path, tiny_model: Callable[..., str]
) -> None:
    table = tmp_path / "accuracy.csv"
    refused = Setup(model="distilbert/distilbert-base-uncased", task="masked-lm", seq_len=1024)
    fits = Setup(model=tiny_model("llama"), seq_len=64)
    cases = [Case(refused, is_held_out=False), Case(fits, is_held_out=True)]
    validate(cases, "sim:l40s", table)
    rows = pd.read_csv(table)
    assert [*rows.run_outcome] == ["invalid", "ok"]
    assert "has 512 positions" in rows.message[0]
    assert rows.trace_allocated[1] == rows.run_allocated[1] > 0
    assert rows.trace_reserved[1] == rows.run_reserved[1] > 0
    assert rows.phases_equal[1]
    assert [*rows.is_held_out] == [False, True]

    validate(cases, "sim:l40s", table)
    assert len(pd.read_csv(table)) == 2

    page = summary(table, "sim:l40s", "llmmem validate --device sim:l40s")
    assert "| held out | 1 | 1 | 0.0000% |" in page
    assert "invalid" in page
