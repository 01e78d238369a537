"""Steps of parallel setups, on the CPU: what rank 0 holds."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from llmmem.errors import InputError, UnsupportedError
from llmmem.estimation.rules import rules
from llmmem.setups import Setup
from llmmem.workload.build import skeleton
from llmmem.workload.step import execute

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")


class Notes:
    """Keeps the model, the bytes of each label, and the size of the job in each phase."""

    def __init__(self):
        self.labels = {}
        self.calls = set()
        self.ranks = []

    def step(self):
        return nullcontext()

    @contextmanager
    def phase(self, name):
        self.ranks.append(dist.is_initialized() and dist.get_world_size())
        yield

    def watch(self, model):
        self.model = model

    def label(self, component, tensors):
        sizes = [tensor.nbytes for tensor in tensors]
        self.labels.setdefault(component, []).append(sum(sizes))

    @property
    def parameter_bytes(self):
        return self.labels["weights"][0] - sum(buffer.nbytes for buffer in self.model.buffers())


def run(setup):
    notes = Notes()

    def note_call(module, *_):
        notes.calls.add(type(module))

    hook = torch.nn.modules.module.register_module_forward_hook(note_call)
    try:
        execute(setup, CPU, notes)
    finally:
        hook.remove()
    return notes


def setup_of(model, parallel, **keys):
    return Setup.from_mapping({"model": model, "seq_len": 16, "parallel": parallel, **keys})


def shares(model, ranks):
    """Bytes of rank 0: of every parameter the rows that `torch.chunk` gives to the first."""
    found = 0
    for parameter in model.parameters():
        rows = -(-parameter.shape[0] // ranks)
        found += rows * parameter[0].numel() * parameter.element_size()
    return found


# ---- FSDP2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "dtype"), [(1, "bfloat16"), (3, "float32"), (64, "float16"), (1000, "bfloat16")]
)
def test_a_rank_holds_its_rows_of_every_parameter_gradient_and_state(tiny_model, ranks, dtype):
    setup = setup_of(tiny_model("llama"), f"fsdp2:{ranks}", dtype=dtype, optimizer="adamw_torch")
    notes = run(setup)
    share = shares(skeleton(setup), ranks)
    assert notes.parameter_bytes == share
    assert notes.labels["gradients"] == [share] * 2
    steps = 4 * len(list(notes.model.parameters()))  # the counters of AdamW, in float32
    assert notes.labels["optimizer"] == [2 * share + steps] * 2


@pytest.mark.parametrize(
    ("model_type", "task", "checkpointing", "layers"),
    [
        ("llama", "causal-lm", True, ["model.layers.0", "model.layers.1"]),
        ("gpt2", "causal-lm", False, ["transformer.h.0", "transformer.h.1"]),
        ("bert", "masked-lm", False, ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        (
            "t5",
            "seq2seq-lm",
            True,
            [f"{part}.block.{index}" for part in ("decoder", "encoder") for index in (0, 1)],
        ),
    ],
)
def test_every_layer_is_a_group_and_the_model_the_last(
    tiny_model, model_type, task, checkpointing, layers
):
    setup = setup_of(
        tiny_model(model_type), "fsdp2:4", task=task, gradient_checkpointing=checkpointing
    )
    notes = run(setup)
    groups = [name for name, each in notes.model.named_modules() if isinstance(each, FSDPModule)]
    assert sorted(groups) == ["", *layers]
    assert notes.parameter_bytes == shares(skeleton(setup), 4)


def test_tied_weights_stay_tied(tiny_model):
    setup = setup_of(tiny_model("llama", tie_word_embeddings=True), "fsdp2:2")
    notes = run(setup)
    assert notes.model.lm_head.weight is notes.model.model.embed_tokens.weight
    assert notes.parameter_bytes == shares(skeleton(setup), 2)


def test_what_is_gathered_for_a_layer_is_told_in_full_size(tiny_model):
    setup = setup_of(tiny_model("llama"), "fsdp2:4", mode="forward")
    notes = run(setup)
    whole = sum(parameter.nbytes for parameter in skeleton(setup).parameters())
    assert sum(notes.labels["temporaries"]) == whole


def test_only_the_adapter_trains_and_its_base_is_sharded_too(tiny_model):
    setup = setup_of(tiny_model("llama"), "fsdp2:4", method="lora", max_grad_norm=1.0)
    notes = run(setup)
    frozen = shares(skeleton(setup), 4)
    adapter = notes.parameter_bytes - frozen
    assert notes.labels["gradients"] == [adapter] * 2
    assert 0 < adapter < frozen
    assert {each.requires_grad for each in notes.model.parameters()} == {True, False}


def test_values_are_those_of_training_and_not_what_memory_held(tiny_model):
    # One rank gathers what it has, so that its losses are real.
    losses = []

    class Losses(Notes):
        def watch(self, model):
            model.register_forward_hook(lambda *call: losses.append(call[-1].loss.item()))

    setup = setup_of(tiny_model("llama"), "fsdp2:1", dtype="float32", steps=3)
    execute(setup, CPU, Losses())
    assert all(4 < loss < 8 for loss in losses)  # random guesses among 256: 5.5


# ---- DDP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_replica_holds_all_and_its_gradients_twice(tiny_model, method):
    setup = setup_of(tiny_model("llama"), "ddp:8", method=method)
    notes, alone = run(setup), run(setup_of(setup.model, "none", method=method))
    assert DistributedDataParallel in notes.calls
    assert notes.labels["weights"] == alone.labels["weights"]
    assert notes.labels["optimizer"] == alone.labels["optimizer"]
    gradients = alone.labels["gradients"][0]
    assert sum(notes.labels["gradients"]) == pytest.approx(2 * 2 * gradients, rel=1e-3)


def test_without_gradients_nothing_is_wrapped(tiny_model):
    notes = run(setup_of(tiny_model("llama"), "ddp:8", mode="forward"))
    assert DistributedDataParallel not in notes.calls


# ---- the job ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_the_process_group_is_of_the_run_and_gone_afterwards(tiny_model, strategy):
    notes = run(setup_of(tiny_model("llama"), f"{strategy}:5", steps=1))
    assert set(notes.ranks) == {5}
    with pytest.raises(UnsupportedError):
        run(setup_of(tiny_model("llama"), f"{strategy}:5", optimizer="lomo"))
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"method": "qlora"}, "quantization 'nf4' and fsdp2"),
        ({"method": "int8-lora"}, "quantization 'int8' and fsdp2"),
        ({"method": "lora", "mode": "generate"}, "mode 'generate' with an adapter"),
        ({"optimizer": "adafactor"}, "optimizer 'adafactor' cannot step here"),
        ({"optimizer": "adamw_8bit"}, "optimizer 'adamw_8bit' cannot step here"),
        (
            {"adapter": {"peft_type": "LORA", "init_lora_weights": "pissa"}},
            "the adapter needs the weights of its base",
        ),
    ],
    ids=str,
)
def test_what_fsdp2_cannot_do_is_unsupported_with_the_reason(tiny_model, keys, reason):
    with pytest.raises(UnsupportedError, match=reason):
        run(setup_of(tiny_model("llama"), "fsdp2:2", **keys))


# ---- writing it ---------------------------------------------------------------------------------


def test_a_word_stands_for_the_table():
    table = {"strategy": "fsdp2", "world_size": 64}
    setup = Setup.from_mapping({"model": "m", "parallel": "fsdp2:64"})
    assert setup == Setup(model="m", parallel=table)
    assert setup.to_dict()["parallel"] == table
    assert setup.describe().endswith(" fsdp2x64")
    assert (setup.strategy, Setup(model="m").strategy) == ("fsdp2", None)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ("fsdp2", r"invalid parallel 'fsdp2': expected none, fsdp2:N or ddp:N"),
        ("fsdp2:many", "invalid parallel 'fsdp2:many'"),
        ("fsdp2:0", "invalid world_size 0"),
        ("fsdp:8", "unknown parallel strategy 'fsdp'.*fsdp2"),
    ],
)
def test_a_bad_word_is_refused_with_what_is_accepted(parallel, message):
    with pytest.raises(InputError, match=message):
        Setup.from_mapping({"model": "m", "parallel": parallel})


# ---- rules --------------------------------------------------------------------------------------


def test_rules_divide_what_is_sharded_among_the_ranks(tiny_model):
    path = tiny_model("llama")
    alone = rules(setup_of(path, "none"))
    sharded = rules(setup_of(path, "fsdp2:8"))
    assert sharded.peak_allocated_bytes == alone.peak_allocated_bytes // 8
    assert sharded.formula == f"({alone.formula}) / 8 ranks"
    assert sharded.table == alone.table
    assert rules(setup_of(path, "ddp:8")) == alone
