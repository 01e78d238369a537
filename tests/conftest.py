from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

# Before pytester gives every test a home of its own: the simulated GPU is compiled only once.
CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")

PEFT_OF_THE_OLD_NAME = Version("0.21.2")

SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 128,
    },
    "bert": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 64,
    },
    "t5": {
        "d_model": 64,
        "d_ff": 128,
        "d_kv": 16,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 256,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 64},
}


def pytest_collection_finish() -> None:
    """What the test files import stays: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the user of this machine has set decides what the tests see."""
    for name in list(os.environ):
        if name.startswith(("LLMMEM_", "PYTEST_", "PYTORCH_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)


@pytest.fixture
def run_pytest(
    pytester: pytest.Pytester, clean_environment: None
) -> Callable[..., pytest.RunResult]:
    """Runs a test file in a process of its own, warnings being errors."""
    # anyio comes with huggingface_hub: importing its plugin takes as long as importing pytest.
    without = ("-p", "no:cacheprovider", "-p", "no:anyio")

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_subprocess("-W", "error", *without, *arguments)

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], str]], str]:
    """Calls a function once for each name, also where workers of pytest-xdist share the tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return lambda name, function: function()
    directory = tmp_path_factory.getbasetemp().parent

    def call(name: str, function: Callable[[], str]) -> str:
        shared = directory / f"{name}.txt"
        with FileLock(f"{shared}.lock"):
            if not shared.is_file():
                shared.write_text(function(), encoding="utf-8")
        return shared.read_text(encoding="utf-8")

    return call


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the GPUs of this machine, if there are any."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def simulated_gpu() -> None:
    """The test needs a machine where the simulated GPU works."""
    from llmmem import simgpu

    if problems := simgpu.check():
        pytest.skip(f"no simulated GPU here: {problems[0]}")


@pytest.fixture(scope="session")
def peft_finds_the_cache() -> None:
    """Learned prompts can generate only where PEFT knows transformers' name for the cache."""
    if _cache_has_a_new_name() and Version(version("peft")) <= PEFT_OF_THE_OLD_NAME:
        pytest.skip("this PEFT does not know how this transformers calls the cache")


@pytest.fixture(scope="session")
def peft_loses_the_cache() -> None:
    """The other pairs of versions."""
    if not _cache_has_a_new_name() or Version(version("peft")) > PEFT_OF_THE_OLD_NAME:
        pytest.skip("this PEFT knows how this transformers calls the cache")


def _cache_has_a_new_name() -> bool:
    return Version(version("transformers")) >= Version("5.24")


@pytest.fixture
def run_python(clean_environment: None) -> Callable[[str], str]:
    """Runs a program in a process of its own, and gives what it printed."""

    def run(source: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", source],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def descendants() -> Callable[[int], list[int]]:
    """Tells the children of a process, and theirs, in the order in which they were started."""

    def children(pid: int) -> list[int]:
        found: list[int] = []
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # it may have ended meanwhile
                found += map(int, listing.read_text().split())
        return found

    def all_of(pid: int) -> list[int]:
        return [found for child in children(pid) for found in (child, *all_of(child))]

    return all_of


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., str]:
    """Writes the config.json of a tiny llama, bert, t5 or gpt2, and gives its path."""

    def write(model_type: str, **changes: Any) -> str:
        path = tmp_path / f"{model_type}.json"
        path.write_text(json.dumps({"model_type": model_type, **SIZES[model_type], **changes}))
        return str(path)

    return write
