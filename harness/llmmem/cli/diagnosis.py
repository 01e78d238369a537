"""What this machine can do: measure, simulate, estimate; and what is missing for the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmmem.units import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmmem.results import Source
    from llmmem.simgpu.coverage import Coverage

__all__ = ["Ability", "Diagnosis", "examine"]


@dataclass(frozen=True)
class Ability:
    """Whether figures from one source are available on this machine.

    Attributes:
        source: The source of the figures.
        detail: The GPUs or methods that are available, or a short reason why none are.
        problems: What is missing, each with what to do about it.
    """

    source: Source
    detail: str
    problems: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Whether nothing is missing."""
        return not self.problems


@dataclass(frozen=True)
class Diagnosis:
    """What this machine can do, and the versions of its libraries.

    Attributes:
        measured: Measuring on a GPU.
        simulated: Running on a simulated GPU.
        estimated: Estimating without running.
        versions: The version of each library; ``None`` if it is not installed.
        coverage: How much of the installed libraries the simulated GPU recognises; empty if the
            simulated GPU does not work.
        coverage_problem: Why coverage could not be measured, or ``None``.
    """

    measured: Ability
    simulated: Ability
    estimated: Ability
    versions: Mapping[str, str | None]
    coverage: tuple[Coverage, ...] = ()
    coverage_problem: str | None = None

    @property
    def abilities(self) -> tuple[Ability, ...]:
        """All abilities, the most exact first."""
        return self.measured, self.simulated, self.estimated

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, ready for JSON: each source's ability under its name."""
        abilities = {
            ability.source: {"works": ability.works} | asdict(ability) for ability in self.abilities
        }
        return abilities | {
            "versions": dict(self.versions),
            "coverage": [asdict(figure) for figure in self.coverage],
            "coverage_problem": self.coverage_problem,
        }


def examine() -> Diagnosis:
    """Examine this machine, without importing torch or using CUDA in this process.

    Another process loads the libraries of the simulated GPU, and compiles them if they are not cached.
    """
    from llmmem.nvml import driver_version
    from llmmem.versions import library_versions

    versions = library_versions() | {"driver": driver_version()}
    simulated = _simulated()
    coverage, problem = _coverage() if simulated.works else ((), None)
    return Diagnosis(_measured(), simulated, _estimated(), versions, coverage, problem)


def _measured() -> Ability:
    from llmmem.nvml import gpu_count
    from llmmem.simgpu.torch_build import installed_torch

    if gpu_count() == 0:
        return Ability(
            "measured", "no GPU", ("no NVIDIA GPU is visible: check the driver and nvidia-smi",)
        )
    torch = installed_torch()
    if torch is not None and torch.cuda is None:
        problem = f"torch {torch.version} has no CUDA: install a CUDA build of torch"
        return Ability("measured", "no CUDA in torch", (problem,))
    return Ability("measured", "; ".join(_gpu_names()), _missing("torch", "transformers"))


def _simulated() -> Ability:
    from llmmem import simgpu
    from llmmem.catalogue.gpus import gpus
    from llmmem.simgpu.trial import try_out

    problems = tuple(map(str, simgpu.check()))
    if not problems:
        problems = tuple(filter(None, (try_out("libraries"),)))
    detail = "no simulated GPU" if problems else ", ".join(gpu.name for gpu in gpus())
    return Ability("simulated", detail, problems)


def _coverage() -> tuple[tuple[Coverage, ...], str | None]:
    """The coverage figures, or why there are none."""
    from llmmem.simgpu.coverage import CoverageError, measure_installed

    try:
        return measure_installed(), None
    except CoverageError as error:
        return (), str(error)


def _estimated() -> Ability:
    return Ability("estimated", "rules and a trace", _missing("torch", "transformers"))


def _missing(*modules: str) -> tuple[str, ...]:
    return tuple(
        f"{module} is not installed: pip install {module}"
        for module in modules
        if find_spec(module) is None
    )


def _gpu_names() -> list[str]:
    """Names and sizes of all GPUs that NVML knows."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return [
            f"{pynvml.nvmlDeviceGetName(handle)}, "
            f"{format_size(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))}"
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()
