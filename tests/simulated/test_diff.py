"""Traces equal runs allocation by allocation, and the tool that compares them says where not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT = Path(__file__).parents[1] / "programs" / "compared_setups.py"


def test_traces_do_what_the_runs_do_allocation_by_allocation() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) >= 10
    assert differences == dict.fromkeys(differences)


def test_the_tool_shows_the_first_difference_with_operator_module_and_line(
    run_python: Callable[[str], str], tiny_model: Callable[..., str]
) -> None:
    # The trace is given longer sequences than the run.
    shown = run_python(
        "import sys\n"
        "from llmmem import simgpu\n"
        "simgpu.activate('a100-80gb')\n"
        "import torch\n"
        "from llmmem.estimation import trace\n"
        "from llmmem.validation import diff\n"
        "from llmmem.catalogue.gpus import find_gpu\n"
        "from llmmem.setups import Setup\n"
        "follow = trace.follow\n"
        f"setup = Setup(model={tiny_model('llama')!r}, seq_len=64)\n"
        "longer = Setup(model=setup.model, seq_len=96)\n"
        "trace.follow = lambda setup, gpu: follow(longer, gpu)\n"
        "print(*diff.lines(diff.compare(setup, find_gpu('a100-80gb'))), sep='\\n')\n"
    )
    assert shown.startswith("different at ")
    run = next(line for line in shown.splitlines() if line.startswith("run"))
    trace = next(line for line in shown.splitlines() if line.startswith("trace"))
    assert "step.py" in run
    assert "aten." in trace
    assert "(forward)" in run
    assert "(forward)" in trace
