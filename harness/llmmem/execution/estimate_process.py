"""An estimate in its own process, which imports only what the estimate needs."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from llmmem.estimation import estimate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmmem.results import Estimate
    from llmmem.setups import Setup

__all__ = ["estimate_alone"]


def estimate_alone(setup: Setup, gpu: str | None = None) -> Estimate:
    """Like `llmmem.estimation.estimate`, in a process that does nothing else.

    It changes the process: bitsandbytes cannot be imported afterwards, unless the setup uses it. PEFT would
    import it whenever it is installed, which takes longer than importing PEFT. What libraries print goes to
    standard error.

    Raises:
        InputError: The setup names something that does not exist, or there is no such card.
    """
    with redirect_stdout(sys.stderr), _garbage_not_collected():
        _import(setup)
        return estimate(setup, gpu)


@contextmanager
def _garbage_not_collected() -> Iterator[None]:
    """Exclude what is created inside from garbage collection: the process ends soon."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _import(setup: Setup) -> None:
    from llmmem.workload.build import quiet_libraries
    from llmmem.workload.late_compilation import compiled_at_first_call
    from llmmem.workload.quantization import libraries_of

    uses_it = "bitsandbytes" in libraries_of(setup)
    if not uses_it:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    with quiet_libraries(), compiled_at_first_call():
        import transformers.modeling_utils  # noqa: F401

        if uses_it:
            import bitsandbytes  # noqa: F401
        if setup.has_adapter:
            import peft  # noqa: F401
