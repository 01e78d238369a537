"""What programs read back from the simulated GPU, in one process; prints one JSON document.

Each part is a function that returns what it saw; the tests say what that must be.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

simgpu.activate("h100")

import torch  # noqa: E402

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def pinned(tensor: Any) -> Any:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.synchronize()
    return host.item()


COPIES: dict[str, Callable[[Any], Any]] = {
    "item": lambda t: t.item(),
    "tolist": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu().item(),
    "to": lambda t: t.to("cpu").item(),
    "to, not blocking": lambda t: t.to("cpu", non_blocking=True).item(),
    "pinned": pinned,
    "numpy": lambda t: t.cpu().numpy().item(),
    "bool": bool,
    "int": lambda t: bool(int(t)),
    "float": lambda t: bool(float(t)),
}


def wrong(checks: Iterator[tuple[str, Any, Any]]) -> list[str]:
    return [f"{name}: {seen} instead of {due}" for name, seen, due in checks if seen != due]


def through_all_copies(name: str, answer: Any, due: bool) -> Iterator[tuple[str, Any, Any]]:
    for way, copy in COPIES.items():
        yield f"{name} by {way}", bool(copy(answer)), due


def computed_numbers(size: int, dtype: Any) -> dict[str, Any]:
    x = torch.randn(size, device="cuda").to(dtype)
    matrix = torch.randn(size // 5 + 2, 10, device="cuda").to(dtype)
    return {
        "random": x,
        "matrix": matrix,
        "transposed": matrix.T,
        "column": matrix[:, 3],
        "product": matrix.T @ matrix,
        "sum": x.sum(),
        "softmax": matrix.softmax(-1),
        "exponential": x.exp(),
        "mean": matrix.mean(0),
        "shifted": x + 1,
        "masked": matrix.masked_fill(matrix > 0, 0.0),
    }


def checks_of_numbers() -> Iterator[tuple[str, Any, Any]]:
    for dtype in FLOATS:
        for size in (7, 1000):
            for kind, x in computed_numbers(size, dtype).items():
                name = f"{kind} {dtype} {size}"
                yield f"{name} isnan", x.isnan().any().item(), False
                yield f"{name} isinf", x.isinf().any().item(), False
                yield f"{name} isfinite", x.isfinite().all().item(), True
                yield f"{name} not finite", (~x.isfinite()).any().item(), False
                yield f"{name} x != x", (x != x).any().item(), False
                yield f"{name} nan or inf", (x.isnan() | x.isinf()).any().item(), False
                yield f"{name} by logical_or", bool((x.isnan().logical_or(x.isinf())).any()), False
                yield f"{name} count of nan", x.isnan().sum().item(), 0
                yield f"{name} count of finite", x.isfinite().sum().item(), x.numel()
                yield f"{name} abs inf", (x.abs() == math.inf).any().item(), False
                yield f"{name} nansum", math.isfinite(x.nansum().item()), True
                yield f"{name} nanmean", math.isfinite(x.float().nanmean().item()), True
                yield f"{name} max", math.isfinite(x.max().item()), True
                yield f"{name} norm", bool(torch.isfinite(x.float().norm())), True
        x = torch.randn(100, device="cuda").to(dtype)
        yield from through_all_copies(f"{dtype} isnan any", x.isnan().any(), False)
        yield from through_all_copies(f"{dtype} isfinite all", x.isfinite().all(), True)
        yield f"{dtype} -inf is seen", (x - math.inf).isinf().all().item(), True


def checks_of_integers() -> Iterator[tuple[str, Any, Any]]:
    for dtype in (*INTEGERS, torch.bool):
        for size in (7, 1000, 200_000):
            name = f"{dtype} {size}"
            ones = torch.ones(size, device="cuda", dtype=dtype)
            sent = torch.ones(size, dtype=dtype).cuda()
            padded = torch.ones(size, dtype=dtype)
            padded[size // 2] = 0
            padded = padded.cuda()
            for kind, mask in (("made", ones), ("sent", sent)):
                yield f"{name} {kind} all", mask.all().item(), True
                yield f"{name} {kind} == 1", (mask == 1).all().item(), True
                yield f"{name} {kind} == 0", (mask == 0).any().item(), False
                yield f"{name} {kind} bool", mask.bool().all().item(), True
                yield f"{name} {kind} sum", mask.sum().item(), size
                yield f"{name} {kind} nonzero", len(mask.nonzero()), size
                yield f"{name} {kind} selects", len(ones[mask.bool()]), size
            yield f"{name} equal", torch.equal(ones, sent), True
            yield f"{name} unequal", torch.equal(ones, padded), False
            yield f"{name} zeros any", torch.zeros_like(ones).any().item(), False
            yield f"{name} padded all", padded.all().item(), False
            yield f"{name} padding", (padded == 0).nonzero().flatten().tolist(), [size // 2]
            yield f"{name} padded length", padded.sum().item(), size - 1
        mask = torch.ones(9, device="cuda", dtype=dtype)
        yield from through_all_copies(f"{dtype} all", mask.all(), True)
        yield from through_all_copies(f"{dtype} any of zeros", (mask == 0).any(), False)


def checks_of_tokens() -> Iterator[tuple[str, Any, Any]]:
    """Ids that the device drew or chose: never one that ends a sequence, always in range."""
    logits = torch.randn(4, 1000, device="cuda")
    end = torch.tensor([2, 5], device="cuda")
    chosen = {
        "argmax": logits.argmax(-1),
        "topk": logits.topk(5).indices,
        "sort": logits.sort(descending=True).indices,
        "multinomial": logits.softmax(-1).multinomial(3),
        "drawn": torch.randint(0, 1000, (4, 16), device="cuda"),
        "drawn, 32 bits": torch.randint(0, 1000, (4, 16), device="cuda", dtype=torch.int32),
        "permuted": torch.randperm(1000, device="cuda"),
        "max": logits.max(-1).indices,
    }
    for kind, ids in chosen.items():
        if kind not in ("sort", "permuted"):  # which hold every index
            yield f"{kind} == end", (ids == 2).any().item(), False
            yield f"{kind} == ends", torch.isin(ids, end).any().item(), False
        yield f"{kind} in range", bool((ids >= 0).all() and (ids < 1000).all()), True
        yield (
            f"{kind} as index",
            list(torch.arange(1000, device="cuda")[ids].shape),
            list(ids.shape),
        )
        yield f"{kind} unique", 1 <= len(ids.unique()) <= ids.numel(), True
        yield f"{kind} counted", len(torch.bincount(ids.flatten().long(), minlength=1000)), 1000
        one_hot = torch.nn.functional.one_hot(ids.long(), 1000)
        yield f"{kind} one hot", list(one_hot.shape), [*ids.shape, 1000]


def checks_of_training() -> Iterator[tuple[str, Any, Any]]:
    """What Trainer, accelerate and TRL ask of a loss and of the tokens in it."""
    logits = torch.randn(2, 8, 50, device="cuda", requires_grad=True)
    labels = torch.tensor([[1, 2, 3, 4, -100, -100, -100, -100], [5] * 8]).cuda()
    loss = torch.nn.functional.cross_entropy(logits.view(-1, 50), labels.view(-1))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([logits], 1.0, error_if_nonfinite=True)
    counted = labels != -100
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    yield "loss", math.isfinite(loss.item()), True
    yield "norm", math.isfinite(norm.item()), True
    yield "loss is nan or inf", bool(torch.isnan(loss) or torch.isinf(loss)), False
    yield "tokens in the loss", counted.sum().item(), 12
    yield "tokens per sequence", counted.sum(-1).tolist(), [4, 8]
    yield "first of each", counted.float().argmax(-1).tolist(), [0, 0]
    yield "mean of losses", math.isfinite(torch.stack([loss, loss]).nanmean().item()), True
    yield "entropy", math.isfinite((entropy * counted).sum().item() / counted.sum().item()), True
    right = (logits.argmax(-1) == labels) & counted
    yield "accuracy", 0 <= (right.sum() / counted.sum()).item() <= 1, True
    positions = counted.long().cumsum(-1) - 1
    positions.masked_fill_(~counted, 1)
    yield "positions", positions[0].tolist(), [0, 1, 2, 3, 1, 1, 1, 1]
    lengths = torch.tensor([3, 5, 2]).cuda()
    yield (
        "lengths added up",
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).tolist(),
        [0, 3, 8, 10],
    )
    packed = torch.cat([torch.arange(n, device="cuda") for n in lengths.tolist()])
    yield "starts of packed sequences", (packed == 0).nonzero().flatten().tolist(), [0, 3, 8]


def a_sparse_random_mask() -> Any:
    """As PEFT's SHiRA makes it: ones at places that the host drew, then counted on the device."""
    places = torch.randperm(300 * 200)[:5000].cuda()
    mask = torch.zeros(300, 200, dtype=torch.bool).cuda().view(1, -1)
    ones = torch.ones(5000, dtype=torch.bool).cuda()
    mask = mask.scatter_(1, places.unsqueeze(0), ones.unsqueeze(0)).view(300, 200)
    rows, columns = torch.where(mask == 1.0)
    return [len(rows), len(columns), mask.sum().item()]


def what_a_graph_computed_once() -> Any:
    x = torch.tensor([1, 2, 3]).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = (x + 1 == 3).any()
    captured = found.item()
    x.copy_(torch.tensor([5, 5, 5]))
    graph.replay()
    return [captured, found.item()]


def memory_that_is_used_again() -> Any:
    """A tensor in the place of another one has none of its values."""
    places = set()
    seen = []
    for _ in range(5):
        known = torch.full((1000,), 7, device="cuda")
        places.add(known.data_ptr())
        del known
        new = torch.empty(1000, dtype=torch.long, device="cuda")
        places.add(new.data_ptr())
        seen.append((new == 7).any().item())
        del new
    return [len(places), any(seen)]


# ---- results that are told must be right ------------------------------------------------------------


def draw(shape: tuple[int, ...], dtype: Any, generator: Any) -> Any:
    lowest = 0 if dtype in (torch.uint8, torch.bool) else -4
    return torch.randint(lowest, 5, shape, generator=generator).to(dtype)


def views(tensor: Any) -> list[Any]:
    found = [tensor, tensor[1:]]
    if tensor.dim() > 1:
        found += [tensor.transpose(0, 1), tensor[:, ::2], tensor[:, :1].expand(tensor.shape)]
    return found


def set_rows(a: Any, b: Any) -> Any:
    a = a.clone()
    a[1:] = b[1:]
    a[..., 0] = 1
    return a


def put(a: Any, places: Any) -> Any:
    a = a.clone()
    a[places] = 1
    return a


def foreach(a: Any, b: Any) -> Any:
    lists = [a.clone(), b.clone()]
    torch._foreach_add_(lists, 1)
    return lists[1]


def rows_of(a: Any) -> Any:
    """The numbers of the rows, the last first, where the tensor is."""
    return torch.arange(a.shape[0]).flip(0).to(a.device)


def along(a: Any) -> Any:
    return rows_of(a).view(-1, *[1] * (a.dim() - 1)).expand(a.shape)


def operations(dtype: Any) -> dict[str, Callable[[Any, Any], Any]]:
    found: dict[str, Callable[[Any, Any], Any]] = {
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        ">= 2": lambda a, _b: a >= 2,
        "and": torch.logical_and,
        "or": torch.logical_or,
        "xor": torch.logical_xor,
        "not": lambda a, _b: a.logical_not(),
        "where": lambda a, b: torch.where(a > 0, a, b),
        "where, scalar": lambda a, _b: torch.where(a != 0, a, torch.ones_like(a[:1])),
        "masked_fill": lambda a, b: a.masked_fill(b != 0, 1),
        "all": lambda a, _b: a.all(),
        "any": lambda a, _b: a.any(0),
        "sum": lambda a, _b: a.sum(-1),
        "count": lambda a, _b: torch.count_nonzero(a),
        "max": lambda a, _b: a.amax(-1),
        "min": lambda a, _b: a.min(),
        "argmax": lambda a, _b: a.int().argmax(-1).ge(0),
        "cat rows": lambda a, b: torch.cat((a, b, a), 0),
        "cat columns": lambda a, b: torch.cat((a, b), -1),
        "stack": lambda a, b: torch.stack((a, b), 1),
        "clone": lambda a, _b: a.clone(),
        "contiguous": lambda a, _b: a.contiguous(),
        "flip": lambda a, _b: a.flip(0),
        "roll": lambda a, _b: a.roll(1, 0),
        "gather": lambda a, _b: a.gather(0, along(a)),
        "index_select": lambda a, _b: a.index_select(0, rows_of(a)),
        "index": lambda a, _b: a[rows_of(a)],
        "selected": lambda a, b: torch.tensor(a[b != 0].shape),
        "nonzero": lambda a, _b: a.nonzero(),
        "scatter": lambda a, b: a.clone().scatter_(0, along(a), b.contiguous()),
        "scatter, scalar": lambda a, _b: a.clone().scatter_(0, along(a), 1),
        "put": lambda a, _b: put(a, rows_of(a)[:1]),
        "index_copy": lambda a, b: a.clone().index_copy_(0, rows_of(a), b.contiguous()),
        "index_fill": lambda a, _b: a.clone().index_fill_(0, rows_of(a)[:1], 1),
        "set rows": set_rows,
        "repeat": lambda a, _b: a.repeat(*[2] * a.dim()),
        "pad": lambda a, _b: torch.nn.functional.pad(a, (1, 2), value=1),
    }
    if dtype is not torch.bool:
        found |= {
            "isin": lambda a, b: torch.isin(a, b.flatten()[:3]),
            "+": lambda a, b: a + b,
            "-": lambda a, b: a - b,
            "*": lambda a, b: a * b,
            "alpha": lambda a, b: torch.add(a, b, alpha=2),
            "+ 2": lambda a, _b: a + 2,
            "3 -": lambda a, _b: 3 - a,
            "* 2": lambda a, _b: a * 2,
            "/ 2": lambda a, _b: a / 2,
            "negative": lambda a, _b: -a,
            "abs": lambda a, _b: a.abs(),
            "clamp": lambda a, _b: a.clamp(0, 2),
            "maximum": torch.maximum,
            "minimum": torch.minimum,
            "cumsum": lambda a, _b: a.cumsum(-1),
            "in place": lambda a, b: a.clone().add_(b).mul_(2),
            "largest": lambda a, _b: a.topk(min(2, a.shape[-1])).values,
            "smallest": lambda a, _b: a.topk(1, largest=False).values,
            "sorted": lambda a, _b: a.sort(descending=True).values,
            "foreach": foreach,
        }
    if dtype in INTEGERS:
        found |= {
            "// 3": lambda a, _b: a // 3,
            "% 3": lambda a, _b: a % 3,
            "/ 2 to zero": lambda a, _b: torch.div(a, 2, rounding_mode="trunc"),
        }
    if dtype in (*INTEGERS, torch.bool):
        found |= {
            "&": lambda a, b: a & b,
            "|": lambda a, b: a | b,
            "^": lambda a, b: a ^ b,
            "~": lambda a, _b: ~a,
        }
    return found | {f"to {to}": lambda a, _b, to=to: a.to(to) for to in (*FLOATS, *INTEGERS)}


def unlike(seen: Any, due: Any) -> bool:
    """Whether a result is told, and is another one. What is not known reads as zero."""
    seen = seen.cpu()
    return seen.shape != due.shape or not ((seen == due) | (seen == 0)).all()


def results_beside_those_of_the_host() -> Any:
    """Operations on known values, on the device and on the host: a few of each, on many shapes."""
    generator = torch.Generator().manual_seed(0)
    false, spoilt, told, all_of_them = [], [], 0, 0
    for dtype in (*FLOATS, *INTEGERS, torch.bool):
        for shape in ((5,), (300,), (3, 4), (6, 1), (4, 6), (2, 3, 4)):
            hosts = draw(shape, dtype, generator), draw(shape, dtype, generator)
            devices = tuple(host.cuda() for host in hosts)
            pairs = [
                zip(views(a), views(b), strict=True) for a, b in zip(hosts, devices, strict=True)
            ]
            ways = list(zip(*pairs, strict=True))
            for position, (name, run) in enumerate(operations(dtype).items()):
                (a, on_a), (b, on_b) = ways[position % len(ways)]
                due, seen = run(a, b), run(on_a, on_b)
                if unlike(seen, due):
                    false.append(f"{name} {dtype} {shape} {a.stride()}")
                told += bool((seen.cpu() == due).all())
                all_of_them += 1
                for host, device in zip(hosts, devices, strict=True):
                    if not torch.equal(device.cpu(), host):
                        spoilt.append(f"{name} {dtype} {shape} {a.stride()}")
                        device.copy_(host)
    return {"false": false, "spoilt": spoilt, "told": told / all_of_them}


# ---- generation -------------------------------------------------------------------------------------


def tiny_llama(ends: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
        bos_token_id=1,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "top k": {"do_sample": True, "top_k": 5, "temperature": 0.7},
    "top p": {"do_sample": True, "top_k": 50, "top_p": 0.9},
    "min p": {"do_sample": True, "min_p": 0.05},
    "typical": {"do_sample": True, "typical_p": 0.9},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4},
    "16 beams": {"num_beams": 16},
    "beams that stop early": {"num_beams": 4, "early_stopping": True},
    "beams that never stop": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
    "beams, sampling": {"num_beams": 4, "do_sample": True},
    "beams, several": {"num_beams": 4, "num_return_sequences": 3},
    "beams, processed": {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "repetition penalty": {"repetition_penalty": 1.2},
    "no repetition": {"no_repeat_ngram_size": 3},
    "at least": {"min_new_tokens": 3},
    "bad words": {"bad_words_ids": [[5], [6, 7]]},
    "suppressed": {"suppress_tokens": [4, 5]},
    "without a cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "static cache, beams": {
        "cache_implementation": "static",
        "disable_compile": True,
        "num_beams": 3,
    },
    "prefill in chunks": {"prefill_chunk_size": 8},
}


def lengths_generated() -> Any:
    lengths = {}
    for ends in (2, [2, 5]):
        model = tiny_llama(ends)
        for batch in (1, 2):
            ids = torch.randint(6, 1000, (batch, 16)).cuda()
            mask = torch.ones_like(ids)
            if batch > 1:
                mask[0, :3] = 0
            for name, how in WAYS.items():
                output = model.generate(ids, attention_mask=mask, max_new_tokens=10, **how)
                lengths[f"{name}, batch {batch}, ends {ends}"] = output.shape[1]
    return lengths


def peaks_of_generation() -> Any:
    """The peak of generating so many tokens, less what the model takes."""
    model = tiny_llama(2)
    ids = torch.randint(6, 1000, (1, 16)).cuda()
    peaks: dict[str, list[int]] = {}
    for name in ("greedy", "sampling", "static cache"):
        for tokens in (2, 513):
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            model.generate(ids, max_new_tokens=tokens, **WAYS[name])
            peak = torch.cuda.max_memory_allocated() - before
            peaks.setdefault(name, []).append(peak)
    return peaks


PARTS = {
    "numbers": lambda: wrong(checks_of_numbers()),
    "integers": lambda: wrong(checks_of_integers()),
    "tokens": lambda: wrong(checks_of_tokens()),
    "training": lambda: wrong(checks_of_training()),
    "sparse": a_sparse_random_mask,
    "graph": what_a_graph_computed_once,
    "reuse": memory_that_is_used_again,
    "results": results_beside_those_of_the_host,
    "lengths": lengths_generated,
    "peaks": peaks_of_generation,
}


if __name__ == "__main__":
    warnings.filterwarnings("error")
    json.dump({name: part() for name, part in PARTS.items()}, sys.stdout)
