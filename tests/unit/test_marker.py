from __future__ import annotations

import inspect

import pytest

from llmmem.catalogue.gpus import find_gpu
from llmmem.errors import InputError
from pytest_llmmem.marker import Limit, max_vram
from pytest_llmmem.options import MARKER


@pytest.mark.parametrize(
    ("limit", "size"),
    [("24GB", 24 * 10**9), ("22.5GiB", 22 * 2**30 + 2**29), ("1 MiB", 2**20), (1000, 1000)],
)
def test_a_limit_is_a_size_with_its_unit_or_a_whole_number_of_bytes(
    limit: str | int, size: int
) -> None:
    written = limit if isinstance(limit, str) else None
    assert max_vram(limit) == Limit(size, metric="process", scope="call", written=written)


@pytest.mark.parametrize(
    "limit", ["24", "24gb", "-1GB", "0GB", 0, -1, True, 1.5, float("nan"), b"1GB", "1GB 2GB", ""]
)
def test_bad_limits_are_refused_with_what_is_accepted(limit: object) -> None:
    with pytest.raises(InputError, match=r"invalid size .* expected a size such as"):
        max_vram(limit)  # type: ignore[arg-type]


def test_a_card_is_a_limit_on_all_that_the_process_holds() -> None:
    limit = max_vram(gpu="rtx4090")
    assert limit.bytes == find_gpu("rtx4090").total_bytes
    assert limit.metric == "process"
    assert limit.gpu == find_gpu("rtx4090")
    assert str(limit).endswith("of rtx4090")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of limit and gpu"),
        ({"limit": "1GB", "gpu": "h100"}, "exactly one of limit and gpu"),
        ({"gpu": "rtx4091"}, "did you mean 'rtx4090'"),
        ({"gpu": 4090}, "invalid gpu 4090"),
        ({"gpu": "h100", "metric": "allocated"}, "contradict"),
        ({"limit": "1GB", "metric": "used"}, "accepted: allocated, reserved, process"),
        ({"limit": "1GB", "scope": "module"}, "accepted: call, test"),
        ({"limit": "1GB", "tolerance": "5%"}, "baseline"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        max_vram(**arguments)  # type: ignore[arg-type]


def test_the_marker_line_shows_every_argument_and_its_default() -> None:
    signature = inspect.signature(max_vram)
    plain = signature.replace(
        parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
        return_annotation=signature.empty,
    )
    summary = (inspect.getdoc(max_vram) or "").splitlines()[0]
    assert f"max_vram{plain}: {summary}" == MARKER
