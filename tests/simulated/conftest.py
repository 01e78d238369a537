from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def on_a_simulated_gpu(simulated_gpu: None) -> None:
    """Every test of this folder needs a machine where the simulated GPU works."""
