"""Every type of the installed PEFT is an adapter of a setup, and runs on the simulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmmem.runner import Runner
from llmmem.setups import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

PROGRAM = Path(__file__).with_name("peft_methods_here.py")

#: It clusters singular vectors, which nothing computes here, and wants scikit-learn for that.
NOT_RUN = {"ADAMSS"}

pytestmark = pytest.mark.usefixtures("simulated_gpu")


@pytest.fixture(scope="module")
def outcomes(simulated_gpu: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int | str]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=tmp_path_factory.mktemp("peft"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int | str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def runner(simulated_gpu: None) -> Iterator[Runner]:
    with Runner("sim:l40s") as runner:
        yield runner


def test_every_type_of_peft_but_one_takes_a_training_step(outcomes: dict[str, int | str]) -> None:
    stopped = {name: peak for name, peak in outcomes.items() if isinstance(peak, str)}
    assert stopped.keys() == NOT_RUN, stopped


def test_the_adapter_decides_the_peak(outcomes: dict[str, Any]) -> None:
    # Householder reflections keep matrices of the size of the weights for the backward pass, and
    # OSF trains most of the weights; LoRA does neither.
    assert outcomes["HRA"] > 1.25 * outcomes["LORA"]
    assert outcomes["OSF"] > 1.5 * outcomes["LORA"]


@pytest.mark.parametrize(
    "adapter",
    [
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20},
        {"peft_type": "VERA", "r": 32},
        {"peft_type": "OFT"},
        {"peft_type": "LORA", "use_dora": True},
    ],
    ids=lambda adapter: adapter["peft_type"],
)
def test_the_trace_equals_the_run_for_other_adapters_than_lora(
    runner: Runner, adapter: dict[str, Any], tiny_model: Callable[..., str]
) -> None:
    setup = Setup(model=tiny_model("llama"), seq_len=64, adapter=adapter)
    result = runner.run(setup)
    assert result.estimate is not None
    assert result.estimate.trace.peaks.allocated == result.peaks.allocated
    assert result.trainable_parameters
