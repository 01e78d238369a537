"""Hostile input: setups, model configs and command lines that are made at random from a seed.

    python benchmarks/fuzz.py [--setups 1000] [--configs 200] [--commands 200] [--seed 0]
        [--device sim:h100] [--host-memory 3GiB] [--report reports/fuzz.md]

Each must come to a result, or to a refusal of one line. Beyond that, no process may be left, and all
processes together must stay under 6 GiB of host memory. What does not hold is printed, and the exit
code is 1. Setups are estimated, every tenth is run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.errors import InputError, LlmmemError
from llmmem.execution.host_memory import resident_memory
from llmmem.execution.runner import Runner
from llmmem.setups import DTYPES, METHODS, MODES, TASKS, Setup
from llmmem.units import GIB, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "LLMMEM_FUZZ"
MOST_HOST_MEMORY = 6 * GIB
TIMEOUT_S = 15.0  # some setups have a million steps
COMMAND_TIMEOUT_S = 180.0
LONGEST_LINE = 4000
SHOWN = 160
RUN_EVERY = 10

CONFIGS: tuple[Mapping[str, Any], ...] = (
    {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
     "max_position_embeddings": 256},
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256,
     "n_positions": 256},
    {"model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
     "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 256},
    {"model_type": "t5", "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4,
     "vocab_size": 256, "decoder_start_token_id": 0},
    {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
     "num_local_experts": 4, "max_position_embeddings": 256},
)  # fmt: skip

TASK_OF = ("causal-lm", "causal-lm", "masked-lm", "seq2seq-lm", "causal-lm")

#: What no key expects, and what some do.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, -5, 2, 3, 7, 1.5, 1e9, 1e308, 10**6, 10**9, 10**12, 2**31, 2**63,
    2**64, 10**30, "", "none", "auto", "nan", "0", "-1", "1e9", "\x00", "a\nb", "\ud800", "ü" * 50,
    "x" * 3000, "../../etc/passwd", "{", [], [1], [[]], ["q_proj"], {}, {"a": 1}, {"peft_type": "X"},
    float("nan"), float("inf"), float("-inf"), {"a": {"b": {"c": [1, {}]}}},
)  # fmt: skip

#: Counts and sizes that are numbers at least; some are within the bounds, and large.
LARGE = (
    0,
    -1,
    -5,
    1,
    3,
    5,
    100,
    999,
    4096,
    10_000,
    65_536,
    131_072,
    10**6,
    2**24,
    10**9,
    2**31,
    2**63,
)

TEXTS = (
    "", "null", "[]", "1", '"llama"', "{", "{}", '{"model_type": 1}', '{"model_type": "llama",',
    '{"model_type": "nothing"}', '{"model_type": "llama", "auto_map": {"AutoConfig": "evil.X"}}',
    "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, '{"model_type": "llama", "vocab_size": '
    + "9" * 6_000 + "}", "\ufeff{}", "\x00" * 10, '{"model_type": "llama", "a": NaN}',
)  # fmt: skip

ADAPTERS: tuple[Mapping[str, Any], ...] = (
    {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
    {"peft_type": "IA3"},
    {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
    {"peft_type": "LOHA", "r": 2},
)

#: Values that each key of a setup takes.
VALID: Mapping[str, tuple[Any, ...]] = {
    "task": TASKS,
    "num_labels": (1, 2, 5),
    "mode": MODES,
    "method": METHODS,
    "quantization": ("none", "int8", "nf4", "fp4", "fp8"),
    "double_quant": (True, False),
    "adapter": ADAPTERS,
    "adapter_dtype": ("float32", "bfloat16"),
    "kbit_prepare": (True, False),
    "dtype": DTYPES,
    "autocast": ("none", "bfloat16"),
    "optimizer": tuple(OPTIMIZERS),
    "optimizer_args": ({}, {"lr": 0.1}, {"momentum": 0.9}),
    "batch_size": (1, 2, 3),
    "seq_len": (1, 16, 64, 255),
    "gradient_accumulation_steps": (1, 2),
    "max_grad_norm": (1.0, "none"),
    "attention": ("eager", "sdpa", "flash_attention_2", "none"),
    "gradient_checkpointing": (True, False, {"use_reentrant": True}),
    "new_tokens": (1, 4),
    "kv_cache": ("dynamic", "static"),
    "steps": (1, 2, 3),
    "allocator": ("", "expandable_segments:True", "max_split_size_mb:32", "nonsense:1", "::"),
    "parallel": ("none", "ddp:2", "fsdp2:8", "fsdp2:100000", "ddp:1000000000", "tp:2"),
}

OPTIONS = (
    "--json", "--no-estimate", "--gpu", "--device", "--timeout", "--host-memory", "--jobs", "--first",
    "-o", "--output", "--version", "--help", "--", "-", "--\ud800", "--steps=", "-x", "@file",
)  # fmt: skip
COMMANDS = ("estimate", "run", "exec", "validate", "models", "gpus", "doctor", "sweep", "", "run ")
DEVICES = ("sim", "sim:t4", "sim:rtx4090x2", "sim:x", "cuda:99", "auto:1", "sim:h100x" + "9" * 5000)


@dataclass
class Findings:
    """What came of one kind of input."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def hold(self, holds: bool, what: str) -> None:
        """Note it as wrong unless it holds."""
        if not holds:
            self.wrong.append(what)


class Watch:
    """The most host memory that all processes marked by this one take together; a context manager."""

    def __init__(self) -> None:
        self.most = 0
        self._done = Event()
        self._thread = Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.2):
            self.most = max(self.most, sum(map(resident_memory, [os.getpid(), *marked()])))


def marked() -> list[int]:
    """Other processes that have this one's mark in their environment."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def is_a_line(text: str) -> bool:
    """Whether a message is one line, of some length, and no traceback."""
    return 0 < len(text) <= LONGEST_LINE and len(text.splitlines()) == 1 and "Traceback" not in text


def mutated(draw: random.Random, keys: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The keys with one or two of them dropped, renamed or replaced."""
    made = dict(keys)
    for _ in range(draw.randint(1, 2)):
        name = draw.choice(names)
        match draw.randrange(10):
            case 0:
                made.pop(name, None)
            case 1:
                made[f"{name}s"] = made.pop(name, 1)
            case _:
                made[name] = replacement(draw, made.get(name))
    return made


def replacement(draw: random.Random, value: Any) -> Any:
    """For a number mostly another number, for a table mostly one with another value in it."""
    if draw.random() < 0.2:
        return draw.choice(HOSTILE)
    if isinstance(value, Mapping) and value:
        return mutated(draw, value, sorted(value))
    return draw.choice(LARGE if isinstance(value, int) else HOSTILE)


def fuzzed_setup(draw: random.Random, models: list[Path]) -> dict[str, Any]:
    """Keys of a setup that goes with its model, or nearly so."""
    number = draw.randrange(len(models))
    defaults = {"model": str(models[number]), "task": TASK_OF[number], "seq_len": 16}
    names = draw.sample(sorted(VALID.keys() - defaults.keys()), draw.randint(0, 2))
    keys = defaults | {name: draw.choice(VALID[name]) for name in names}
    if draw.random() < 0.3:
        return keys
    counts = {name: 1 for name in ("batch_size", "steps") if name not in keys}
    return mutated(draw, keys | counts, sorted({*keys, *counts, *draw.sample(sorted(VALID), 2)}))


def fuzzed_config(draw: random.Random) -> str:
    """Text of a config.json."""
    if draw.random() < 0.2:
        return draw.choice(TEXTS)
    config = {"num_labels": 2} | draw.choice(CONFIGS)
    return json.dumps(mutated(draw, config, [*config, "head_dim", "dtype", "rope_theta"]))


def fuzzed_command(draw: random.Random, models: list[Path]) -> list[str]:
    """Arguments of ``llmmem``."""
    command = draw.choice(COMMANDS)
    words = [command] if draw.random() < 0.95 else []
    if command in ("estimate", "run") or draw.random() < 0.2:
        words += ["--seq-len", "16"]
        words.append(draw.choice([*map(str, models), "gpt2x", "/dev/zero", "/", "a/b/c", "x.toml"]))
    for _ in range(draw.randint(0, 2)):
        name = draw.choice(sorted(VALID))
        value = draw.choice(VALID[name] if draw.random() < 0.7 else HOSTILE)
        words += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else repr(value)]
    for _ in range(draw.choice([0, 0, 1, 2])):
        words.append(draw.choice(OPTIONS))
        words += draw.choice([[], [draw.choice(DEVICES)], [str(draw.choice(HOSTILE))]])
    if command == "validate":
        words += ["--first", "1", "-o", str(models[0].parent / "validated.csv")]
    if command == "exec":
        words += ["true"]
    # A command line holds neither null bytes nor lone surrogates other than those of bytes.
    if command in ("estimate", "run"):
        words += ["--timeout", str(TIMEOUT_S)]
    return [word.replace("\x00", "").replace("\ud800", "\udcff") for word in words]


def outcome_of(findings: Findings, what: str, job: Callable[[], str]) -> str | None:
    """The outcome of a job; ``None`` if it raised what llmmem does not raise on purpose."""
    began = time.monotonic()
    try:
        outcome = job()
    except LlmmemError as error:
        outcome = "refused" if isinstance(error, InputError) else "crashed or not possible"
        if outcome != "refused":
            findings.reasons[str(error)[:SHOWN]] += 1
        findings.hold(is_a_line(str(error)), f"{what}: not one line: {str(error)[:300]!r}")
    except Exception as error:
        findings.hold(False, f"{what}: {type(error).__name__}: {str(error)[:300]}")
        return None
    findings.hold(time.monotonic() - began < COMMAND_TIMEOUT_S, f"{what}: takes no end")
    return outcome


def estimated(runner: Runner, keys: Mapping[str, Any]) -> str:
    """Estimate the setup of the keys."""
    trace = runner.estimate(Setup.from_mapping(keys), timeout=TIMEOUT_S).trace
    return f"estimate {trace.outcome}"


def run(runner: Runner, keys: Mapping[str, Any]) -> str:
    """Run the setup of the keys, with an estimate beside it."""
    result = runner.run(Setup.from_mapping(keys), timeout=TIMEOUT_S)
    assert result.outcome == "ok" or is_a_line(result.message), result.message
    if result.outcome in ("crashed", "timeout"):
        raise LlmmemError(f"run {result.outcome}: {result.message}")
    return f"run {result.outcome}"


def try_setups(count: int, draw: random.Random, runner: Runner, models: list[Path]) -> Findings:
    """Estimate or run made-up setups."""
    findings = Findings("setups")
    for number in range(count):
        keys = fuzzed_setup(draw, models)
        act = run if number % RUN_EVERY == 0 and runner.device.kind != "estimate" else estimated
        outcome = outcome_of(findings, f"setup {keys!r}", lambda: act(runner, keys))  # noqa: B023
        findings.outcomes[outcome or "wrong"] += 1
    return findings


def try_configs(count: int, draw: random.Random, runner: Runner, directory: Path) -> Findings:
    """Estimate or run models of made-up configs."""
    findings = Findings("configs")
    path = directory / "hostile" / "config.json"
    path.parent.mkdir()
    for _ in range(count):
        text = fuzzed_config(draw)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        task = next(
            (TASK_OF[i] for i, c in enumerate(CONFIGS) if c["model_type"] in text), TASKS[0]
        )
        if draw.random() < 0.2:
            task = draw.choice(TASKS)
        keys = {"model": str(path), "seq_len": 16, "task": task}
        act = draw.choice([run, estimated]) if runner.device.kind != "estimate" else estimated
        outcome = outcome_of(findings, f"config {text[:300]!r}", lambda: act(runner, keys))  # noqa: B023
        findings.outcomes[outcome or "wrong"] += 1
    return findings


def try_commands(count: int, draw: random.Random, models: list[Path]) -> Findings:
    """Call ``llmmem`` with made-up arguments."""
    findings = Findings("command lines")
    for _ in range(count):
        words = fuzzed_command(draw, models)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "llmmem", *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=models[0].parent,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            findings.hold(False, f"command {words!r}: takes no end")
            continue
        findings.outcomes[f"exit code {done.returncode}"] += 1
        said = done.stderr.decode(errors="replace").strip()
        told = done.returncode in (0, 1, 2) and "Traceback" not in said
        if done.returncode == 2:
            told = told and is_a_line(said) and said.startswith("llmmem: ")
        if done.returncode == 1:  # a refusal, or an outcome that is shown
            told = told and (bool(done.stdout) or is_a_line(said))
        findings.hold(told, f"command {words!r}: {done.returncode}: {said[-300:]!r}")
    return findings


def report(found: list[Findings], most: int, command: str) -> str:
    """The page of what was found."""
    rows = [
        [
            each.kind,
            sum(each.outcomes.values()),
            ", ".join(f"{outcome} {count}" for outcome, count in sorted(each.outcomes.items())),
            len(each.wrong),
            f"{each.seconds:.0f} s",
        ]
        for each in found
    ]
    table = tabulate(rows, ["input", "tried", "came to", "wrong", "took"], tablefmt="github")
    reasons = "\n".join(
        f"- {count} x `{reason}`" for each in found for reason, count in each.reasons.most_common()
    )
    wrong = "\n".join(f"- `{line}`" for each in found for line in each.wrong)
    return (
        f"# Hostile input\n\nMade by `{command}`.\n\n{table}\n\n"
        f"Most host memory of all processes together: {format_size(most)} "
        f"(the bound is {format_size(MOST_HOST_MEMORY)}; what forks share counts for each).\n"
        f"Crashed or not possible:\n\n{reasons or 'None.'}\n\n"
        f"{wrong or 'Every input came to a result, or to one line, and no process was left.'}\n"
    )


@click.command()
@click.option("--setups", default=1000)
@click.option("--configs", default=200)
@click.option("--commands", default=200)
@click.option("--seed", default=0)
@click.option("--device", default="sim:h100")
@click.option("--host-memory", default="3GiB")
@click.option("--report", "path", type=click.Path(path_type=Path))
def main(
    setups: int,
    configs: int,
    commands: int,
    seed: int,
    device: str,
    host_memory: str,
    path: Path | None,
) -> None:
    """Try hostile input; exit code 1 if something does not hold."""
    os.environ |= {MARK: uuid.uuid4().hex, "LLMMEM_HOST_MEMORY": host_memory, "HF_HUB_OFFLINE": "1"}
    found: list[Findings] = []

    def note(findings: Findings, began: float) -> None:
        findings.seconds = time.monotonic() - began
        time.sleep(1)  # what was killed may take a moment to go
        findings.hold(not marked(), f"{findings.kind}: processes left: {marked()}")
        found.append(findings)

    with tempfile.TemporaryDirectory() as name, Watch() as watch:
        models = []
        for number, config in enumerate(CONFIGS):
            models.append(Path(name, f"model-{number}.json"))
            models[-1].write_text(json.dumps(config), encoding="utf-8")
        began = time.monotonic()
        with Runner(device, host_memory=parse_size(host_memory)) as runner:
            findings = try_setups(setups, random.Random(f"setups {seed}"), runner, models)
        note(findings, began)
        began = time.monotonic()
        with Runner(device, host_memory=parse_size(host_memory)) as runner:
            findings = try_configs(configs, random.Random(f"configs {seed}"), runner, Path(name))
        note(findings, began)
        began = time.monotonic()
        note(try_commands(commands, random.Random(f"commands {seed}"), models), began)
    found[-1].hold(watch.most < MOST_HOST_MEMORY, f"host memory: {format_size(watch.most)}")
    command = (
        f"python benchmarks/fuzz.py --setups {setups} --configs {configs} --commands {commands} "
        f"--seed {seed} --device {device} --host-memory {host_memory}"
    )
    text = report(found, watch.most, command)
    if path is not None:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
    sys.exit(1 if any(each.wrong for each in found) else 0)


if __name__ == "__main__":
    main()
