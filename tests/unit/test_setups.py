from __future__ import annotations

import json
import os

import pytest

from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.errors import InputError
from llmmem.setups import Setup, load_setup


def test_full_fine_tuning_is_the_default():
    setup = Setup(model="m")
    assert (setup.task, setup.mode, setup.method) == ("causal-lm", "train", "full")
    assert (setup.quantization, setup.adapter) == ("none", "none")
    assert (setup.dtype, setup.batch_size, setup.seq_len) == ("bfloat16", 1, 2048)
    assert (setup.optimizer, setup.steps) == ("adamw_torch_fused", 2)
    assert setup.gradient_checkpointing is False


@pytest.mark.parametrize(
    ("keys", "seq_len"),
    [
        ({"model": "google-bert/bert-base-uncased"}, 512),
        ({"model": "FacebookAI/roberta-base"}, 512),  # padding takes two of 514
        ({"model": "openai-community/gpt2"}, 1024),
        ({"model": "openai-community/gpt2", "mode": "generate", "new_tokens": 24}, 1000),
        (
            {
                "model": "openai-community/gpt2",
                "adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 24},
            },
            1000,
        ),
        ({"model": "openai-community/gpt2", "seq_len": 4096}, 4096),  # as given; a build refuses it
        ({"model": "google-t5/t5-base"}, 2048),  # relative positions
        ({"model": "meta-llama/Llama-3.2-1B"}, 2048),
    ],
)
def test_the_default_length_is_within_the_positions_of_the_model(keys, seq_len):
    setup = Setup(**keys)
    assert setup.seq_len == seq_len
    assert Setup.from_mapping(setup.to_dict()) == setup


def test_the_default_length_is_within_the_positions_of_a_local_config(tiny_model):
    assert Setup(model=tiny_model("bert")).seq_len == 64


@pytest.mark.parametrize(
    ("method", "quantization"),
    [("lora", "none"), ("qlora", "nf4"), ("int8-lora", "int8")],
)
def test_a_method_stands_for_its_parts(method, quantization):
    setup = Setup(model="m", method=method)
    assert setup.quantization == quantization
    assert setup.adapter["peft_type"] == "LORA"
    assert setup.adapter["target_modules"] == "all-linear"


def test_keys_beside_a_method_override_it():
    setup = Setup(model="m", method="qlora", quantization="fp4", double_quant=False)
    assert (setup.quantization, setup.double_quant) == ("fp4", False)
    assert Setup(model="m", method="lora", adapter={"peft_type": "IA3"}).adapter == {
        "peft_type": "IA3"
    }


def test_keys_that_do_not_apply_are_none():
    setup = Setup(model="m", mode="forward")
    assert setup.optimizer is None
    assert setup.gradient_accumulation_steps is None
    assert setup.num_labels is None
    assert setup.steps == 1
    assert Setup(model="m", task="sequence-classification").num_labels == 2
    assert Setup(model="m", mode="generate").new_tokens == 32


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "causal"}, "'causal-lm'"),
        ({"dtype": "bf16"}, "bfloat16"),
        ({"method": "qlor"}, "'qlora'"),
        ({"method": None}, "unknown method None"),
        ({"batch_size": None}, "invalid batch_size None"),
        ({"optimizer": "adamw"}, "adamw_torch"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": True}, "batch_size True"),
        ({"seq_len": "2048"}, "seq_len '2048'"),
        ({"steps": 1.0}, "steps 1.0"),
        ({"max_grad_norm": -1}, "max_grad_norm -1"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm inf"),
        ({"batch_size": 10**9}, "batch_size 1000000000: expected 1048576 at most"),
        ({"seq_len": 10**12}, "seq_len 1000000000000"),
        ({"steps": 10**9}, "steps 1000000000"),
        ({"gradient_accumulation_steps": 10**9}, "gradient_accumulation_steps 1000000000"),
        ({"mode": "generate", "new_tokens": 10**9}, "new_tokens 1000000000"),
        (
            {"task": "sequence-classification", "num_labels": 10**9},
            "num_labels 1000000000: expected 1000000 at most",
        ),
        (
            {"parallel": {"strategy": "ddp", "world_size": 10**9}},
            "world_size 1000000000: expected 131072 at most",
        ),
        ({"adapter": {"peft_type": "LORA", "lora_alpha": float("nan")}}, "adapter: nan is not a"),
        ({"optimizer_args": {"lr": {1, 2}}}, "optimizer_args: {1, 2} is neither"),
        ({"model": ""}, "model ''"),
        ({"adapter": {"r": 8}}, "peft_type"),
        ({"adapter": "lora"}, "adapter 'lora'"),
        ({"optimizer_args": [1]}, "optimizer_args"),
        ({"gradient_checkpointing": {"reentrant": True}}, "use_reentrant"),
        ({"parallel": {"strategy": "fsdp", "world_size": 2}}, "'fsdp2'"),
        ({"parallel": {"strategy": "ddp", "world_size": 0}}, "world_size 0"),
        ({"parallel": {"strategy": "ddp", "ranks": 2}}, "'ranks'"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(keys, message):
    with pytest.raises(InputError, match=message):
        Setup(**{"model": "m", **keys})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quantization": "nf4"}, "needs an adapter"),
        ({"double_quant": True}, "4-bit"),
        ({"kbit_prepare": True, "method": "lora"}, "'kbit_prepare'"),
        ({"adapter_dtype": "bfloat16"}, "'adapter_dtype'"),
        ({"num_labels": 3}, "'num_labels'"),
        ({"mode": "forward", "optimizer": "sgd"}, "mode train"),
        ({"mode": "forward", "gradient_checkpointing": True}, "mode train"),
        ({"new_tokens": 4}, "mode generate"),
        ({"mode": "generate", "task": "masked-lm"}, "contradict"),
    ],
)
def test_keys_that_contradict_are_refused(keys, message):
    with pytest.raises(InputError, match=message):
        Setup(**{"model": "m", **keys})


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'batchsize'.*'batch_size'"):
        Setup.from_mapping({"model": "m", "batchsize": 2})
    with pytest.raises(InputError, match="'model'"):
        Setup.from_mapping({})


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"method": "qlora", "gradient_checkpointing": {"use_reentrant": True}},
        {"mode": "generate", "kv_cache": "static"},
        {"task": "sequence-classification", "num_labels": 7, "max_grad_norm": 1},
        {"parallel": {"strategy": "fsdp2", "world_size": 64}},
    ],
)
def test_a_setup_survives_being_written_and_read(keys):
    setup = Setup(model="m", **keys)
    assert Setup.from_mapping(json.loads(json.dumps(setup.to_dict()))) == setup


def test_equal_setups_have_one_key_however_they_were_given():
    spelled = Setup(model="m", method="lora", batch_size=1, optimizer="adamw_torch_fused")
    assert spelled.key() == Setup(model="m", method="lora").key()
    assert spelled.key() != Setup(model="m", method="lora", batch_size=2).key()


def test_a_setup_does_not_change_with_the_table_it_was_made_from():
    adapter = {"peft_type": "LORA", "target_modules": ["q_proj"]}
    setup = Setup(model="m", adapter=adapter)
    adapter["target_modules"].append("v_proj")
    assert setup.adapter["target_modules"] == ["q_proj"]


def test_none_can_be_written_out():
    setup = Setup.from_mapping(
        {"model": "m", "parallel": "none", "attention": "none", "adapter": "none"}
    )
    assert setup == Setup(model="m")


def test_toml_and_json_files_are_read_and_overridden(tmp_path):
    toml = tmp_path / "setup.toml"
    toml.write_text('model = "m"\nmethod = "lora"\nbatch_size = 4\n')
    document = tmp_path / "setup.json"
    document.write_text('{"model": "m", "method": "lora", "batch_size": 4}')
    assert load_setup(toml) == load_setup(document) == Setup(model="m", method="lora", batch_size=4)
    assert load_setup(toml, {"batch_size": 8}).batch_size == 8


@pytest.mark.parametrize("content", [b"model = ", b"\xff\xfe", b'model = "m"\ntask = 3\n'])
def test_a_file_that_holds_no_setup_is_refused(tmp_path, content):
    path = tmp_path / "setup.toml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_setup(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.toml"):
        load_setup(tmp_path / "missing.toml")


def test_every_optimizer_of_transformers_is_accepted():
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZERS) == {name.value for name in OptimizerNames}


def test_the_short_name_tells_setups_apart():
    assert Setup(model="m").describe() == "full bfloat16 1x2048"
    setup = Setup(
        model="m", method="qlora", batch_size=4, gradient_checkpointing=True, optimizer="sgd"
    )
    assert setup.describe() == "qlora bfloat16 4x2048 checkpointing sgd"


def test_documents_that_no_reader_survives_are_refused_in_one_line(tmp_path):
    path = tmp_path / "setup.json"
    path.write_text('{"model": ' + "[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_setup(path)
    path.write_text('{"model": "m", "adapter": ' + '{"a": ' * 500 + "1" + "}" * 501)
    with pytest.raises(InputError, match="nested more than 32 deep"):
        load_setup(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="not a file"):
        load_setup(path)


def test_a_quantization_is_a_name_or_a_config_of_transformers():
    table = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    setup = Setup(model="m", method="lora", quantization=table)
    assert setup.is_quantized
    assert setup.quantization_method == "bitsandbytes"
    assert setup.kbit_prepare is True
    assert setup.double_quant is None
    assert Setup.from_mapping(setup.to_dict()) == setup
    assert Setup(model="m", method="qlora").quantization_method == "bitsandbytes"
    assert Setup(model="m").quantization_method is None


def test_a_quantization_without_a_method_is_refused():
    with pytest.raises(InputError, match="it needs a quant_method"):
        Setup(model="m", method="lora", quantization={"load_in_4bit": True})
    with pytest.raises(InputError, match="unknown quantization 'nf5'"):
        Setup(model="m", method="lora", quantization="nf5")
