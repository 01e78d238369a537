"""What a setup takes, without running it: closed forms and a trace on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmmem.results import Estimate, Rules
    from llmmem.setups import Setup

__all__ = ["DEFAULT_GPU", "estimate"]

DEFAULT_GPU = "h100"


def estimate(setup: Setup, gpu: str | None = None) -> Estimate:
    """Estimate the peaks of a setup on a card of the GPU catalogue, by rules and by a trace.

    What cannot be estimated is a result: the trace's outcome is ``unsupported`` or ``oom`` then.

    Args:
        setup: What to estimate.
        gpu: Name of the card whose kernels, workspaces and memory are assumed (default: the
            one in this machine if the catalogue has it, else h100).

    Raises:
        InputError: The setup names something that does not exist, or there is no such card.
    """
    from llmmem.catalogue.gpus import find_gpu
    from llmmem.estimation.trace import trace
    from llmmem.results import Estimate
    from llmmem.versions import library_versions

    card = find_gpu(gpu or _present() or DEFAULT_GPU)
    return Estimate(
        setup=setup,
        gpu=card.name,
        rules=_rules(setup),
        trace=trace(setup, card),
        versions=library_versions(),
    )


def _present() -> str | None:
    """The card of the catalogue that all GPUs of this machine are, if they are one."""
    from llmmem.catalogue.gpus import find_title
    from llmmem.measurement.nvml import gpu_names

    names = set(gpu_names())
    card = find_title(names.pop()) if len(names) == 1 else None
    return card.name if card is not None else None


def _rules(setup: Setup) -> Rules:
    from llmmem.errors import UnsupportedError
    from llmmem.estimation.rules import rules
    from llmmem.results import Rules

    try:
        return rules(setup)
    except UnsupportedError as error:
        return Rules(None, str(error))
