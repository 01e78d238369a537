"""Estimates without running: closed-form rules and a trace on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Trainer

    from llmmem.catalogue.gpus import Gpu
    from llmmem.results import Estimate, Rules, Trace
    from llmmem.setups import Setup

__all__ = ["DEFAULT_GPU", "estimate"]

DEFAULT_GPU = "h100"


@overload
def estimate(what: Setup, gpu: str | None = None) -> Estimate: ...


@overload
def estimate(what: Callable[[], object] | Trainer, gpu: str | None = None) -> Trace: ...


def estimate(
    what: Setup | Callable[[], object] | Trainer, gpu: str | None = None
) -> Estimate | Trace:
    """Estimate the peak memory of a setup, a function or a Trainer on a card of the GPU catalogue.

    A setup is estimated by closed-form rules and by a trace.

    A function is called once, in this process. Inside, ``cuda`` stands for the card: tensors on it have
    shapes but no memory, and ``torch.cuda`` answers for the card. Values that come from the host or from
    constants are followed; unknown numbers read as 0 and unknown booleans as true. Create the model
    inside the function: a model that it moves to ``cuda`` stays without values.

    For a `transformers.Trainer` (TRL's too), a copy takes training steps until the peaks are steady; the
    Trainer itself does not change. A function may also return a Trainer, whose steps are then
    estimated as well.

    The outcome is ``unsupported`` if the program cannot be traced, and ``oom`` if the card is too
    small. With ``oom``, what the program needs is known all the same, unless it handles the error
    itself.

    Args:
        what: A setup, a function without arguments, or a Trainer.
        gpu: Name of the card whose kernels, workspaces and memory are assumed (default: the
            one in this machine if the catalogue has it, else h100).

    Raises:
        InputError: The setup names something that does not exist, there is no such card, or `what` is none
            of the three.
    """
    from llmmem.catalogue.gpus import find_gpu
    from llmmem.errors import InputError
    from llmmem.setups import Setup

    card = find_gpu(gpu or _present() or DEFAULT_GPU)
    if isinstance(what, Setup):
        return _estimate(what, card)
    from llmmem.estimation.functions import is_trainer, trace_function, trace_trainer

    if is_trainer(what):
        return trace_trainer(what, card)
    if not callable(what):
        raise InputError(
            f"cannot estimate {what!r} (accepted: a Setup, a function without arguments, "
            "a transformers.Trainer)"
        )
    return trace_function(what, card)


def _estimate(setup: Setup, card: Gpu) -> Estimate:
    from llmmem.estimation.trace import trace
    from llmmem.results import Estimate
    from llmmem.versions import library_versions

    return Estimate(
        setup=setup,
        gpu=card.name,
        rules=_rules(setup),
        trace=trace(setup, card),
        versions=library_versions(),
    )


def _present() -> str | None:
    """The card in this machine, if all its GPUs are the same card of the catalogue."""
    from llmmem.catalogue.gpus import find_title
    from llmmem.nvml import gpu_names

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
