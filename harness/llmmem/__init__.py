"""llmmem: how much GPU memory an LLM fine-tuning step takes, estimated, simulated or measured.

What is public is listed in `__all__`; it is imported on first use, so that ``import llmmem`` costs
nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmmem.errors import InputError, LlmmemError, UnsupportedError
    from llmmem.estimation import estimate
    from llmmem.execution.runner import Runner, run
    from llmmem.report import load_report
    from llmmem.results import Components, Estimate, Peaks, RunResult, Trace
    from llmmem.setups import Setup, load_setup

    __version__: str

__all__ = [
    "Components",
    "Estimate",
    "InputError",
    "LlmmemError",
    "Peaks",
    "RunResult",
    "Runner",
    "Setup",
    "Trace",
    "UnsupportedError",
    "__version__",
    "estimate",
    "load_report",
    "load_setup",
    "run",
]

_HOMES = {
    "Components": "results",
    "Estimate": "results",
    "InputError": "errors",
    "LlmmemError": "errors",
    "Peaks": "results",
    "RunResult": "results",
    "Runner": "execution.runner",
    "Setup": "setups",
    "Trace": "results",
    "UnsupportedError": "errors",
    "estimate": "estimation",
    "load_report": "report",
    "load_setup": "setups",
    "run": "execution.runner",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("pytest-llmmem")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"llmmem.{_HOMES[name]}"), name)
