"""Compiled models under the plugin's simulated GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("simulated_gpu")

COMPILED = """
import pytest
import torch

def step(x):
    torch.compile(lambda x: (torch.softmax(x * 2, -1) + 1).sum())(x).backward()

@pytest.mark.max_vram("16MiB", metric="allocated")
def test_fits():
    step(torch.zeros(1024, 1024, device="cuda", requires_grad=True))

@pytest.mark.max_vram("8MiB", metric="allocated")
def test_does_not_fit():
    step(torch.zeros(1024, 1024, device="cuda", requires_grad=True))
"""


def test_a_compiled_step_is_gated_by_its_own_memory_alone(
    run_pytest: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    result = run_pytest(COMPILED, "--llmmem-device=sim")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*test_does_not_fit*8*MiB*"])
