from __future__ import annotations

import json
import logging
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmmem.catalogue.models import find_model
from llmmem.errors import InputError, UnsupportedError
from llmmem.setups import Setup
from llmmem.workload.build import build, load_config, skeleton, weight_tensors
from llmmem.workload.config_bounds import check_config

CPU = torch.device("cpu")
META = torch.device("meta")
TASKS = {"llama": "causal-lm", "bert": "masked-lm", "t5": "seq2seq-lm", "gpt2": "causal-lm"}


def setup_of(path, model_type="llama", **keys):
    return Setup(**{"model": path, "task": TASKS[model_type], "seq_len": 32, **keys})


def made_by_transformers(setup):
    import transformers

    classes = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "masked-lm": transformers.AutoModelForMaskedLM,
        "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
    }
    config = transformers.AutoConfig.from_pretrained(setup.model)
    return classes[setup.task].from_config(config, dtype=getattr(torch, setup.dtype))


class Storages(TorchDispatchMode):
    """Keeps every storage that is seen on a device."""

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.device == self.device:
            storage = output.untyped_storage()
            self.seen[storage._cdata] = storage
        return output


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model_type", TASKS)
def test_parameters_and_buffers_are_those_that_transformers_makes(tiny_model, model_type, dtype):
    setup = setup_of(tiny_model(model_type), model_type, dtype=dtype)
    ours, theirs = build(setup, CPU).model, made_by_transformers(setup)
    for name, parameter in theirs.named_parameters(remove_duplicate=False):
        mine = ours.get_parameter(name)
        assert (mine.shape, mine.dtype) == (parameter.shape, parameter.dtype)
        assert mine.isfinite().all()
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    buffers = dict(theirs.named_buffers())
    assert dict(ours.named_buffers()).keys() == buffers.keys()
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_tied_weights_are_one_tensor(tiny_model):
    tied = build(setup_of(tiny_model("llama", tie_word_embeddings=True)), CPU).model
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    free = build(setup_of(tiny_model("llama", tie_word_embeddings=False)), CPU).model
    assert free.lm_head.weight is not free.model.embed_tokens.weight


def test_weights_start_as_a_model_that_is_trained_would(tiny_model):
    model = build(setup_of(tiny_model("llama"), dtype="float32"), CPU).model
    assert (model.model.norm.weight == 1).all()
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("device", [CPU, META], ids=str)
@pytest.mark.parametrize("model_type", TASKS)
def test_all_weights_are_on_the_device(tiny_model, model_type, device):
    model = build(setup_of(tiny_model(model_type), model_type), device).model
    assert {tensor.device for tensor in weight_tensors(model)} == {device}


@pytest.mark.parametrize("model_type", TASKS)
def test_nothing_is_created_on_the_device_but_what_stays(tiny_model, model_type):
    with Storages(META) as storages:
        model = build(setup_of(tiny_model(model_type), model_type), META).model
    held = {tensor.untyped_storage()._cdata for tensor in weight_tensors(model)}
    assert set(storages.seen) == held


def test_the_largest_model_of_the_catalogue_is_built_without_its_memory():
    model = build(Setup(model="meta-llama/Llama-3.1-405B"), META).model
    entry = find_model("meta-llama/Llama-3.1-405B")
    assert sum(p.numel() for p in model.parameters()) == entry.unique_parameters


def test_a_skeleton_has_no_storage_and_is_not_seen_by_who_watches(tiny_model):
    with Storages(META) as storages:
        model = skeleton(setup_of(tiny_model("llama")))
    assert not storages.seen
    assert {p.device for p in model.parameters()} == {META}


def test_mode_train_trains_and_mode_forward_does_not(tiny_model):
    path = tiny_model("llama")
    trained = build(setup_of(path), CPU)
    assert trained.model.training
    assert len(trained.trainable) == len(list(trained.model.parameters()))
    assert not build(setup_of(path, mode="forward"), CPU).model.training


def test_the_attention_asked_for_is_used(tiny_model):
    path = tiny_model("llama")
    assert build(setup_of(path), META).config._attn_implementation == "sdpa"
    assert build(setup_of(path, attention="eager"), META).config._attn_implementation == "eager"


def test_a_classifier_has_the_labels_asked_for_and_a_padding_token(tiny_model):
    setup = setup_of(tiny_model("llama"), task="sequence-classification", num_labels=7)
    built = build(setup, META)
    assert built.model.score.out_features == 7
    assert built.config.pad_token_id is not None


# Quantization


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_a_4bit_base_is_what_transformers_would_load(tiny_model, quantization):
    from bitsandbytes.nn import Linear4bit

    setup = setup_of(tiny_model("llama"), method="qlora", quantization=quantization)
    model = build(setup, CPU).model.get_base_model()
    layer = model.model.layers[0].mlp.up_proj.base_layer
    assert isinstance(layer, Linear4bit)
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == 64 * 128 // 2
    assert layer.weight.quant_type == quantization
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype == torch.bfloat16
    assert not isinstance(model.lm_head, Linear4bit)
    assert model.is_loaded_in_4bit
    assert model.is_quantized
    assert model.config.quantization_config.load_in_4bit


def test_double_quantization_can_be_switched_off(tiny_model):
    setup = setup_of(tiny_model("llama"), method="qlora", double_quant=False)
    model = build(setup, CPU).model.get_base_model()
    state = model.model.layers[0].mlp.up_proj.base_layer.weight.quant_state
    assert not state.nested
    assert state.absmax.dtype == torch.float32


def test_an_int8_base_is_what_transformers_would_load(tiny_model):
    from bitsandbytes.nn import Linear8bitLt

    setup = setup_of(tiny_model("llama"), method="int8-lora", dtype="float16")
    model = build(setup, CPU).model.get_base_model()
    layer = model.model.layers[0].mlp.up_proj.base_layer
    assert isinstance(layer, Linear8bitLt)
    assert layer.weight.dtype == torch.int8
    assert layer.state.threshold == 6.0
    assert not layer.state.has_fp16_weights
    assert model.is_loaded_in_8bit


@pytest.mark.parametrize(
    ("model_type", "converted", "kept"),
    [
        ("gpt2", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"], ["lm_head"]),
        (
            "t5",
            ["encoder.block.0.layer.0.SelfAttention.q"],
            ["encoder.block.0.layer.1.DenseReluDense.wo"],
        ),
        ("bert", ["bert.encoder.layer.0.attention.self.query"], ["cls.predictions.decoder"]),
    ],
)
def test_the_layers_quantized_are_those_of_transformers_own_list(
    tiny_model, model_type, converted, kept
):
    from bitsandbytes.nn import Linear4bit

    setup = setup_of(tiny_model(model_type), model_type, quantization="nf4", mode="forward")
    model = build(setup, CPU).model
    assert all(isinstance(model.get_submodule(name), Linear4bit) for name in converted)
    assert not any(isinstance(model.get_submodule(name), Linear4bit) for name in kept)


def test_the_head_that_peft_trains_is_not_quantized(tiny_model):
    setup = setup_of(tiny_model("bert"), task="sequence-classification", method="qlora")
    built = build(setup, CPU)
    head = built.model.get_base_model().classifier.modules_to_save["default"]
    assert head.weight.requires_grad
    assert head.weight.is_floating_point()


def test_quantization_constants_are_among_the_weights(tiny_model):
    model = build(setup_of(tiny_model("llama"), mode="forward", quantization="nf4"), CPU).model
    state = model.model.layers[0].mlp.up_proj.weight.quant_state
    found = {id(tensor) for tensor in weight_tensors(model)}
    constants = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    assert {id(tensor) for tensor in constants} <= found


def test_int8_constants_are_among_the_weights_before_and_after_the_first_call(tiny_model):
    model = build(setup_of(tiny_model("llama"), mode="forward", quantization="int8"), CPU).model
    layer = model.model.layers[0].mlp.up_proj
    constants = layer.weight.SCB
    assert any(tensor is constants for tensor in weight_tensors(model))
    layer(torch.zeros(1, 64, dtype=torch.bfloat16))
    assert layer.weight.SCB is None
    assert any(tensor is constants for tensor in weight_tensors(model))


def test_a_layer_is_handed_to_move_without_storage_and_in_the_setups_dtype(tiny_model):
    seen = []

    def move(linear, device):
        seen.append((linear.weight.device, linear.weight.dtype, tuple(linear.weight.shape), device))

    setup = setup_of(tiny_model("llama"), mode="forward", quantization="nf4")
    build(setup, META, move=move)
    assert len(seen) == 14
    assert seen[0] == (META, torch.bfloat16, (64, 64), META)


@pytest.mark.parametrize(("prepare", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_kbit_preparation_upcasts_what_is_not_quantized(tiny_model, prepare, dtype):
    setup = setup_of(tiny_model("llama"), method="qlora", kbit_prepare=prepare)
    model = build(setup, CPU).model.get_base_model()
    assert model.model.embed_tokens.weight.dtype == dtype
    assert model.model.norm.weight.dtype == dtype


# Adapters and checkpointing


@pytest.mark.parametrize(
    ("adapter_dtype", "dtype"),
    [(None, torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_an_adapter_has_the_dtype_asked_for_and_is_all_that_trains(
    tiny_model, adapter_dtype, dtype
):
    built = build(setup_of(tiny_model("llama"), method="lora", adapter_dtype=adapter_dtype), CPU)
    # r = 16 on the seven linear layers of each of the two layers, A and B
    assert len(built.trainable) == 2 * 7 * 2
    assert {p.dtype for p in built.trainable} == {dtype}
    assert built.model.get_base_model().lm_head.weight.dtype == torch.bfloat16


def test_any_adapter_of_peft_can_be_named(tiny_model):
    adapter = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}
    built = build(setup_of(tiny_model("llama"), adapter=adapter), CPU)
    assert len(built.trainable) == 2
    assert built.model.active_peft_config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"peft_type": "LOAR"}, r"peft_type 'LOAR'.*'LORA'"),
        ({"peft_type": "LORA", "lora_alfa": 3}, r"'lora_alfa'.*'lora_alpha'"),
        ({"peft_type": "LORA", "target_modules": ["nowhere"]}, "nowhere"),
        ({"peft_type": "LORA", "target_modules": "all-linear", "r": 0}, "positive integer"),
        ({"peft_type": "ADALORA"}, "total_step"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_in_one_line(tiny_model, adapter, message):
    with pytest.raises(InputError, match=message) as caught:
        build(setup_of(tiny_model("llama"), adapter=adapter), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True, {"use_reentrant": True}])
def test_checkpointing_is_on_when_asked_for(tiny_model, method, checkpointing):
    setup = setup_of(tiny_model("llama"), method=method, gradient_checkpointing=checkpointing)
    model = build(setup, CPU).model
    layer = model.get_submodule(
        "model.layers.0" if method == "full" else "base_model.model.model.layers.0"
    )
    assert layer.gradient_checkpointing == bool(checkpointing)
    if checkpointing:
        reentrant = layer._gradient_checkpointing_func.keywords["use_reentrant"]
        assert reentrant == (checkpointing is not True)


# What is refused


@pytest.mark.parametrize("model", ["x" * 5000, "no such\nmodel", "a/b/c"])
def test_what_cannot_be_an_id_is_refused_in_one_line(model):
    with pytest.raises(InputError, match="unknown model") as caught:
        load_config(Setup(model=model))
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_with_the_nearest_of_the_catalogue(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        load_config(Setup(model="meta-lama/Llama-3.2-1b"))
    message = str(caught.value)
    assert "'meta-lama/Llama-3.2-1b'" in message
    assert "meta-llama/Llama-3.2-1B" in message
    assert "llmmem models" in message
    assert "\n" not in message


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_config(Setup(model=str(tmp_path / "config.json")))
    with pytest.raises(InputError, match="no such file"):
        load_config(Setup(model="missing/config.json"))


def test_a_directory_with_a_config_is_a_model(tmp_path, tiny_model):
    directory = tmp_path / "model"
    directory.mkdir()
    with pytest.raises(InputError, match="config"):
        load_config(Setup(model=str(directory)))
    (tmp_path / tiny_model("llama")).rename(directory / "config.json")
    assert load_config(Setup(model=str(directory))).hidden_size == 64


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "",
        '{"hidden_size": 64}',
        '{"model_type": "no-such-type"}',
        '{"model_type": "llama", "hidden_size": "large"}',
        '{"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7}',
        '{"model_type": "llama", "num_hidden_layers": -1, "vocab_size": -5}',
        '{"model_type": "llama", "hidden_act": "no-such-function"}',
    ],
)
def test_a_broken_config_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        build(Setup(model=str(path)), META)
    assert "\n" not in str(caught.value)


def test_a_config_of_quantized_weights_is_not_taken_for_another_model(tiny_model):
    path = tiny_model("llama", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedError, match="gptq"):
        load_config(Setup(model=path))


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError):
        load_config(Setup(model=str(tmp_path)))
    assert not any("evil" in name for name in sys.modules)


def test_a_task_that_the_model_has_no_class_for_is_refused_with_those_it_has(tiny_model):
    with pytest.raises(InputError, match=r"'causal-lm'.*seq2seq-lm"):
        build(Setup(model=tiny_model("t5")), META)


def test_more_tokens_than_the_model_has_positions_are_refused(tiny_model):
    path = tiny_model("bert")
    build(setup_of(path, "bert", seq_len=64), META)
    with pytest.raises(InputError, match=r"seq_len 65.* 64 positions"):
        build(setup_of(path, "bert", seq_len=65), META)
    build(setup_of(tiny_model("llama"), seq_len=4096), META)  # rotary: no table to run out of


@pytest.mark.parametrize(
    ("model", "task", "positions"),
    [
        ("FacebookAI/roberta-base", "masked-lm", 512),  # of 514 rows: padding takes two
        ("facebook/opt-125m", "causal-lm", 2048),  # of 2050 rows: an offset takes two
        ("EleutherAI/gpt-j-6b", "causal-lm", 2048),  # a buffer
        ("openai-community/gpt2", "causal-lm", 1024),
    ],
)
def test_the_positions_counted_are_those_that_tokens_can_have(model, task, positions):
    assert Setup(model=model, task=task).seq_len == positions
    build(Setup(model=model, task=task, seq_len=positions), META)
    with pytest.raises(InputError, match=f"{positions} positions"):
        build(Setup(model=model, task=task, seq_len=positions + 1), META)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"parallel": {"strategy": "fsdp2", "world_size": 2}, "method": "qlora"}, "fsdp2"),
        ({"quantization": "fp8", "mode": "forward"}, "fp8"),
        ({"attention": "flash_attention_2"}, "FlashAttention2"),
        ({"model_type": "t5", "task": "sequence-classification"}, "encoder-decoder"),
    ],
)
def test_what_cannot_be_built_is_unsupported(tiny_model, keys, message):
    model_type = keys.pop("model_type", "llama")
    with pytest.raises(UnsupportedError, match=message):
        build(setup_of(tiny_model(model_type), model_type, **keys), META)


def test_an_attention_that_does_not_exist_is_refused(tiny_model):
    with pytest.raises(InputError, match="no-such-attention"):
        build(setup_of(tiny_model("llama"), attention="no-such-attention"), META)


def test_libraries_say_nothing_and_keep_their_log_levels(tiny_model, capfd):
    logger = logging.getLogger("transformers")
    before = logger.level
    build(setup_of(tiny_model("gpt2"), method="qlora", gradient_checkpointing=True), CPU)
    assert capfd.readouterr() == ("", "")
    assert logger.level == before


def test_a_table_of_an_adapter_becomes_the_object_that_peft_expects(tiny_model):
    adapter = {
        "peft_type": "LORA",
        "target_modules": ["q_proj"],
        "runtime_config": {"ephemeral_gpu_offload": True},
    }
    built = build(setup_of(tiny_model("llama"), adapter=adapter), CPU)
    assert built.model.active_peft_config.runtime_config.ephemeral_gpu_offload is True


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_tokens_that_an_adapter_puts_first_need_positions_too(tiny_model, peft_type):
    adapter = {"peft_type": peft_type, "num_virtual_tokens": 20}
    rows = 64
    model = tiny_model("gpt2", n_positions=rows)
    build(setup_of(model, adapter=adapter, seq_len=rows - 20), CPU)
    with pytest.raises(InputError, match="64 positions, of which the adapter takes 20"):
        build(setup_of(model, adapter=adapter, seq_len=rows - 19), CPU)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": -5}, "invalid num_hidden_layers -5"),
        ({"num_hidden_layers": 10**9}, "invalid num_hidden_layers 1000000000 .* from 0 to 10000"),
        ({"num_labels": 10**9}, "invalid num_labels 1000000000"),
        ({"hidden_size": -64}, "invalid hidden_size -64"),
        ({"text_config": {"n_layer": 10**6}}, "invalid text_config.n_layer 1000000"),
    ],
)
def test_a_config_of_sizes_that_no_model_has_is_refused_before_anything_is_built(
    tmp_path, changed, message
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", **changed}))
    with pytest.raises(InputError, match=message):
        load_config(Setup(model=str(path)))


def test_every_config_of_transformers_is_within_the_bounds():
    from transformers import CONFIG_MAPPING

    checked = 0
    for name in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[name]().to_dict()
        except Exception:  # some have no defaults, or need a library
            continue
        check_config(config, name)
        checked += 1
    assert checked > 100
