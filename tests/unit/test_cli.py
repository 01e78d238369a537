"""The `llmmem` command, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
import pytest

from llmmem import Setup, simgpu
from llmmem.catalogue.gpus import gpus
from llmmem.catalogue.models import models
from llmmem.cli.setup_options import HELP, read_setup, setup_options
from llmmem.cli.show import show_estimate, show_run
from llmmem.estimation import estimate
from llmmem.results import COMPONENTS, Estimate, RunResult

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = "meta-llama/Llama-3.2-1B"
PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_process_bytes")
HEAVY = ("torch", "transformers", "pandas", "pynvml", "rich")

needs_simulated_gpu = pytest.mark.skipif(
    bool(simgpu.check()), reason="; ".join(map(str, simgpu.check()))
)


def llmmem(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmmem", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},  # asking a hub that is not there takes time
    )


def check_refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """Nothing on standard output, and one line on standard error that says all of it."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("llmmem: ")
    for text in said:
        assert text in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum", "m"], ["unknown command 'rum'", "did you mean 'run'"]),
        (["--verison"], ["--verison", "--version"]),
        (["run"], ["MODEL | SETUP.toml"]),
        (["run", "m", "n"], ["unexpected extra argument", "n"]),
        (["run", "m", "--metod", "lora"], ["--metod", "--method"]),
        (["run", "m", "--steps"], ["--steps", "requires an argument"]),
        (["run", "m", "--method", "qlorra"], ["unknown method 'qlorra'", "'qlora'", "int8-lora"]),
        (["run", "m", "--mode", "infer"], ["unknown mode 'infer'", "train, forward, generate"]),
        (["run", "m", "--task", "causal"], ["unknown task 'causal'", "'causal-lm'"]),
        (["run", "m", "--dtype", "bf16"], ["unknown dtype 'bf16'", "bfloat16, float16, float32"]),
        (["run", "m", "--optimizer", "adamw"], ["unknown optimizer 'adamw'", "adamw_torch"]),
        (["run", "m", "--batch-size", "-1"], ["invalid batch_size -1", "above zero"]),
        (["run", "m", "--seq-len", "0"], ["invalid seq_len 0", "above zero"]),
        (["run", "m", "--seq-len", "2k"], ["invalid seq_len '2k'", "whole number"]),
        (["run", "m", "--steps", "1.5"], ["invalid steps '1.5'", "whole number"]),
        (["run", "m", "--max-grad-norm", "-1"], ["invalid max_grad_norm -1.0", "above zero"]),
        (["run", "m", "--adapter", "LORA"], ["invalid adapter 'LORA'", "PEFT config"]),
        (["run", "m", "--adapter", "{r = 8}"], ["invalid adapter", "peft_type"]),
        (["run", "m", "--optimizer-args", "{lr: 1}"], ["invalid optimizer_args '{lr: 1}'"]),
        (["run", "m", "--parallel", "{strategy='tp'}"], ["unknown parallel strategy 'tp'"]),
        (["run", "m", "--num-labels", "3"], ["num_labels", "sequence-classification"]),
        (["run", "m", "--model", "n"], ["two models", "'m'", "'n'"]),
        (["run", "m", "--device", "sim:h10"], ["unknown GPU 'h10'", "'h100'"]),
        (["run", "m", "--device", "tpu"], ["invalid device 'tpu'", "cuda:N"]),
        (["run", "m", "--timeout", "-1"], ["invalid timeout -1", "above zero"]),
        (["run", "m", "--timeout", "1h"], ["--timeout", "'1h'"]),
        (["estimate", "m", "--gpu", "rtx490"], ["unknown GPU 'rtx490'", "'rtx4090'"]),
        (["estimate", "absent.toml"], ["cannot read setup 'absent.toml'", "No such file"]),
        (["gpus", "h100"], ["unexpected extra argument", "h100"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].islower() else None,
)
def test_bad_input_is_one_line_that_names_it_and_what_is_accepted(
    arguments: list[str], said: list[str]
) -> None:
    check_refused(llmmem(*arguments), 2, *said)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("setup.toml", "model = 'm'\nmetod = 'lora'\n", ["unknown setup key 'metod'", "'method'"]),
        ("setup.toml", "model = 'm'\nbatch_size = -2\n", ["invalid batch_size -2"]),
        ("setup.toml", "method = 'lora'\n", ["needs the key 'model'"]),
        ("setup.toml", "model = \n", ["cannot read setup", "setup.toml"]),
        ("setup.json", '{"model": ', ["cannot read setup", "setup.json"]),
        ("setup.json", "[]", ["cannot read setup", "setup.json"]),
    ],
)
def test_bad_setup_file_is_named(tmp_path: Path, name: str, text: str, said: list[str]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")

    check_refused(llmmem("run", tmp_path / name), 2, *said)


def test_unknown_model_is_named_with_the_nearest_one() -> None:
    done = llmmem("estimate", "meta-llama/Llama-3.2-1BB", "--json")

    check_refused(done, 2, "meta-llama/Llama-3.2-1BB", LLAMA)


def test_broken_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama",', encoding="utf-8")

    check_refused(llmmem("estimate", path), 2, str(path))


def test_every_key_of_a_setup_is_an_option_with_help() -> None:
    names = [field.name for field in fields(Setup)]
    shown = llmmem("run", "--help").stdout

    assert list(HELP) == names
    for name in names:
        assert f"--{name.replace('_', '-')} " in shown


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from llmmem.cli import main; main(['run', '--help']); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert not set(HEAVY) & set(done.stdout.splitlines()[-1].split())


def test_without_a_command_the_help_is_shown() -> None:
    done = llmmem()

    assert (done.returncode, done.stderr) == (0, "")
    for name in ("estimate", "run", "models", "gpus", "doctor"):
        assert name in done.stdout


def test_version_is_shown() -> None:
    done = llmmem("--version")

    assert done.returncode == 0
    assert done.stdout.startswith("llmmem ")


@pytest.mark.parametrize(
    "text",
    [
        '{peft_type="LORA", r=8, target_modules=["q_proj","v_proj"]}',
        '{"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"]}',
    ],
    ids=["TOML", "JSON"],
)
def test_a_table_is_given_as_toml_or_json(text: str) -> None:
    setup = setup_of_options(LLAMA, "--adapter", text)

    assert setup.adapter == {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"]}


def test_options_override_the_setup_file(tmp_path: Path) -> None:
    path = tmp_path / "setup.toml"
    path.write_text(
        f'model = "{LLAMA}"\nmethod = "qlora"\nbatch_size = 4\nmax_grad_norm = 1.0\n'
        "gradient_checkpointing = {use_reentrant = true}\n",
        encoding="utf-8",
    )

    kept = setup_of_options(path)
    assert (kept.batch_size, kept.double_quant) == (4, True)
    assert kept.gradient_checkpointing == {"use_reentrant": True}
    changed = setup_of_options(
        path,
        *("--batch-size", "8", "--model", "gpt2", "--max-grad-norm", "none"),
        *("--no-double-quant", "--no-gradient-checkpointing"),
    )
    assert (changed.model, changed.method, changed.batch_size) == ("gpt2", "qlora", 8)
    assert changed.max_grad_norm is None
    assert changed.double_quant is False
    assert changed.gradient_checkpointing is False


def test_a_json_file_is_a_model_if_it_has_a_model_type_and_else_a_setup(tmp_path: Path) -> None:
    model, setup = tmp_path / "gpt.json", tmp_path / "config.json"
    model.write_text('{"model_type": "gpt2"}', encoding="utf-8")
    setup.write_text('{"model": "gpt2", "seq_len": 64}', encoding="utf-8")

    assert setup_of_options(model).model == str(model)
    assert setup_of_options(setup) == Setup(model="gpt2", seq_len=64)


def setup_of_options(*arguments: object) -> Setup:
    """The setup that a command line comes to, without what the command then does with it."""

    @click.command()
    @setup_options
    def command(source: str, **options: Any) -> Setup:
        return read_setup(source, options)

    setup = command.main(list(map(str, arguments)), standalone_mode=False)
    assert isinstance(setup, Setup)
    return setup


def test_models_lists_the_catalogue() -> None:
    document = json.loads(llmmem("models", "--json").stdout)
    shown = llmmem("models").stdout

    assert [entry["id"] for entry in document] == [entry.id for entry in models()]
    llama = next(entry for entry in document if entry["id"] == LLAMA)
    assert (llama["model_type"], llama["unique_parameters"]) == ("llama", 1_235_814_400)
    assert "1,235,814,400" in shown


def test_gpus_lists_the_catalogue_with_the_source_of_the_context() -> None:
    document = json.loads(llmmem("gpus", "--json").stdout)
    shown = llmmem("gpus").stdout

    assert [gpu["name"] for gpu in document] == [gpu.name for gpu in gpus()]
    assert all(gpu["context_bytes"] > 0 and gpu["context_source"] for gpu in document)
    for gpu in gpus():
        assert gpu.name in shown
    assert "Source of the context" in shown


def test_doctor_says_what_works_and_what_is_missing() -> None:
    done = llmmem("doctor", "--json")
    document = json.loads(done.stdout)

    assert document["simulated"]["works"] == (not simgpu.check())
    assert document["simulated"]["problems"] == list(map(str, simgpu.check()))
    for source in ("measured", "simulated", "estimated"):
        assert document[source]["works"] == (not document[source]["problems"])
    assert document["versions"]["torch"]
    assert document["estimated"]["works"]
    assert done.returncode == 0
    shown = llmmem("doctor").stdout
    assert "yes  estimated" in shown
    for problem in simgpu.check():
        assert problem.remedy in " ".join(shown.split())
    assert document["coverage_problem"] is None
    assert bool(document["coverage"]) == document["simulated"]["works"]
    for figure in document["coverage"]:
        assert f"{figure['found']} of {figure['expected']}" in shown
        assert figure["expected"] - figure["found"] == len(figure["missing"])
        assert not figure["missing"] or f"without {figure['missing'][0]}" in shown


@pytest.fixture(scope="module")
def estimated() -> subprocess.CompletedProcess[str]:
    return llmmem("estimate", LLAMA, "--method=lora", "--gpu=t4", "--seq-len=128", "--json")


def test_estimate_prints_one_json_document_with_rules_and_trace(
    estimated: subprocess.CompletedProcess[str],
) -> None:
    assert estimated.returncode == 0, estimated.stderr
    document = json.loads(estimated.stdout)
    assert document["source"] == "estimated"
    assert document["gpu"] == "t4"
    assert document["setup"]["method"] == "lora"
    assert document["setup"]["seq_len"] == 128
    for part in ("rules", "trace"):
        assert set(PEAKS) <= set(document[part])
    assert document["trace"]["peak_allocated_bytes"] > 2 * 1_235_814_400
    assert Estimate.from_dict(document).to_dict() == document


@pytest.mark.parametrize("width", [80, 120, 200])
def test_estimate_shows_rules_trace_phases_and_assumptions_at_any_width(
    estimated: subprocess.CompletedProcess[str],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))

    show_estimate(Estimate.from_dict(json.loads(estimated.stdout)))

    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for text in ("estimated for t4", "peak process", "Rule: ", "backward", "Assumed by the trace"):
        assert text in shown


def test_what_does_not_fit_is_shown_with_what_it_needs_and_the_cards_that_have_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup = Setup(model="openai-community/gpt2", seq_len=1024, batch_size=32)
    show_estimate(estimate(setup, "t4"))
    shown = capsys.readouterr().out
    headline, _, rest = " ".join(shown.split()).partition("needed allocated")
    assert "estimated for t4: oom: needs " in headline
    assert "GiB, has 14.56 GiB: out of memory" in headline
    assert rest.index("needed process") < rest.index("peak allocated")
    cards = rest.partition("Fits by memory alone: ")[2].partition(" Rule:")[0].split(", ")
    assert "b200" in cards
    assert "t4" not in cards


@pytest.fixture(scope="module")
def simulated() -> subprocess.CompletedProcess[str]:
    return llmmem("run", LLAMA, "--method=lora", "--seq-len=128", "--device=sim:h100", "--json")


@needs_simulated_gpu
def test_run_prints_one_json_document(simulated: subprocess.CompletedProcess[str]) -> None:
    assert simulated.returncode == 0, simulated.stderr
    document = json.loads(simulated.stdout)
    assert (document["outcome"], document["source"]) == ("ok", "simulated")
    assert document["device"] == "sim:h100"
    assert document["setup"]["method"] == "lora"
    assert sum(document["components"].values()) == document["peak_allocated_bytes"]
    assert set(document["components"]) == set(COMPONENTS)
    assert all(document[peak] > 0 for peak in PEAKS)
    assert [phase["phase"] for phase in document["phases"]] == [
        *("load", "forward", "backward", "optimizer")
    ]
    assert document["versions"]["torch"]
    assert document["estimate"]["source"] == "estimated"
    assert RunResult.from_dict(document).to_dict() == document


@needs_simulated_gpu
@pytest.mark.parametrize("width", [80, 120, 200])
def test_run_shows_what_the_step_took_at_any_width(
    simulated: subprocess.CompletedProcess[str],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = RunResult.from_dict(json.loads(simulated.stdout))
    monkeypatch.setenv("COLUMNS", str(width))

    show_run(result)

    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for text in (
        "simulated on sim:h100",
        "peak process",
        "rules",
        "backward",
        "largest allocations",
    ):
        assert text in shown


@needs_simulated_gpu
def test_a_run_that_does_not_fit_exits_1_with_its_document() -> None:
    done = llmmem(
        *("run", "meta-llama/Llama-3.1-8B", "--device=sim:rtx4090", "--no-estimate", "--json")
    )

    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["outcome"] == "oom"
    assert "CUDA out of memory. Tried to allocate" in document["message"]
    assert document["estimate"] is None


def test_a_device_that_only_estimates_runs_nothing() -> None:
    check_refused(llmmem("run", LLAMA, "--device=estimate", "--json"), 1, "estimate")


@pytest.mark.skipif(not simgpu.check(), reason="the simulated GPU works here")
def test_run_says_why_the_simulated_gpu_cannot_work() -> None:
    problem = simgpu.check()[0]

    check_refused(llmmem("run", LLAMA, "--device=sim", "--json"), 1, problem.remedy)
