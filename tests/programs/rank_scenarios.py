"""A job of several ranks that asserts what it receives; run by test_ranks.py, under torchrun.

Each scenario is a function; the last ones break the job.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])
OTHER = 1 - RANK
DTYPES = (
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
REDUCTIONS = {
    dist.ReduceOp.SUM: lambda values: values.sum(0),
    dist.ReduceOp.PRODUCT: lambda values: values.prod(0),
    dist.ReduceOp.MAX: lambda values: values.amax(0),
    dist.ReduceOp.MIN: lambda values: values.amin(0),
}


def on_gpu(values: list, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).cuda()


def read(tensor: torch.Tensor) -> list:
    return tensor.cpu().double().tolist()


def ask(expected: list, tensor: torch.Tensor) -> None:
    assert read(tensor) == expected, (RANK, read(tensor), expected)


def reductions() -> None:
    given = torch.tensor([[1.0, 2.5, 3.0, 1.0], [6.0, 0.5, 7.0, 1.5]])
    for dtype in DTYPES:
        inputs = given.to(dtype)
        for reduction, compute in REDUCTIONS.items():
            tensor = inputs[RANK].cuda()
            dist.all_reduce(tensor, reduction)
            expected = compute(inputs.double()).to(dtype)
            ask(expected.double().tolist(), tensor)
    tensor = on_gpu([-3, 2**40, -(2**40)]) if RANK else on_gpu([2, 1, 5])
    dist.all_reduce(tensor)
    ask([-1, 2**40 + 1, 5 - 2**40], tensor)
    flags = on_gpu([RANK == 0, False], torch.bool)
    dist.all_reduce(flags)
    ask([1, 0], flags)
    tensor = on_gpu([1.0 + RANK, float("inf")], torch.bfloat16)
    dist.all_reduce(tensor, dist.ReduceOp.AVG)
    ask([1.5, float("inf")], tensor)
    tensor = on_gpu([1.0 + RANK], torch.float32)
    dist.all_reduce(tensor, dist._make_nccl_premul_sum(0.5))
    ask([1.5], tensor)
    tensor = on_gpu([5 + RANK])
    dist.reduce(tensor, 1)
    ask([11 if RANK == 1 else 5], tensor)
    part = on_gpu([0, 0])
    dist.reduce_scatter(part, [on_gpu([1, 2]), on_gpu([30, 40])])
    ask([2, 4] if RANK == 0 else [60, 80], part)


def gathers() -> None:
    """Also of parts that differ in size, into views, and gathered at one rank."""
    whole = on_gpu([0] * 4)
    dist.all_gather_into_tensor(whole, on_gpu([RANK, 7]))
    ask([0, 7, 1, 7], whole)
    in_place = on_gpu([9] * 4)
    in_place[2 * RANK : 2 * RANK + 2] = RANK + 1
    dist.all_gather_into_tensor(in_place, in_place[2 * RANK : 2 * RANK + 2])
    ask([1, 1, 2, 2], in_place)
    uneven = [on_gpu([0]), on_gpu([0] * 3)]
    dist.all_gather(uneven, on_gpu([5]) if RANK == 0 else on_gpu([6, 7, 8]))
    ask([5], uneven[0])
    ask([6, 7, 8], uneven[1])
    parts = [on_gpu([0]), on_gpu([0])] if RANK == 1 else None
    dist.gather(on_gpu([RANK + 3]), parts, dst=1)
    if parts is not None:
        ask([3, 4], torch.cat(parts))
    part = on_gpu([0])
    dist.scatter(part, [on_gpu([8]), on_gpu([9])] if RANK == 0 else None, src=0)
    ask([8 + RANK], part)


def exchanges() -> None:
    received = on_gpu([0, 0])
    dist.all_to_all_single(received, on_gpu([10 * RANK, 10 * RANK + 1]))
    ask([RANK, 10 + RANK], received)
    sizes = [[1, 2], [3, 1]]  # what each sends to each
    take = [row[RANK] for row in sizes]
    received = on_gpu([-1] * sum(take))
    dist.all_to_all_single(received, on_gpu([RANK] * sum(sizes[RANK])), take, sizes[RANK])
    ask([0] * take[0] + [1] * take[1], received)
    inbox = on_gpu([0, 0, 0])
    both = [
        dist.P2POp(dist.isend, on_gpu([RANK, 5, 6]), OTHER),
        dist.P2POp(dist.irecv, inbox, OTHER),
    ]
    for work in dist.batch_isend_irecv(both):
        work.wait()
    ask([OTHER, 5, 6], inbox)
    if RANK == 0:
        for number in range(3):
            dist.send(on_gpu([number]), 1)
    else:
        for number in range(3):
            inbox = on_gpu([-1])
            dist.recv(inbox, 0)
            ask([number], inbox)


def objects() -> None:
    gathered: list = [None, None]
    dist.all_gather_object(gathered, {"rank": RANK, "text": "x" * 1000 * RANK})
    assert [each["rank"] for each in gathered] == [0, 1]
    assert len(gathered[1]["text"]) == 1000
    objects = [[1, "two"], {"three": 3.0}] if RANK == 1 else [None, None]
    dist.broadcast_object_list(objects, src=1)
    assert objects == [[1, "two"], {"three": 3.0}]
    scattered: list = [None]
    dist.scatter_object_list(scattered, ["zero", "one"] if RANK == 0 else None, src=0)
    assert scattered == [["zero", "one"][RANK]]


def what_is_not_known() -> None:
    """It reads as zero, whatever was there before."""
    long = torch.full((300_000,), RANK + 1).cuda()
    dist.broadcast(long, 0)
    assert read(long[:2]) == ([1, 1] if RANK == 0 else [0, 0])
    partly = torch.empty(4, dtype=torch.int64, device="cuda") if RANK == 0 else on_gpu([9] * 4)
    if RANK == 0:
        partly[2] = 5
    dist.broadcast(partly, 0)
    ask([0, 0, 5, 0], partly)
    one_sided = on_gpu([4]) if RANK == 0 else torch.empty(1, dtype=torch.int64, device="cuda")
    dist.all_reduce(one_sided)
    ask([0], one_sided)


def many_in_a_group() -> None:
    """More than a channel holds, by both ranks at once, with a factor that is gone by then."""
    tensors = [on_gpu([RANK + number] * 30_000, torch.int32) for number in range(60)]
    with dist._coalescing_manager():
        for tensor in tensors:
            dist.all_reduce(tensor)
    for number, tensor in enumerate(tensors):
        assert read(tensor[:2]) == [2 * number + 1] * 2
    inboxes = [on_gpu([0] * 30_000, torch.int32) for _ in range(60)]
    sends = [dist.P2POp(dist.isend, tensor, OTHER) for tensor in tensors]
    receives = [dist.P2POp(dist.irecv, inbox, OTHER) for inbox in inboxes]
    for work in dist.batch_isend_irecv(sends + receives):
        work.wait()
    for number, inbox in enumerate(inboxes):
        assert read(inbox[:2]) == [2 * number + 1] * 2


def split_groups() -> None:
    """Communicators that NCCL splits off, with other ranks in them."""
    swapped = dist.split_group(split_ranks=[[0, 1]])
    tensor = on_gpu([RANK])
    dist.broadcast(tensor, 1, group=swapped)
    ask([1], tensor)
    alone = dist.split_group(split_ranks=[[0], [1]])
    tensor = on_gpu([RANK + 5])
    dist.all_reduce(tensor, group=alone)
    ask([RANK + 5], tensor)
    gathered = torch.zeros(300_000, dtype=torch.int64, device="cuda")
    dist.all_gather_into_tensor(gathered, torch.full((300_000,), 3).cuda(), group=alone)
    assert read(gathered[:1]) == [3]


def nothing_is_left() -> None:
    files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [file for file in files if "llmmem-ranks" in file]
    assert not [path for path in Path("/dev/shm").iterdir() if "llmmem" in path.name]


def failure(call) -> str:
    try:
        call()
    except dist.DistBackendError as error:
        return str(error)
    raise AssertionError("no error")


def mismatch() -> None:
    group = dist.new_group([0, 1])
    tensor = on_gpu([1, 2, 3])[: 2 + RANK]
    text = failure(lambda: dist.all_reduce(tensor, group=group))
    assert "rank 0 all_reduce of 2 int64 (sum)" in text, text
    assert "rank 1 all_reduce of 3 int64 (sum)" in text, text
    group = dist.new_group([0, 1])
    if RANK == 0:
        text = failure(lambda: dist.all_reduce(tensor, group=group))
    else:
        text = failure(lambda: dist.broadcast(on_gpu([1, 2]), 0, group=group))
    assert "rank 0 all_reduce" in text, text
    assert "rank 1 broadcast" in text, text


def no_call() -> None:
    group = dist.new_group([0, 1])
    dist.barrier(group=group)
    os.environ["LLMMEM_RANK_TIMEOUT"] = "0.3"
    store = dist.distributed_c10d._get_default_store()
    if RANK == 0:
        text = failure(lambda: dist.all_reduce(on_gpu([1]), group=group))
        assert "rank 0 waits in all_reduce of 1 int64" in text, text
        assert "LLMMEM_RANK_TIMEOUT" in text, text
        store.set("rank 0 has waited", "")
    del os.environ["LLMMEM_RANK_TIMEOUT"]
    store.wait(["rank 0 has waited"])


def no_peer() -> None:
    dist.barrier()
    if RANK == 1:
        os._exit(0)
    text = failure(lambda: dist.all_reduce(on_gpu([1])))
    assert "for rank 1, which has left the communicator or ended" in text, text


def main() -> None:
    torch.cuda.set_device(RANK)
    dist.init_process_group("nccl", device_id=torch.device("cuda", RANK))
    for scenario in (
        reductions,
        gathers,
        exchanges,
        objects,
        what_is_not_known,
        many_in_a_group,
        split_groups,
        nothing_is_left,
        mismatch,
        no_call,
        no_peer,
    ):
        scenario()
        sys.stdout.write(f"rank {RANK}: {scenario.__name__}\n")
        sys.stdout.flush()
    os._exit(0)  # the other rank is not there to end the job with


if __name__ == "__main__":
    main()
