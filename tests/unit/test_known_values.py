"""What a traced function reads of values that came from the host: what it would read on a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import torch

import llmmem

if TYPE_CHECKING:
    from collections.abc import Callable


def read_masks(device: str) -> list[Any]:
    mask = torch.ones(4, 256, dtype=torch.long)
    mask[:, 200:] = 0
    mask = mask.to(device)
    hidden = torch.zeros(4, 256, 8, device=device)
    return [
        mask.sum().item(),
        bool(mask.all()),
        bool(mask.bool().any()),
        mask.sum(-1).tolist(),
        mask.argmin(-1).tolist(),
        hidden[mask.bool()].shape,
        mask[0].nonzero().shape,
        torch.where(mask == 0)[1].min().item(),
        mask.cpu()[:, 199:201].tolist(),
        f"{mask[2, 3]}",
    ]


def write_in_place(device: str) -> list[Any]:
    ids = torch.arange(4096).view(4, 1024).to(device)
    ids[1] = 7
    ids[:, 10:] += 1
    ids[2, :5] = torch.tensor([5, 4, 3, 2, 1], device=device)
    steps = torch.zeros(3, dtype=torch.int32, device=device)
    steps += 2
    return [ids.sum().item(), ids[2, :6].tolist(), ids.max().item(), steps.tolist()]


def make_on_device(device: str) -> list[Any]:
    torch.tensor([1]).to(device)
    places = torch.arange(64, device=device)
    causal = places[None] <= places[:, None]
    labels = torch.full((2, 64), -100, device=device)
    labels[:, :10] = places[:10]
    both = torch.cat([labels, labels + 1])
    return [
        causal.sum().item(),
        both.ne(-100).sum().item(),
        both.clamp(min=0).max().item(),
        both.view(-1)[5].item(),
    ]


@pytest.mark.parametrize("program", [read_masks, write_in_place, make_on_device])
def test_whole_numbers_and_masks_read_as_they_are(program: Callable[[str], list[Any]]) -> None:
    seen: list[Any] = []
    trace = llmmem.estimate(lambda: seen.extend(program("cuda")), "l40s")
    assert trace.outcome == "ok", trace.message
    assert seen == program("cpu")


def test_numbers_that_are_drawn_on_the_device_are_not_known() -> None:
    seen: list[Any] = []

    def function() -> None:
        ids = torch.arange(1, 9).to("cuda")
        noise = torch.rand(8, device="cuda") * 9
        seen.extend([(ids + noise).sum().item(), noise.long().tolist(), ids.sum().item()])

    assert llmmem.estimate(function, "l40s").outcome == "ok"
    assert seen == [0, 8 * [0], 36]


@pytest.mark.skipif(find_spec("triton") is None, reason="kernels of Triton need triton")
def test_kernels_of_triton_are_not_run_and_what_they_write_is_not_known() -> None:
    import triton
    from triton import language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def add_one(target: Any, count: int, BLOCK: tl.constexpr) -> None:  # noqa: N803
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + places, tl.load(target + places) + 1, mask=places < count)

    seen: list[Any] = []

    def function() -> None:
        numbers = torch.arange(1024).to("cuda")
        seen.append(numbers[-1].item())
        add_one[(4,)](numbers, 1024, BLOCK=256)
        seen.append(numbers[-1].item())

    trace = llmmem.estimate(function, "l40s")
    assert trace.outcome == "ok", trace.message
    assert seen == [1023, 0]
    assert trace.peaks.allocated == 1024 * 8
