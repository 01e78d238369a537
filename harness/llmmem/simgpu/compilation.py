"""``torch.compile`` and Triton on a simulated GPU.

The compilers run as on a real card, down to ``ptxas``; the kernels are loaded but never run. Three
things must differ from a real card:

- *Timings mean nothing here*, so no kernel is chosen by one: Triton's autotuner takes the first
  configuration that the card can hold, and Inductor the library's kernel where there is one, else
  the first. Benchmarks also allocate (a buffer of the size of the L2 cache or of 256 MiB, copies of
  their inputs), once per cache, and would end up in the peak of the first step.
- *What was compiled here must not be taken for a real card's*: caches on disk hold choices as well
  as code. They have a directory of their own, for each card and each build of the simulated GPU.
- Triton links a helper against the driver and looks for that on disk.
"""

from __future__ import annotations

import hashlib
import os
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from llmmem.simgpu.builder import BuiltLibraries

__all__ = ["notes", "register", "settings"]

#: The directories of compiled code: the variable that names each, and ours where it is not set.
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
OWN_PREFIX = "simulated-"

#: Caches shared between machines: they would pass choices made here on to a real card.
REMOTE_CACHES = (
    "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE",
    "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE",
    "TORCHINDUCTOR_AUTOTUNE_REMOTE_CACHE",
    "TORCHINDUCTOR_BUNDLED_AUTOTUNE_REMOTE_CACHE",
)

#: What a benchmark returns, in milliseconds.
NO_TIME = 1.0

#: The decisions of this process that may differ from a real card's, in order.
_decided: list[str] = []


def notes() -> tuple[str, ...]:
    """How compiled code in this process may differ from a real card's."""
    return tuple(_decided)


def _note(text: str) -> None:
    if text not in _decided:
        _decided.append(text)


def settings(
    card: str, libraries: BuiltLibraries, cache: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables with which PyTorch and Triton compile for a simulated GPU.

    Args:
        card: All that is known of the card, as text: compiled code depends on it.
        libraries: The libraries of the simulated GPU.
        cache: Where compiled code is kept when the environment does not say so.
        environment: What is set already. Directories for compiled code are kept, and a
            subdirectory of them is used; caches on other machines are switched off; other
            settings of the user's are left alone.
    """
    digest = hashlib.sha256(os.fsencode(f"{libraries.core}\0{card}")).hexdigest()[:12]
    chosen = {
        "TRITON_LIBCUDA_PATH": str(libraries.driver_directory),
        # Programs here are short: a pool of workers takes longer to start than the compiling does.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # Whether to pad the operands of a matrix product is decided by a benchmark.
        "TORCHINDUCTOR_SHAPE_PADDING": "0",
    }
    return {
        **{name: environment.get(name, value) for name, value in chosen.items()},
        **{
            name: str(_base(environment.get(name)) or cache / own) + f"/{OWN_PREFIX}{digest}"
            for name, own in CACHES.items()
        },
        **dict.fromkeys(REMOTE_CACHES, "0"),
    }


def _base(directory: str | None) -> Path | None:
    """The user's directory, also where our setting for another card has replaced it."""
    if not directory:
        return None
    path = Path(directory)
    return path.parent if path.name.startswith(OWN_PREFIX) else path


def register() -> None:
    """Make Triton and Inductor choose without benchmarks, now or when they are imported."""
    if any(isinstance(finder, _ChangesModules) for finder in sys.meta_path):
        return
    for name, change in CHANGES.items():
        if name in sys.modules:
            change(sys.modules[name])
    sys.meta_path.insert(0, _ChangesModules())


class _ChangesModules:
    """A finder that lets the other finders work, and changes some modules after they have run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = CHANGES.get(name)
        if change is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_change(module: ModuleType) -> None:
            run(module)
            change(module)

        # A loader serves one module.
        spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec


def _choose_without_trial(module: ModuleType) -> None:
    """Triton's autotuner: of the configurations left after pruning, take the first that loads."""
    autotuner = module.Autotuner
    prune = autotuner.prune_configs

    def first_that_loads(self: Any, kwargs: dict[str, Any]) -> list[Any]:
        _note("Triton's autotuner took the first configuration that fits the card")
        pruned = prune(self, kwargs)
        return next(([config] for config in pruned if _loads(self, config, kwargs)), pruned[:1])

    def without_trial(*args: Any, **kwargs: Any) -> list[float]:
        return [NO_TIME] * 3

    autotuner.prune_configs = first_that_loads
    # Older Tritons also benchmark what is the only configuration.
    autotuner._bench = without_trial


def _loads(autotuner: Any, config: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a kernel compiles in this configuration, and the card has the resources for it."""
    from triton.compiler.errors import CompileTimeAssertionFailure
    from triton.runtime.errors import OutOfResources, PTXASError

    options = {**kwargs, **config.all_kwargs()}
    if config.pre_hook is not None:
        config.pre_hook({**autotuner.nargs, **options})
    try:
        compiled = autotuner.fn.run(*autotuner.nargs.values(), **{**options, "warmup": True})
        return compiled.run is not None  # which is what loads it
    except (OutOfResources, CompileTimeAssertionFailure, PTXASError):
        return False


def _take_the_librarys(module: ModuleType) -> None:
    """Inductor's choice between kernels (``max-autotune``): a library's, else its first that loads."""
    selector = module.AlgorithmSelectorCache
    select = selector.__call__

    def without_trial(self: Any, name: str, choices: list[Any], *args: Any, **kwargs: Any) -> Any:
        if len(choices) > 1:
            _note(
                "Inductor tried no kernels: it took a library's, else its first that fits the card"
            )
            of_libraries = (each for each in choices if isinstance(each, module.ExternKernelCaller))
            own = (each for each in choices if _precompiles(each))
            choices = [next(of_libraries, None) or next(own, choices[0])]
        return select(self, name, choices, *args, **kwargs)

    selector.__call__ = without_trial


def _precompiles(choice: Any) -> bool:
    try:
        choice.precompile()
    except RuntimeError:  # "No valid triton configs"
        return False
    return True


def _keep_the_baseline(module: ModuleType) -> None:
    """Inductor's search from one configuration to a faster one beside it."""

    def keep(self: Any, func: Any, baseline_config: Any, *args: Any) -> Any:
        return baseline_config

    module.CoordescTuner.autotune = keep


def _answer_without_trial(module: ModuleType) -> None:
    """All other benchmarks of Inductor: every candidate takes the same time, so the first wins."""

    def without_trial(*args: Any, return_mode: str = "", **kwargs: Any) -> float | list[float]:
        return [NO_TIME] if return_mode == "all" else NO_TIME

    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, module.Benchmarker):
            kind.benchmark_gpu = without_trial  # type: ignore[attr-defined]
            kind.benchmark_gpu_with_cuda_graph = without_trial  # type: ignore[attr-defined]


def _say_what_is_not_tried(module: ModuleType) -> None:
    """Inductor's entry point: add a note when something is compiled, not when Inductor is imported."""
    compile_fx = module.compile_fx

    @wraps(compile_fx)
    def compile_and_say(*args: Any, **kwargs: Any) -> Any:
        _note("compiled code pads no matrix product")
        return compile_fx(*args, **kwargs)

    module.compile_fx = compile_and_say  # type: ignore[attr-defined]


CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "triton.runtime.autotuner": _choose_without_trial,
    "torch._inductor.compile_fx": _say_what_is_not_tried,
    "torch._inductor.runtime.benchmarking": _answer_without_trial,
    "torch._inductor.runtime.coordinate_descent_tuner": _keep_the_baseline,
    "torch._inductor.select_algorithm": _take_the_librarys,
}
