"""Estimates of functions that are written for a GPU, on any build of PyTorch."""

from __future__ import annotations

import runpy
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate.utils import find_executable_batch_size
from torch import nn

import llmmem
from llmmem.catalogue.gpus import find_gpu
from llmmem.units import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

L40S = find_gpu("l40s")
FILE = Path(__file__).parents[1] / "programs" / "cuda_programs.py"
PROGRAMS = runpy.run_path(str(FILE))["PROGRAMS"]
# Each in a process of its own, which finds a fresh GPU.
RUN = """
import gc
import os
import runpy
import sys

from llmmem import simgpu

simgpu.activate("l40s")

import torch

from llmmem import Setup
from llmmem.execution.preload import preload

preload(Setup(model="HuggingFaceTB/SmolLM2-135M", method="qlora"))  # what most of them import
gc.freeze()

for name, program in runpy.run_path(sys.argv[1])["PROGRAMS"].items():
    child = os.fork()
    if not child:
        program()
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        print("peaks", name, *peaks, flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, name
"""


def estimated(function: Callable[[], object]) -> llmmem.Trace:
    trace = llmmem.estimate(function, "l40s")
    assert trace.outcome == "ok", trace.message
    return trace


def run_all() -> str:
    program = [sys.executable, "-c", RUN, str(FILE)]
    return subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="module")
def peaks_of_runs(
    simulated_gpu: None, once: Callable[[str, Callable[[], str]], str]
) -> dict[str, tuple[int, int]]:
    lines = once("functions", run_all).splitlines()
    words = [line.split() for line in lines if line.startswith("peaks ")]
    return {name: (int(allocated), int(reserved)) for _, name, allocated, reserved in words}


@pytest.mark.filterwarnings("ignore:`:FutureWarning")  # of transformers, about its own names
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_function_is_estimated_as_it_runs_on_the_simulated_gpu(
    name: str, peaks_of_runs: dict[str, tuple[int, int]]
) -> None:
    peaks = estimated(PROGRAMS[name]).peaks
    assert peaks_of_runs[name] == (peaks.allocated, peaks.reserved)


def test_what_is_put_on_cuda_is_there_and_takes_memory() -> None:
    seen: dict[str, Any] = {}

    def function() -> None:
        model = nn.Linear(1024, 1024)
        weight = model.weight
        model.cuda()
        moved = model.to(torch.device("cuda", 0))
        batch = torch.ones(4, 1024).to("cuda:0")
        seen.update(
            is_same=moved.weight is weight,
            devices={tensor.device for tensor in (weight, batch, model(batch))},
            is_cuda=batch.is_cuda,
            number=batch.get_device(),
            on_host=batch.cpu().device.type,
            made=torch.ones_like(batch).device,
            default=_made_by_default(),
        )

    trace = estimated(function)
    cuda = torch.device("cuda", 0)
    assert seen == {
        "is_same": True,
        "devices": {cuda},
        "is_cuda": True,
        "number": 0,
        "on_host": "cpu",
        "made": cuda,
        "default": [cuda, cuda],
    }
    assert trace.components is not None
    assert trace.components.weights == 4 * 1024 * 1024 + 4 * 1024


def test_a_model_is_moved_with_its_gradients() -> None:
    seen: list[Any] = []

    def function() -> None:
        layer = nn.Linear(1024, 1024, bias=False).cuda()
        layer(torch.ones(2, 1024, device="cuda")).sum().backward()
        gradient = layer.weight.grad
        for device in ("cpu", "cuda"):
            layer.to(device)
            assert layer.weight.grad is gradient
            seen.extend([layer.weight.device.type, gradient.device.type])
            seen.append(torch.cuda.memory_allocated() // layer.weight.nbytes)

    estimated(function)
    workspaces = 2 * (8 * 2**20 + 128 * 2**10) // (4 * 2**20)
    assert seen == ["cpu", "cpu", workspaces, "cuda", "cuda", workspaces + 2]


def test_tensors_on_the_device_have_addresses() -> None:
    seen: list[int] = []

    def function() -> None:
        first, second = (torch.ones(8, device="cuda") for _ in range(2))
        start = first.untyped_storage().data_ptr()
        seen.extend([first.data_ptr() - start, first[3:].data_ptr() - start])
        seen.append(abs(second.data_ptr() - start) >= first.nbytes)
        seen.append(torch.ones(8, device="meta").data_ptr())

    estimated(function)
    assert seen == [0, 12, True, 0]


def test_a_gradient_that_stays_behind_is_refused() -> None:
    def function() -> None:
        weight = nn.Parameter(torch.ones(8, device="cuda"))
        weight.sum().backward()
        weight.data = weight.data.cpu()

    trace = llmmem.estimate(function, "l40s")
    assert trace.outcome == "unsupported"
    assert "while it has a gradient" in trace.message


def test_layers_of_bitsandbytes_are_quantized_where_their_model_is_moved() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    kept: list[int] = []

    def function() -> None:
        layer = bitsandbytes.nn.LinearNF4(1024, 1024, bias=False)
        weight = layer.weight
        model = nn.Sequential(layer).cuda()
        assert model[0].weight is weight
        kept.append(torch.cuda.memory_allocated())
        model(torch.ones(4, 1024, device="cuda"))

    estimated(function)
    packed = 1024 * 1024 // 2
    assert packed < kept[0] < 1.1 * packed


def test_a_statistic_of_the_allocator_that_is_not_modelled_is_refused() -> None:
    def function() -> None:
        torch.cuda.memory_summary()
        torch.cuda.random.get_rng_state()
        torch.cuda.memory_stats()["oversize_segments.current"]

    trace = llmmem.estimate(function, "l40s")
    assert trace.outcome == "unsupported"
    assert "memory_stats()['oversize_segments.current']" in trace.message


def test_graphs_and_side_streams_are_refused_by_their_names() -> None:
    trace = llmmem.estimate(lambda: torch.cuda.graph(torch.cuda.CUDAGraph()), "l40s")
    assert trace.outcome == "unsupported"
    assert "CUDA graphs cannot be traced" in trace.message
    tensor_of_two_streams = llmmem.estimate(
        lambda: torch.ones(2, device="cuda").record_stream(torch.cuda.Stream()), "l40s"
    )
    assert tensor_of_two_streams.outcome == "unsupported"
    assert "record_stream" in tensor_of_two_streams.message


def _made_by_default() -> list[torch.device]:
    with torch.device("cuda"):
        inside = torch.zeros(2).device
    torch.set_default_device("cuda")
    return [inside, torch.zeros(2).device]


def test_what_a_program_puts_on_the_meta_device_takes_no_memory() -> None:
    seen: list[Any] = []

    def function() -> None:
        with torch.device("meta"):
            model = nn.Linear(1024, 1024, bias=False)
        moved = torch.ones(2, 1024, device="cuda").to("meta")
        seen.extend([model.weight.is_meta, moved.device.type, model(moved).device.type])
        model.to_empty(device="cuda")
        seen.extend([model.weight.is_cuda, model.weight.device.type])

    trace = estimated(function)
    assert seen == [True, "meta", "meta", True, "cuda"]
    assert trace.peaks.allocated == 4 * 1024 * 1024


def test_what_has_no_values_cannot_be_put_on_the_gpu() -> None:
    trace = llmmem.estimate(lambda: torch.empty(2, device="meta").cuda(), "l40s")
    assert trace.outcome == "unsupported"
    assert "Cannot copy out of meta tensor" in trace.message


def test_values_that_are_read_are_zeros_and_truth() -> None:
    seen: list[Any] = []

    def function() -> None:
        values = torch.randn(3, device="cuda")
        seen.extend([values.sum().item(), values.tolist(), values.cpu().numpy().tolist()])
        seen.extend([f"{values.mean():.2f}", bool((values == values).all())])

    estimated(function)
    assert seen == [0.0, [0.0] * 3, [0.0] * 3, "0.00", True]


def test_torch_cuda_answers_for_the_card_and_its_memory() -> None:
    seen: dict[str, Any] = {}

    def function() -> None:
        seen.update(
            available=torch.cuda.is_available(),
            count=torch.cuda.device_count(),
            name=torch.cuda.get_device_name(),
            capability=torch.cuda.get_device_capability(0),
            total=torch.cuda.get_device_properties(0).total_memory,
        )
        large = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
        del large
        seen["peak"] = torch.cuda.max_memory_allocated()
        seen["accelerator"] = (torch.accelerator.max_memory_allocated(), torch.device(0))
        torch.cuda.reset_peak_memory_stats()
        seen["after"] = (torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved())
        torch.cuda.empty_cache()
        seen["free"], _ = torch.cuda.mem_get_info()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.synchronize()

    trace = estimated(function)
    assert seen == {
        "available": True,
        "count": 1,
        "name": L40S.title,
        "capability": (8, 9),
        "total": L40S.total_bytes,
        "peak": 64 * MIB,
        "accelerator": (64 * MIB, torch.device("cuda", 0)),
        "after": (0, 64 * MIB),
        "free": L40S.total_bytes - L40S.context_bytes,
    }
    assert (trace.peaks.allocated, trace.peaks.reserved) == (64 * MIB, 64 * MIB)


def test_a_card_that_is_too_small_is_an_outcome() -> None:
    trace = llmmem.estimate(lambda: torch.empty(60 * GIB, dtype=torch.uint8, device="cuda"), "l40s")
    assert trace.outcome == "oom"
    assert trace.peaks.allocated == 0
    assert trace.needed.allocated == 60 * GIB
    assert trace.fits_by_memory == ("a100-80gb", "h100", "h200", "b200")


def hold(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def test_a_function_needs_what_it_takes_after_the_card_is_full_too() -> None:
    def function() -> None:
        kept = [hold(30 * GIB)]
        torch.cuda.empty_cache()
        kept.append(hold(20 * GIB))  # the card is full
        del kept[0]
        torch.cuda.empty_cache()
        kept.append(hold(70 * GIB))
        seen.append(torch.cuda.memory_allocated())
        seen.append(torch.cuda.mem_get_info())

    seen: list[Any] = []
    trace = llmmem.estimate(function, "l40s")
    assert trace.outcome == "oom"
    assert trace.message.startswith("needs 90.")
    assert (trace.peaks.allocated, trace.peaks.reserved) == (30 * GIB, 30 * GIB)
    assert (trace.needed.allocated, trace.needed.reserved) == (90 * GIB, 90 * GIB)
    assert trace.components is not None
    assert trace.components.total == 30 * GIB
    assert seen == [90 * GIB, (0, L40S.total_bytes)]


@pytest.mark.parametrize("kind", ["by its name", "by its message", "by accelerate"])
def test_a_function_that_handles_a_full_card_is_left_to_do_so(kind: str) -> None:
    tried = []

    def by_name() -> torch.Tensor:
        try:
            return hold(60 * GIB)
        except torch.cuda.OutOfMemoryError:
            return hold(2 * GIB)

    def by_message() -> torch.Tensor:
        try:
            return hold(60 * GIB)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            return hold(2 * GIB)

    @find_executable_batch_size(starting_batch_size=60, reduce_batch_size_fn=lambda: 2)
    def by_accelerate(batch_size: int) -> torch.Tensor:
        tried.append(batch_size)
        return hold(batch_size * GIB)

    functions: dict[str, Any] = {
        "by its name": by_name,
        "by its message": by_message,
        "by accelerate": by_accelerate,
    }
    trace = estimated(functions[kind])
    assert trace.peaks.allocated == 2 * GIB
    # What it would take without a limit is not what it takes now.
    assert trace.needed.allocated is None
    assert any("handles it if the card is full" in each for each in trace.assumptions)
    assert tried == ([60, 2] if kind == "by accelerate" else [])


def test_a_function_that_fails_after_the_card_is_full_has_failed_by_then() -> None:
    def function() -> None:
        hold(60 * GIB)
        raise KeyError("never reached on the card")

    trace = llmmem.estimate(function, "l40s")
    assert trace.outcome == "oom"
    assert trace.message.startswith("out of memory")
    assert trace.needed.allocated is None
    assert any("KeyError" in each for each in trace.assumptions)


def test_a_function_that_allocates_without_end_is_ended() -> None:
    def function() -> None:
        held = []
        while True:
            held.append(hold(1024 * GIB))

    assert llmmem.estimate(function, "l40s").outcome == "oom"


def test_errors_of_the_function_are_its_own() -> None:
    def function() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        llmmem.estimate(function, "l40s")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda: torch.zeros(3)[torch.tensor(7)], IndexError),  # on the host
        (lambda: nn.functional.mse_loss(torch.ones(2, device="cuda"), 2), AttributeError),
        (lambda: torch.optim.AdamW([torch.ones(2, device="cuda")], lr=-1), ValueError),
    ],
)
def test_errors_that_pytorch_raises_at_once_are_the_function_s_own(
    function: Callable[[], object], error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        llmmem.estimate(function, "l40s")
    assert any("llmmem exec" in note for note in raised.value.__notes__)


def fail_on_device() -> None:
    torch.zeros(3, device="cuda").select(0, 7)


def fail_without_kernel() -> None:
    torch.geqrf(torch.ones(3, 3, device="cuda"))


def fail_as_pytorch_checks_itself() -> None:
    nn.utils.fuse_conv_bn_eval(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (fail_on_device, "IndexError: select()"),
        (fail_without_kernel, "aten::geqrf has no implementation on the meta device"),
        (fail_as_pytorch_checks_itself, "AssertionError"),
    ],
)
def test_errors_of_what_stands_for_the_gpu_are_refusals_with_the_line(
    function: Callable[[], object], words: str
) -> None:
    trace = llmmem.estimate(function, "l40s")
    assert (trace.outcome, trace.peaks.allocated) == ("unsupported", None)
    assert words in trace.message
    line = function.__code__.co_firstlineno + 1
    assert f"{Path(__file__).name}:{line} in {function.__name__}: " in trace.message
    assert trace.message.endswith("run it with llmmem exec")


def test_an_estimate_of_a_function_leaves_nothing_behind() -> None:
    def watched() -> list[Any]:
        autocast = torch.amp.autocast_mode.autocast
        named = [torch.compile, torch.autocast, autocast.__enter__, autocast.__exit__]
        named += [torch.autograd._engine_run_backward, torch.get_default_device()]
        named += [torch._has_compatible_shallow_copy_type, torch.random.get_rng_state().tolist()]
        named += [torch.utils.data._utils.pin_memory.pin_memory, nn.Module.compile]
        checks = dict(torch.utils.checkpoint._allowed_determinism_checks_to_fns)
        return [*named, checks, dict(vars(torch.cuda)), dict(vars(torch.accelerator))]

    def function() -> None:
        torch.set_default_device("cuda")
        torch.compile(nn.Linear(8, 8))  # not called
        nn.Linear(8, 8)(torch.randn(2, 8)).sum().backward()

    before = watched()
    first = estimated(function)
    assert watched() == before
    assert estimated(function) == first


def test_neither_a_setup_nor_a_function_is_an_input_error() -> None:
    with pytest.raises(llmmem.InputError, match="accepted: a Setup, a function"):
        llmmem.estimate(Path("train.py"), "l40s")  # type: ignore[call-overload]


def test_a_kernel_of_triton_writes_to_what_is_there_and_takes_nothing() -> None:
    triton = pytest.importorskip("triton", reason="this PyTorch comes without Triton")

    @triton.jit
    def fill(target, size: triton.language.constexpr):
        triton.language.store(target + triton.language.arange(0, size), 1.0)

    trace = estimated(lambda: fill[(1,)](torch.empty(1024, device="cuda"), size=1024))
    assert trace.peaks.allocated == 1024 * 4


@torch.compile
def compiled_before(values: torch.Tensor) -> torch.Tensor:
    return values * 2


def _compiled_inside() -> None:
    @torch.compile(dynamic=True)
    def compiled(values: torch.Tensor) -> torch.Tensor:
        return values * 2

    compiled(torch.ones(8, device="cuda"))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda: torch.compile(nn.Linear(8, 8).cuda())(torch.ones(8, device="cuda")), "(Linear)"),
        (lambda: compiled_before(torch.ones(8, device="cuda")), "(a function)"),
        (_compiled_inside, "_compiled_inside"),
    ],
)
def test_what_a_run_would_compile_is_estimated_only_where_pytorch_s_switch_is_off(
    function: Callable[[], object], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = llmmem.estimate(function, "l40s")
    assert (trace.outcome, trace.peaks.allocated) == ("unsupported", None)
    assert named in trace.message
    assert "llmmem exec" in trace.message
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert estimated(function).peaks.allocated


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
def test_flex_attention_is_refused_and_ends_no_process() -> None:
    def function() -> None:
        from torch.nn.attention.flex_attention import flex_attention

        heads = torch.randn(1, 4, 128, 64, device="cuda", requires_grad=True)
        flex_attention(heads, heads, heads).sum().backward()

    trace = llmmem.estimate(function, "l40s")
    assert (trace.outcome, trace.peaks.allocated) == ("unsupported", None)
    assert "flex_attention" in trace.message


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (
            lambda: nn.Linear(8, 8).cuda()(torch.ones(8, device="cuda", dtype=torch.bfloat16)),
            "same dtype",
        ),
        (
            lambda: nn.functional.scaled_dot_product_attention(
                torch.ones(1, 4, 8, 8, device="cuda"),
                *2 * [torch.ones(1, 3, 8, 8, device="cuda")],
                enable_gqa=True,
            ),
            "must divide the number of heads",
        ),
    ],
)
def test_what_a_gpu_refuses_has_no_estimate_but_the_error(
    function: Callable[[], object], error: str
) -> None:
    trace = llmmem.estimate(function, "l40s")
    assert (trace.outcome, trace.peaks.allocated) == ("unsupported", None)
    assert error in trace.message


def _make_graph() -> None:
    torch.cuda.CUDAGraph()


def _caught(call: Callable[[], object], then: Callable[[], object] = lambda: None) -> None:
    with suppress(Exception):
        call()
    then()
    torch.ones(1024, device="cuda")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (_make_graph, "CUDA graphs cannot be traced"),
        (lambda: torch.randn(4096, device="cuda").unique(), "unique can be traced only"),
        (lambda: torch.geqrf(torch.ones(8, 8, device="cuda")), "geqrf"),
    ],
)
def test_a_program_that_catches_a_refusal_is_still_refused(
    call: Callable[[], object], reason: str
) -> None:
    trace = llmmem.estimate(lambda: _caught(call), "l40s")
    assert (trace.outcome, trace.peaks.allocated) == ("unsupported", None)
    assert "test_estimate_of_functions.py:" in trace.message
    assert reason in trace.message


def test_a_refusal_that_was_caught_is_the_reason_of_the_error_after_it() -> None:
    trace = llmmem.estimate(lambda: _caught(_make_graph, lambda: {}["graph"]), "l40s")
    assert trace.outcome == "unsupported"
    assert "CUDA graphs cannot be traced" in trace.message
