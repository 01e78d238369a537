"""Programs with side streams on the simulated GPU, each in a fork; prints what they return as JSON.

``LLMMEM_SIDE_STREAMS`` decides when the work of those streams ends.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any

from llmmem import simgpu

GPU = simgpu.activate("h100")

import torch  # noqa: E402 - the simulated GPU comes first

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
CUDA = "cuda"


def mebibytes(count: int) -> torch.Tensor:
    return torch.empty(count * MIB, dtype=torch.uint8, device=CUDA)


def use_on(stream: torch.cuda.Stream, *tensors: torch.Tensor) -> None:
    """Let a side stream work on tensors of this one, which PyTorch is told."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for tensor in tensors:
            tensor.add_(1)
            tensor.record_stream(stream)


def reserved() -> int:
    return torch.cuda.max_memory_reserved() // MIB


def is_noted() -> bool:
    return any("LLMMEM_SIDE_STREAMS" in note for note in GPU.notes)


# ---- what the allocator holds back --------------------------------------------------------------


def record_stream(wait: Callable[[torch.cuda.Stream], None], blocks: int = 8) -> list[Any]:
    side = torch.cuda.Stream()
    for _ in range(blocks):
        use_on(side, mebibytes(64))
        wait(side)
    return [reserved(), is_noted()]


def nobody_waits() -> Any:
    return record_stream(lambda side: None)


def the_default_stream_waits() -> Any:
    return record_stream(lambda side: torch.cuda.current_stream().wait_stream(side))


def the_host_waits_for_the_stream() -> Any:
    return record_stream(lambda side: side.synchronize())


def the_host_waits_for_the_device() -> Any:
    return record_stream(lambda side: torch.cuda.synchronize())


def the_host_reads_what_depends_on_it() -> Any:
    def read(side: torch.cuda.Stream) -> None:
        torch.cuda.current_stream().wait_stream(side)
        torch.ones(1, device=CUDA).item()

    return record_stream(read)


def the_host_reads_what_does_not() -> Any:
    return record_stream(lambda side: torch.ones(1, device=CUDA).item())


def the_host_waits_for_an_event() -> Any:
    def wait(side: torch.cuda.Stream) -> None:
        other, event = torch.cuda.Stream(), torch.cuda.Event()
        other.wait_stream(side)
        event.record(other)
        event.synchronize()

    return record_stream(wait)


def expandable_segments() -> Any:
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    return nobody_waits()


def a_full_card() -> Any:
    """PyTorch waits for what it holds back before it gives up."""
    torch.cuda.set_per_process_memory_fraction(200 * MIB / GPU.gpu.total_bytes)
    return record_stream(lambda side: None)


def no_side_stream() -> Any:
    layer = torch.nn.Linear(256, 256).to(CUDA)
    optimizer = torch.optim.AdamW(layer.parameters())
    for _ in range(2):
        layer(torch.randn(8, 256).pin_memory().to(CUDA, non_blocking=True)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [reserved(), is_noted()]


def memory_of_its_own() -> Any:
    """Blocks that are freed on the stream that they were taken on need no event."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(8):
            mebibytes(64).add_(1)
    return [reserved(), is_noted()]


def pinned_batches() -> Any:
    batches = torch.utils.data.DataLoader(torch.zeros(64, MIB), batch_size=8, pin_memory=True)
    side = torch.cuda.Stream()
    for batch in batches:
        with torch.cuda.stream(side):
            moved = batch.to(CUDA, non_blocking=True)
        torch.cuda.current_stream().wait_stream(side)
        moved.sum()
    return [reserved(), is_noted()]


def offload() -> Any:
    """Activations go to pinned memory on a stream of their own."""
    side, kept = torch.cuda.Stream(), []
    for _ in range(4):
        x = mebibytes(64).fill_(1)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            kept.append(x.to("cpu", non_blocking=True))
        x.record_stream(side)
        del x
    assert all(tensor.is_pinned() for tensor in kept)
    return [reserved(), is_noted()]


# ---- who asks -----------------------------------------------------------------------------------


def a_program_that_asks() -> Any:
    side, event = torch.cuda.Stream(), torch.cuda.Event()
    before = [event.query(), side.query()]
    use_on(side, mebibytes(1))
    event.record(side)
    first = [event.query(), side.query(), torch.cuda.current_stream().query()]
    while not (event.query() and side.query()):
        pass
    return {"before": before, "first": first, "noted": is_noted()}


def collectives() -> Any:
    """NCCL's watchdog asks for its work again and again, and the process group ends."""
    from torch import distributed

    with tempfile.NamedTemporaryFile() as file:
        store = distributed.FileStore(file.name, 1)
        distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
        done = 0
        for i in range(6):
            work = distributed.all_reduce(torch.ones(MIB, device=CUDA), async_op=True)
            if i % 2:
                work.wait()
            while not work.is_completed():
                pass
            done += 1
        distributed.destroy_process_group()
    return done


# ---- captures -----------------------------------------------------------------------------------


def pool_of(tensor: torch.Tensor) -> Any:
    """The pool of the segment that a tensor lies in."""
    for segment in torch.cuda.memory_snapshot():
        if 0 <= tensor.data_ptr() - segment["address"] < segment["total_size"]:
            return tuple(segment["segment_pool_id"])
    raise AssertionError("in no segment")


def a_graph_of_two_streams() -> Any:
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    x = mebibytes(8)
    capturing = torch.cuda.is_current_stream_capturing
    with torch.cuda.graph(graph):
        a = x * 2
        with torch.cuda.stream(side):
            before = capturing()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            during = capturing()
            b = x * 3
        torch.cuda.current_stream().wait_stream(side)
        c = a + b
    with torch.cuda.stream(side):
        after = capturing()
        d = x * 4
    graph.replay()
    side.synchronize()
    return {
        "capturing": [before, during, after],
        "in the pool": [pool_of(tensor) == tuple(graph.pool()) for tensor in (x, a, b, c, d)],
    }


def graphed_callables() -> Any:
    """Whether what both streams of a module take in its captures is in the pool of the graphs."""

    class TwoStreams(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(512, 512) for _ in range(2))
            self.side = torch.cuda.Stream()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                y = self.layers[0](x)
            z = self.layers[1](x)
            torch.cuda.current_stream().wait_stream(self.side)
            return y + z

    x = torch.randn(64, 512, device=CUDA, requires_grad=True)
    pool = torch.cuda.graph_pool_handle()
    module = torch.cuda.make_graphed_callables(TwoStreams().to(CUDA), (x,), pool=pool)
    module(x).sum().backward()
    streams = {
        segment["stream"]
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment["segment_pool_id"]) == tuple(pool)
    }
    return [len(streams), x.grad is not None]


def errors_of_captures() -> Any:
    """What fails, and in which words: the errors that CUDA documents."""
    side, x, event = torch.cuda.Stream(), mebibytes(1), torch.cuda.Event()
    current = torch.cuda.current_stream

    def fork() -> None:
        side.wait_stream(current())

    def fork_and_work() -> None:
        fork()
        with torch.cuda.stream(side):
            x.add_(1)

    def work_after_the_join() -> None:
        fork_and_work()
        current().wait_stream(side)
        with torch.cuda.stream(side):
            x.add_(1)

    def join_through_a_third() -> None:
        third = torch.cuda.Stream()
        fork_and_work()
        third.wait_stream(side)
        with torch.cuda.stream(third):
            x.add_(1)
        current().wait_stream(third)

    def two_captures() -> None:
        event.record()
        with torch.cuda.stream(torch.cuda.Stream()):
            other = torch.cuda.CUDAGraph()
            other.capture_begin()
            try:
                event.wait()
            finally:
                other.capture_end()

    def query() -> None:
        event.record()
        event.query()

    programs = {
        "a fork without work": fork,
        "a fork that is not joined": fork_and_work,
        "work after the join": work_after_the_join,
        "joined through a third": join_through_a_third,
        "waits for what is not captured": lambda: current().wait_stream(side),
        "the default stream waits": lambda: torch.cuda.default_stream().wait_stream(current()),
        "waits for another capture": two_captures,
        "asks for an event": query,
        "waits for the device": torch.cuda.synchronize,
    }
    found = {name: _capture(program) for name, program in programs.items()}
    event = torch.cuda.Event()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        event.record()
    found["asks for it later"] = _messages(event.query)
    event.record()
    found["and for it recorded anew"] = _messages(event.query)
    return found


def _capture(program: Callable[[], Any]) -> list[str]:
    def capture() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            program()

    return _messages(capture)


def _messages(program: Callable[[], Any]) -> list[str]:
    """What it raised, and what that was raised from."""
    try:
        program()
    except RuntimeError as error:
        chain: list[BaseException] = [error]
        while (before := chain[-1].__context__) is not None:
            chain.append(before)
        return [str(link).splitlines()[0].removeprefix("CUDA error: ") for link in chain]
    return []


PROGRAMS = (
    nobody_waits,
    the_default_stream_waits,
    the_host_waits_for_the_stream,
    the_host_waits_for_the_device,
    the_host_reads_what_depends_on_it,
    the_host_reads_what_does_not,
    the_host_waits_for_an_event,
    expandable_segments,
    a_full_card,
    no_side_stream,
    memory_of_its_own,
    pinned_batches,
    offload,
    a_program_that_asks,
    collectives,
    a_graph_of_two_streams,
    graphed_callables,
    errors_of_captures,
)


def in_child(program: Callable[[], Any]) -> Any:
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            answer = {"value": program()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.wait()
    return answer


if __name__ == "__main__":
    json.dump({program.__name__: in_child(program) for program in PROGRAMS}, sys.stdout)
