"""A worker shares its imports with its runs, and leaves CUDA to them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "preload_program.py"

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("peft", "bitsandbytes")),
    reason="needs PEFT and bitsandbytes",
)


def _output(how):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def shared():
    return _output("shared")


def test_libraries_and_the_model_are_imported_before_the_fork(shared):
    expected = {"peft", "bitsandbytes", "transformers.models.llama.modeling_llama"}
    assert expected <= set(shared["imported"])
    again = [name for name in shared["imported by the run"] if name in expected]
    assert not again
    assert len(shared["imported by the run"]) < 20


def test_cuda_is_left_to_the_runs(shared):
    assert not shared["initialised"]
    assert shared["held"] == 0
    assert shared["refused"]


def test_bitsandbytes_finds_the_gpu_all_the_same(shared):
    assert shared["library"] == "CudaBNBNativeLibrary"


def test_torch_is_as_it_was_before_the_imports(shared):
    assert shared["capability from"] == "torch.cuda"
    assert shared["variable"] is None


def test_a_run_that_shares_imports_gives_what_a_process_of_its_own_gives(shared):
    assert shared["run"]["outcome"] == "ok", shared["run"]["message"]
    assert shared["run"] == _output("alone")["run"]
