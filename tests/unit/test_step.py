from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.errors import InputError, UnsupportedError
from llmmem.setups import Setup
from llmmem.workload.optimizers import create_optimizer
from llmmem.workload.step import execute

CPU = torch.device("cpu")
NOT_BUILT = {
    *(name for name in OPTIMIZERS if name.startswith(("galore", "apollo"))),
    "lomo",
    "adalomo",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_anyprecision",
}
BUILT = [name for name in OPTIMIZERS if name not in NOT_BUILT]
TRAINING = ["forward", "backward", "optimizer"]


class Notes:
    """Notes what a step tells, the bytes of what it labels, and the model's calls."""

    def __init__(self, on_watch=None):
        self.events = []
        self.bytes = {}
        self.batches = []
        self.losses = []
        self.on_watch = on_watch

    def step(self):
        return nullcontext()

    @contextmanager
    def phase(self, name):
        self.events.append(name)
        yield

    def watch(self, model):
        self.events.append("watch")
        self.model = model
        model.register_forward_hook(self._note_call, with_kwargs=True)
        if self.on_watch:
            self.on_watch(model)

    def label(self, component, tensors):
        self.bytes[component] = sum(tensor.nbytes for tensor in tensors)

    def _note_call(self, _module, _args, batch, output):
        self.batches.append(
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        )
        if output.loss is not None:
            self.losses.append(output.loss.item())


def run(path, notes=None, **keys):
    notes = notes or Notes()
    setup = Setup(**{"model": path, "seq_len": 16, "batch_size": 2, "dtype": "float32", **keys})
    execute(setup, CPU, notes)
    return notes


# What happens, and in which order


def test_a_training_run_is_a_load_and_its_steps(tiny_model):
    notes = run(tiny_model("llama"), steps=2)
    assert notes.events == ["load", "watch", *TRAINING, *TRAINING]


def test_micro_batches_come_before_one_optimizer_step(tiny_model):
    notes = run(tiny_model("llama"), steps=1, gradient_accumulation_steps=3)
    assert notes.events == ["load", "watch", *TRAINING[:2] * 3, "optimizer"]


def test_a_forward_run_has_no_other_phase(tiny_model):
    notes = run(tiny_model("llama"), mode="forward", steps=2)
    assert notes.events == ["load", "watch", "forward", "forward"]
    assert notes.losses == []
    assert set(notes.bytes) == {"weights"}


@pytest.mark.parametrize("mode", ["train", "forward"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        ("llama", "causal-lm"),
        ("gpt2", "causal-lm"),
        ("bert", "masked-lm"),
        ("t5", "seq2seq-lm"),
        ("bert", "sequence-classification"),
        ("llama", "sequence-classification"),
    ],
)
def test_every_task_runs(tiny_model, model_type, task, method, mode):
    notes = run(tiny_model(model_type), task=task, method=method, mode=mode)
    assert len(notes.batches) == (2 if mode == "train" else 1)
    assert all(0 < loss < 20 for loss in notes.losses)


@pytest.mark.parametrize("method", ["qlora", "int8-lora"])
@pytest.mark.parametrize("checkpointing", [False, True, {"use_reentrant": True}])
def test_quantized_models_train_their_adapter(tiny_model, method, checkpointing):
    notes = run(tiny_model("llama"), method=method, gradient_checkpointing=checkpointing)
    assert 0 < notes.bytes["gradients"] < notes.bytes["weights"]


# The batch


def test_a_batch_is_random_ids_that_are_also_the_labels_and_a_mask_of_ones(tiny_model):
    batch, other = run(tiny_model("llama")).batches
    assert batch["input_ids"].shape == (2, 16)
    assert 0 <= batch["input_ids"].min() < batch["input_ids"].max() < 256
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert (batch["attention_mask"] == 1).all()
    assert batch["attention_mask"].shape == (2, 16)
    assert batch["use_cache"] is False
    assert not torch.equal(batch["input_ids"], other["input_ids"])


def test_a_cache_is_declined_only_where_the_model_has_one(tiny_model):
    bert = run(tiny_model("bert"), task="sequence-classification").batches[0]
    assert "use_cache" not in bert


def test_the_labels_of_a_classification_are_zeros(tiny_model):
    labels = run(tiny_model("bert"), task="sequence-classification").batches[0]["labels"]
    assert labels.tolist() == [0, 0]
    one = run(tiny_model("bert"), task="sequence-classification", num_labels=1)
    assert one.batches[0]["labels"].dtype == torch.float32


def test_a_decoder_is_as_long_as_the_sequence(tiny_model):
    trained = run(tiny_model("t5"), task="seq2seq-lm").batches[0]
    assert trained["labels"].shape == (2, 16)
    forward = run(tiny_model("t5"), task="seq2seq-lm", mode="forward").batches[0]
    assert forward["decoder_input_ids"].shape == (2, 16)


def test_every_run_draws_the_same_numbers_and_leaves_the_generator_alone(tiny_model):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = run(tiny_model("llama"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = run(tiny_model("llama"))
    assert first.losses == second.losses
    assert torch.equal(first.batches[1]["input_ids"], second.batches[1]["input_ids"])


# What is kept and what is dropped


def test_outputs_are_dropped_before_the_backward_pass_and_the_batch_after_it(tiny_model):
    kept = {}
    alive = []

    class Watcher(Notes):
        @contextmanager
        def phase(self, name):
            if name == "backward":
                alive.append(("outputs", kept["outputs"]() is not None))
            if name == "optimizer":
                tensors = ("loss", "input_ids", "attention_mask")
                alive.extend((key, kept[key]() is not None) for key in tensors)
            yield

    def remember(model):
        def hook(_module, _args, batch, output):
            kept["outputs"] = weakref.ref(output)
            kept["loss"] = weakref.ref(output.loss)
            kept["input_ids"] = weakref.ref(batch["input_ids"])
            kept["attention_mask"] = weakref.ref(batch["attention_mask"])

        model.register_forward_hook(hook, with_kwargs=True)

    gc.disable()  # dropped means at once, not when the collector comes by
    try:
        run(tiny_model("llama"), Watcher(remember), steps=1)
    finally:
        gc.enable()
    assert alive == [
        ("outputs", False),
        ("loss", False),
        ("input_ids", False),
        ("attention_mask", False),
    ]


def test_no_gradient_is_left_after_a_step(tiny_model):
    notes = run(tiny_model("llama"))
    assert notes.bytes["gradients"] == notes.bytes["weights"] - 64  # two buffers of 8 numbers
    assert all(p.grad is None for p in notes.model.parameters())


def test_everything_dies_with_the_run(tiny_model):
    notes = run(tiny_model("llama"), gradient_checkpointing=True)
    model = weakref.ref(notes.model)
    del notes.model
    gc.collect()
    assert model() is None


# Precision and clipping


def test_autocast_computes_in_its_dtype_and_keeps_the_weights(tiny_model):
    dtypes = []

    def remember(model):
        head = model.lm_head
        head.register_forward_hook(lambda *call: dtypes.append((head.weight.dtype, call[2].dtype)))

    run(tiny_model("llama"), Notes(remember), autocast="bfloat16", steps=1)
    assert dtypes == [(torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("norm", "clipped"), [(1e-6, True), (None, False)])
def test_gradients_are_clipped_when_asked_for(tiny_model, norm, clipped):
    before = []
    notes = Notes(lambda model: before.append(model.lm_head.weight.detach().clone()))
    run(
        tiny_model("llama"),
        notes,
        optimizer="sgd",
        optimizer_args={"lr": 1.0},
        max_grad_norm=norm,
        steps=1,
    )
    change = (notes.model.lm_head.weight - before[0]).norm().item()
    assert (change <= 1.1e-6) == clipped


def test_accumulated_gradients_are_those_of_the_mean(tiny_model):
    changes = []
    for steps in (1, 2):
        before = []
        notes = Notes(lambda model, before=before: before.append(model.lm_head.weight.clone()))
        run(
            tiny_model("llama"),
            notes,
            optimizer="sgd",
            optimizer_args={"lr": 1.0},
            gradient_accumulation_steps=steps,
            steps=1,
        )
        changes.append((notes.model.lm_head.weight - before[0]).norm().item())
    # Two micro-batches of the same size, each counted half: smaller than one, not twice as large.
    assert 0.5 * changes[0] < changes[1] < changes[0]


# Optimizers


def needs(name, library):
    try:
        __import__(library)
    except ImportError:
        pytest.skip(f"{name} needs {library}")


LIBRARIES = {
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "grokadamw": "grokadamw",
    "stable_adamw": "optimi",
    "schedule_free_adamw": "schedulefree",
    "schedule_free_radam": "schedulefree",
    "schedule_free_sgd": "schedulefree",
}


@pytest.mark.parametrize("name", BUILT)
def test_every_optimizer_steps(tiny_model, name):
    if name in LIBRARIES:
        needs(name, LIBRARIES[name])
    # optimi takes Triton wherever it is installed, which a CPU does not run.
    arguments = {"triton": False} if name == "stable_adamw" else {}
    notes = run(tiny_model("llama"), optimizer=name, optimizer_args=arguments)
    # GrokAdamW keeps its state on the host, out of sight.
    assert (notes.bytes["optimizer"] == 0) == (name in ("sgd", "grokadamw"))


@pytest.mark.parametrize("name", BUILT)
def test_an_optimizer_is_the_one_that_the_trainer_makes_of_its_name(name):
    import transformers

    if name in LIBRARIES:
        needs(name, LIBRARIES[name])
    defaults = {field.name: field.default for field in fields(transformers.TrainingArguments)}
    arguments = SimpleNamespace(**{**defaults, "optim": name})
    theirs, given = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
    parameters = [torch.nn.Parameter(torch.zeros(8))]
    ours = create_optimizer(Setup(model="m", optimizer=name), parameters)
    assert type(ours) is theirs
    assert memory_options(ours) == memory_options(theirs(parameters, **given))


def memory_options(optimizer):
    """All options of an optimizer but the numbers in its update rule."""
    rule = {"lr", "betas", "beta1", "beta2", "eps", "weight_decay"}
    options = {key: value for key, value in optimizer.defaults.items() if key not in rule}
    # bitsandbytes keeps bits and paging here, torchao the size of its blocks.
    options |= vars(getattr(optimizer, "args", SimpleNamespace()))
    return options | {key: getattr(optimizer, key, None) for key in ("is_paged", "block_size")}


def test_arguments_reach_the_optimizer(tiny_model):
    plain = run(tiny_model("llama"), optimizer="sgd")
    heavy = run(tiny_model("llama"), optimizer="sgd", optimizer_args={"momentum": 0.9})
    assert plain.bytes["optimizer"] == 0
    assert heavy.bytes["optimizer"] == heavy.bytes["gradients"]


def test_eight_bits_take_a_quarter_of_the_state(tiny_model):
    wide = run(tiny_model("llama"), optimizer="lion_32bit").bytes["optimizer"]
    narrow = run(tiny_model("llama"), optimizer="lion_8bit").bytes["optimizer"]
    assert narrow < wide / 2  # the smallest tensors stay in 32 bits


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_an_optimizer_that_is_not_built_is_unsupported_with_the_reason(tiny_model, name):
    with pytest.raises(UnsupportedError, match=f"{name}.*: "):
        run(tiny_model("llama"), optimizer=name)


def test_an_optimizer_that_is_not_installed_is_unsupported(tiny_model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UnsupportedError, match="needs schedulefree"):
        run(tiny_model("llama"), optimizer="schedule_free_adamw")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentun": 0.9}, r"'momentun'.*'momentum'"),
        ({"params": []}, "'params'"),
        ({"lr": -1}, "Invalid learning rate"),
        ({"lr": "fast"}, "optimizer_args"),
    ],
)
def test_bad_arguments_of_an_optimizer_are_refused(tiny_model, arguments, message):
    with pytest.raises(InputError, match=message):
        run(tiny_model("llama"), optimizer="sgd", optimizer_args=arguments)


def test_the_step_says_nothing(tiny_model, capfd):
    run(tiny_model("llama"), method="qlora", gradient_checkpointing=True, dtype="bfloat16")
    assert capfd.readouterr() == ("", "")
