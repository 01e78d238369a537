"""Programs that read values from a device, each for the CPU, a simulated GPU and a trace alike.

Run as a program it prints what they read on a simulated GPU, and what was a guess, as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def picked_and_counted(device: str) -> list[Any]:
    numbers = torch.tensor([3, 1, 2, 2, 0, 5]).to(device)
    mask = numbers > 1
    return [
        numbers.prod().item(),
        numbers.tolist(),  # which reading the product has left alone
        numbers.masked_select(mask).tolist(),
        numbers[mask].tolist(),
        mask.nonzero().tolist(),
        torch.repeat_interleave(numbers).tolist(),
        torch.nn.functional.one_hot(numbers, 6).sum(0).tolist(),
        torch.where(mask, numbers, -numbers).tolist(),
    ]


def made_and_moved(device: str) -> list[Any]:
    steps = torch.linspace(0, 9, 5, device=device).long()
    rows, columns = torch.meshgrid(steps, steps[:2], indexing="ij")
    edges = torch.tensor([1, 3, 5]).to(device)
    grid = torch.zeros(5, dtype=torch.long, device=device)
    return [
        steps.tolist(),
        rows.tolist(),
        columns.tolist(),
        torch.searchsorted(edges, steps).tolist(),
        grid.scatter_add(0, torch.tensor([0, 1, 1]).to(device), edges).tolist(),
        torch.tril(torch.ones(3, 3, dtype=torch.bool, device=device)).sum(-1).tolist(),
        steps.cumsum(0).flip(0).roll(1).tolist(),
        torch.stack([steps, steps + 1]).t().flatten().tolist(),
        torch.isin(steps, edges).tolist(),
    ]


def changed_in_place(device: str) -> list[Any]:
    ids = torch.arange(24).view(4, 6).to(device)
    ids[1] = 7
    ids[:, 2:4] += 1
    ids[:, ::2].mul_(2)
    ids.index_fill_(1, torch.tensor([5]).to(device), -1)
    out = torch.empty(6, dtype=torch.long, device=device)
    torch.add(ids[0], ids[1], out=out)
    lists = [ids[2].clone(), ids[3].clone()]
    torch._foreach_add_(lists, 3)
    counter = torch.zeros((), dtype=torch.int32, device=device)
    counter += 2
    return [ids.tolist(), out.tolist(), [item.tolist() for item in lists], counter.item()]


def floats_from_the_host(device: str) -> list[Any]:
    scale = torch.tensor([0.5, 4.0, 2.5]).to(device)
    weights = torch.ones(3, device=device) * scale
    return [(weights * 2).long().tolist(), weights.argmax().item(), scale.topk(2).indices.tolist()]


def overflows(device: str) -> list[Any]:
    """What gradient scaling finds of gradients that are finite, and of one that has a NaN."""
    found = []
    for number in (0.5, float("nan"), float("inf")):
        gradients = [torch.ones(5, 5, device=device), torch.full((5,), 2.0, device=device)]
        gradients[1][3] = torch.tensor(number)
        seen = torch.zeros(1, device=device)
        scale = torch.ones(1, device=device)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, seen, scale)
        found.append(seen.item())
    return found


KNOWN: dict[str, Callable[[str], list[Any]]] = {
    "picked and counted": picked_and_counted,
    "made and moved": made_and_moved,
    "changed in place": changed_in_place,
    "floats from the host": floats_from_the_host,
    "overflows": overflows,
}


def choices(device: str) -> list[Any]:
    """What follows from scores that are not known: the same on a simulated GPU and in a trace."""
    scores = torch.randn(4, 8, device=device)
    masked = scores.masked_fill(torch.arange(8).to(device) < 4, float("-inf"))
    return [
        scores.topk(2).indices.tolist(),
        scores.topk(2, dim=0).indices.tolist(),
        masked.topk(2).indices.tolist(),
        scores.argmax(-1).tolist(),
        scores.argmax().item(),
        scores.max(-1).indices.tolist(),
        scores.sort(descending=True).indices.tolist(),
        scores.softmax(-1).multinomial(3).tolist(),
        torch.randint(5, 9, (6,), device=device).tolist(),
        torch.randperm(6, device=device).tolist(),
        torch.empty(3, dtype=torch.long, device=device).random_(1, 9).tolist(),
    ]


def questions(device: str) -> list[Any]:
    """What is asked of numbers that are not known."""
    x = torch.randn(300, 70, device=device)
    return [
        x.isnan().any().item(),
        x.isfinite().all().item(),
        (x == x).all().item(),
        (x == 0.5).any().item(),
        (x > 0.5).sum().item(),
        len((x > 0.5).nonzero()),
        (x - float("inf")).isinf().all().item(),
        bool(torch.isinf(x.sum())),
        x.bool().all().item(),
        torch.allclose(x, x + 1),
        torch.isclose(x, torch.ones_like(x)).any().item(),
    ]


ALIKE: dict[str, Callable[[str], list[Any]]] = {"choices": choices, "questions": questions}


def reads_a_sure_mask(device: str) -> None:
    mask = (torch.arange(64) > 7).to(device)
    torch.zeros(64, device=device)[mask].sum()
    torch.randn(64, device=device).isnan().any().item()
    torch.randn(64, device=device).sum().item()


def reads_a_guess(device: str) -> None:
    torch.zeros(64, device=device)[torch.randn(64, device=device) > 0].sum()


if __name__ == "__main__":
    from llmmem import simgpu

    warnings.filterwarnings("error")
    gpu = simgpu.active()
    assert gpu is not None
    notes = []
    for program in (reads_a_sure_mask, reads_a_guess):
        clock = gpu.guesses.clock
        program("cuda")
        notes.append(gpu.guesses.notes(clock))
    seen = {name: program("cuda") for name, program in (KNOWN | ALIKE).items()}
    json.dump({"seen": seen, "notes": notes}, sys.stdout)
