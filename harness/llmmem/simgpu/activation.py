"""Activate a simulated GPU in this process, or say why that cannot be done."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.catalogue.gpus import SIMULATED, Gpu, find_gpu
from llmmem.devices import MOST_SIMULATED_GPUS
from llmmem.errors import InputError, UnsupportedError
from llmmem.guesses import Guesses, guess
from llmmem.notes import cudnn_attention
from llmmem.simgpu import compilation
from llmmem.simgpu.builder import CORE, BuiltLibraries, build, find_built
from llmmem.simgpu.cache import cache_directory
from llmmem.simgpu.compilers import missing
from llmmem.simgpu.faults import FAULTS_VARIABLE, Faults, faults_from_environment
from llmmem.simgpu.loader import Account, load, open_account
from llmmem.simgpu.problems import ObstacleError, Problem
from llmmem.simgpu.shutdown import register as register_shutdown
from llmmem.simgpu.side_streams import (
    EARLY_ANSWERS,
    LATE,
    SIDE_STREAMS_VARIABLE,
    SideStreams,
    side_streams_from_environment,
)
from llmmem.simgpu.torch_build import TorchBuild, installed_torch
from llmmem.value_rules import choices_setting

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Moment",
    "Problem",
    "SimulatedGpu",
    "activate",
    "active",
    "check",
    "program_environment",
]

CARD_VARIABLE = "LLMMEM_SIMULATED_GPU"
#: Where a program finds llmmem, which joins it when it first uses a device
#: (``csrc/account/guest.h``).
HOME_VARIABLE = "LLMMEM_SIMULATED_GPU_HOME"
HOME = Path(__file__).parents[2]
#: Set to 1, cards have their plain names, without " (simulated)".
BARE_NAME_VARIABLE = "LLMMEM_BARE_GPU_NAME"
MACHINES = ("x86_64", "aarch64")
NOTES = (
    "convolutions take no cuDNN workspace",
    "workspaces of cuSOLVER and cuFFT are a model, and cuSPARSE takes next to none",
)


@dataclass(frozen=True)
class Moment:
    """A moment in the life of a process that has simulated GPUs.

    Attributes:
        guesses: How often the program had decided by a value that is not known (`Guesses.clock`).
        early_answers: How often unfinished work of a side stream had been asked for, and said to
            be done. Only there do figures depend on when such work ends.
        attention_calls: How often cuDNN had computed an attention.
    """

    guesses: int = 0
    early_answers: int = 0
    attention_calls: int = 0


class SimulatedGpu:
    """The simulated GPUs of this process. Sizes are bytes.

    Devices are counted as PyTorch counts them: from 0, among those that ``CUDA_VISIBLE_DEVICES``
    leaves, which is read when a device is first asked for.

    Attributes:
        gpu: The card.
        count: How many of them there are, visible or not.
        libraries: The compiled libraries.
        faults: What is to go wrong on them, now.
        guesses: Where the program has decided by values that are not known.
        side_streams: When work on side streams ends.
    """

    def __init__(
        self,
        gpu: Gpu,
        count: int,
        side_streams: SideStreams,
        libraries: BuiltLibraries,
        account: Account,
        faults: Faults,
    ) -> None:
        self.gpu = gpu
        self.count = count
        self.side_streams = side_streams
        self.libraries = libraries
        self.faults = faults
        self.guesses = Guesses()
        self._account = account
        account.listen_to_guesses(self._note_guess)

    def _note_guess(self, operator: str) -> None:
        self.guesses.add(guess(operator, sys._getframe()))

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from a real card, so far as this process makes use of it, and its faults."""
        return self.notes_since(None)

    def moment(self) -> Moment:
        """Now, for `notes_since`."""
        return Moment(
            self.guesses.clock,
            self._account.early_answers(),
            self._account.cudnn_attention_calls(),
        )

    def notes_since(self, began: Moment | None) -> tuple[str, ...]:
        """The notes on what has happened since then, by default from the start."""
        before = began or Moment()
        unknown = self._account.cudnn_attention_unknown(before.attention_calls)
        attention = () if unknown is None else (cudnn_attention(unknown),)
        asked_for = (f"faults on demand: {self.faults}",) if self.faults != Faults() else ()
        guesses = self.guesses.notes(before.guesses)
        early = (EARLY_ANSWERS,) if self.moment().early_answers > before.early_answers else ()
        late = (LATE,) if self.side_streams == "late" else ()
        return (*guesses, *attention, *NOTES, *compilation.notes(), *asked_for, *early, *late)

    def unknown_bytes_since(self, began: Moment | None) -> int:
        """Bytes that peaks since then may be higher by, at most, as one of the notes says."""
        before = began or Moment()
        return self._account.cudnn_attention_unknown(before.attention_calls) or 0

    @property
    def unknown_reads(self) -> int:
        """How often the program has read values, of any kind, that are not known, so far."""
        return self._account.unknown_reads()

    @property
    def allocations(self) -> int:
        """How often this process has allocated device memory, past any allocator, so far."""
        return self._account.allocations()

    @property
    def tells_process_bytes(self) -> bool:
        """Whether what this process holds is known; a fault of NVML hides it, as on a real GPU."""
        return self.faults.nvml is None

    @property
    def context_bytes(self) -> int:
        """The CUDA context that every device touched is charged with."""
        return self.gpu.context_bytes

    def process_bytes(self, device: int = 0) -> int:
        """What this process holds on the device, in bytes, as NVML would report it.

        That is the context, device memory, and managed memory as far as it is resident.
        """
        return self._account.process_bytes(self._checked(device))

    def peak_process_bytes(self, device: int = 0) -> int:
        """The most that ``process_bytes`` was since the start or the last ``reset_peak``."""
        return self._account.peak_process_bytes(self._checked(device))

    def reset_peak(self, device: int = 0) -> None:
        """Start a new peak from what is held now."""
        self._account.reset_peak(self._checked(device))

    @contextmanager
    def inject(self, faults: Faults | str) -> Iterator[None]:
        """While inside, let these faults happen in this process, and no others.

        Counts start anew. Afterwards those of before are in force, and start anew too; a device
        that a fault broke works again, which a real one does not before its process has ended.

        Example:
            >>> with gpu.inject("oom_at=3"):
            ...     train()

        Args:
            faults: The faults, or their text (`Faults.parse`).

        Raises:
            InputError: The text is not valid.
        """
        before = self.faults
        self._set_faults(Faults.parse(faults) if isinstance(faults, str) else faults)
        try:
            yield
        finally:
            self._set_faults(before)

    def environment(self) -> dict[str, str]:
        """Environment variables with which a new program has these GPUs, with an account of its own.

        A forked child needs none: it has the GPUs already.

        Raises:
            UnsupportedError: The libraries lie where no program can be given them.
        """
        return _environment(
            _card(self.gpu, self.count, self.side_streams, _required_torch()),
            self.libraries,
            self.faults,
            self.side_streams,
        )

    def _set_faults(self, faults: Faults) -> None:
        self._account.set_faults(str(faults))
        self.faults = faults

    def _checked(self, device: int) -> int:
        found = self._account.device_at(device)
        if found < 0:
            raise InputError(
                f"invalid device {device!r} (there are {self.count}, counted from 0, of which "
                "CUDA_VISIBLE_DEVICES may hide some)"
            )
        return found


@dataclass
class _Process:
    """What this process has: libraries, once loaded, stay."""

    gpu: SimulatedGpu | None = None


_process = _Process()


def active() -> SimulatedGpu | None:
    """The simulated GPUs of this process, or None.

    Raises:
        InputError: The process was started with some, but ``LLMMEM_SIMULATED_GPU`` was changed.
    """
    if _process.gpu is None:
        _process.gpu = _inherited()
    return _process.gpu


def activate(gpu: str | Gpu = "h100", *, count: int = 1) -> SimulatedGpu:
    """Give this process simulated GPUs, until it ends. Must come before torch is imported.

    The libraries are compiled at the first call on a machine and then cached in
    ``$XDG_CACHE_HOME/llmmem``. Asking for the same GPUs again returns them. Other ones can be had
    until a device is first used: a server imports torch and forks, and each child chooses its own.
    Another number of them can be had only until PyTorch has counted them, which it does once.

    Args:
        gpu: A card of the catalogue, or its name.
        count: How many of them, 1 to 16.

    The faults that ``LLMMEM_SIMULATED_FAULTS`` names are in force from the start (`Faults`), and
    work on side streams ends when ``LLMMEM_SIDE_STREAMS`` says (``early`` or ``late``).

    Raises:
        InputError: No such card, another count, or a variable that is not valid.
        UnsupportedError: It cannot be done here: see ``check``; PyTorch has no kernels for the
            card; or other GPUs are in use, or counted.
    """
    card, side_streams = _asked_for(gpu, count), side_streams_from_environment()
    before = active()
    if before is not None and (before.gpu, before.count, before.side_streams) == (
        card,
        count,
        side_streams,
    ):
        return before
    faults = before.faults if before else faults_from_environment()
    choices_setting()  # what is not valid is refused before anything begins
    if before is None:
        for problem in (*_unfit(), *_too_late()):
            raise ObstacleError(problem)
        _forget_inherited()
    torch = _torch_for(card)
    libraries = before.libraries if before else build(torch, cache_directory())
    account = load(libraries)
    text = _card(card, count, side_streams, torch)
    account.configure(text)
    os.environ.update(compilation.settings(text, libraries, cache_directory(), os.environ))
    compilation.register()
    register_shutdown()
    _process.gpu = SimulatedGpu(card, count, side_streams, libraries, account, faults)
    return _process.gpu


def program_environment(gpu: str | Gpu = "h100", *, count: int = 1) -> dict[str, str]:
    """Environment variables with which a new program has simulated GPUs; this process gets none.

    The program's processes have them from their start, each with an account of its own. The
    arguments and the errors are those of `activate`.
    """
    card, side_streams = _asked_for(gpu, count), side_streams_from_environment()
    faults = faults_from_environment()
    choices_setting()
    for problem in _unfit():
        raise ObstacleError(problem)
    torch, cache = _torch_for(card), cache_directory()
    _check_preloadable(cache)  # before it takes the time to build
    text = _card(card, count, side_streams, torch)
    return _environment(text, build(torch, cache), faults, side_streams)


def _environment(
    card: str, libraries: BuiltLibraries, faults: Faults, side_streams: SideStreams
) -> dict[str, str]:
    _check_preloadable(libraries.core.parent)
    preloaded = [str(path) for path in libraries.paths]
    before = os.environ.get("LD_PRELOAD", "").replace(" ", ":").split(":")
    preloaded += [path for path in before if path and path not in preloaded]
    return {
        "LD_PRELOAD": ":".join(preloaded),
        CARD_VARIABLE: card,
        HOME_VARIABLE: str(HOME),
        FAULTS_VARIABLE: str(faults),
        SIDE_STREAMS_VARIABLE: side_streams,
        **compilation.settings(card, libraries, cache_directory(), os.environ),
    }


def _check_preloadable(directory: Path) -> None:
    if any(separator in str(directory) for separator in " :"):
        raise UnsupportedError(
            f"a program cannot be given libraries from {str(directory)!r}: the loader takes spaces "
            "and colons for separators; set XDG_CACHE_HOME to a directory without them"
        )


def _asked_for(gpu: str | Gpu, count: int) -> Gpu:
    if not 1 <= count <= MOST_SIMULATED_GPUS:
        raise InputError(f"invalid number of GPUs {count!r} (accepted: 1 to {MOST_SIMULATED_GPUS})")
    return find_gpu(gpu) if isinstance(gpu, str) else gpu


def _torch_for(gpu: Gpu) -> TorchBuild:
    torch = _required_torch()
    if not torch.runs_on(gpu.compute_capability):
        raise UnsupportedError(_no_kernels(torch, gpu))
    return torch


def _inherited() -> SimulatedGpu | None:
    """The GPUs that the process was started with (``SimulatedGpu.environment``).

    Raises:
        InputError: The variable that names them was changed.
    """
    preloaded = [Path(path) for path in os.environ.get("LD_PRELOAD", "").split(":")]
    core = next((path for path in preloaded if path.name == CORE), None)
    if core is None:
        return None
    gpu, count, side_streams = _read_card(os.environ.get(CARD_VARIABLE))
    compilation.register()
    register_shutdown()
    libraries = BuiltLibraries(tuple(path for path in preloaded if path.parent == core.parent))
    return SimulatedGpu(
        gpu, count, side_streams, libraries, open_account(core), faults_from_environment()
    )


def _read_card(text: str | None) -> tuple[Gpu, int, SideStreams]:
    """What `_card` wrote.

    Raises:
        InputError: It is something else.
    """
    try:
        fields = dict(field.split("=", 1) for field in (text or "").split(";"))
        late = {"0": False, "1": True}[fields["late_side_streams"]]
        return find_gpu(fields["name"]), int(fields["count"]), "late" if late else "early"
    except (ValueError, LookupError):
        raise InputError(
            f"invalid {CARD_VARIABLE} {text!r} (llmmem sets it, for the programs that it starts; "
            "to choose a card, use --device sim:GPU, or in pytest --llmmem-device=sim:GPU or "
            "LLMMEM_DEVICE=sim:GPU)"
        ) from None


def _forget_inherited() -> None:
    """Drop a card in the environment that came without its libraries: they would take it up.

    Raises:
        InputError: It is no card.
    """
    if CARD_VARIABLE in os.environ:
        _read_card(os.environ[CARD_VARIABLE])
        del os.environ[CARD_VARIABLE]


def _no_kernels(torch: TorchBuild, gpu: Gpu) -> str:
    major, minor = gpu.compute_capability
    return (
        f"PyTorch {torch.version} has no kernels for the {gpu.title} (compute capability "
        f"{major}.{minor}): it was built for {', '.join(torch.architectures())}; "
        "install a build that covers it"
    )


def check() -> tuple[Problem, ...]:
    """What keeps the simulated GPU from running here; nothing is imported or compiled."""
    unfit = _unfit()
    torch = None if unfit else _required_torch()
    try:
        if torch is not None and find_built(torch, cache_directory()) is not None:
            return ()
    except ObstacleError as error:
        return (error.problem,)
    return (*unfit, *missing(torch))


def _unfit() -> tuple[Problem, ...]:
    """What is wrong with this machine or its PyTorch."""
    problems = []
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        problems.append(
            Problem(
                f"this is {sys.platform} on {platform.machine()}", "use Linux on x86-64 or aarch64"
            )
        )
    torch = installed_torch()
    if torch is None:
        problems.append(
            Problem("PyTorch is not installed", "install a build with CUDA: pip install torch")
        )
    elif torch.cuda is None:
        problems.append(
            Problem(
                f"PyTorch {torch.version} is a build without CUDA",
                "install one with CUDA (on Linux: pip install torch, without a CPU index)",
            )
        )
    return tuple(problems)


def _too_late() -> tuple[Problem, ...]:
    """What in this process is in the way."""
    if "torch" in sys.modules:
        return (
            Problem(
                "torch is imported already",
                "activate the simulated GPU before torch is imported (in a notebook: restart the "
                "kernel and do it in the first cell), or start the program with `llmmem exec`",
            ),
        )
    if "libcudart.so" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
        return (
            Problem(
                "CUDA's own runtime is loaded already",
                "activate the simulated GPU before CUDA is loaded, or start the program with "
                "`llmmem exec`",
            ),
        )
    return ()


def _required_torch() -> TorchBuild:
    torch = installed_torch()
    assert torch is not None  # _unfit() has found it
    return torch


def _card(gpu: Gpu, count: int, side_streams: SideStreams, torch: TorchBuild) -> str:
    """The card as the libraries read it (``sim_card`` in ``csrc/account/card.h``)."""
    major, minor = gpu.compute_capability
    cuda_major, cuda_minor = (int(part) for part in (torch.cuda or "0.0").split(".")[:2])
    return ";".join(
        f"{key}={value}"
        for key, value in {
            "name": gpu.name,
            "title": gpu.title if _has_bare_name() else gpu.title + SIMULATED,
            "count": count,
            "major": major,
            "minor": minor,
            "sm_count": gpu.sm_count,
            "total_bytes": gpu.total_bytes,
            "nvml_total_bytes": gpu.nvml_total_bytes,
            "shared_per_block_optin": gpu.shared_memory_per_block_optin,
            "shared_per_sm": gpu.shared_memory_per_sm,
            "threads_per_sm": gpu.threads_per_sm,
            "blocks_per_sm": gpu.blocks_per_sm,
            "l2_bytes": gpu.l2_bytes,
            "memory_bus_bits": gpu.memory_bus_bits,
            "context_bytes": gpu.context_bytes,
            "peer_access": int(gpu.peer_access),
            "driver_cuda_version": 1000 * cuda_major + 10 * cuda_minor,
            "driver_version": "580.00" if cuda_major >= 13 else "570.00",
            "cublas_version": _library_version("cublas", cuda_major),
            "cudnn_version": _library_version("cudnn", cuda_major),
            "nccl_version": _library_version("nccl", cuda_major),
            "late_side_streams": int(side_streams == "late"),
        }.items()
    )


def _has_bare_name() -> bool:
    return os.environ.get(BARE_NAME_VARIABLE, "0") not in ("", "0")


def _library_version(library: str, cuda_major: int) -> int:
    """The version of an installed CUDA library, as it numbers itself: 9.24.0 is 92400."""
    for name in (f"nvidia-{library}-cu{cuda_major}", f"nvidia-{library}"):
        try:
            major, minor, patch = (int(part) for part in version(name).split(".")[:3])
        except PackageNotFoundError:
            continue
        return 10000 * major + 100 * minor + patch
    return 10000 * cuda_major
