"""The cards of the catalogue: what PyTorch and NVML would report of each of them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from llmmem.errors import unknown

__all__ = ["SIMULATED", "Gpu", "find_gpu", "find_title", "gpus"]

# What stands behind the title of a simulated card, so that nobody takes it for a real one.
SIMULATED = " (simulated)"

_KIB = 1024
_MIB = 1024 * _KIB

# What a process holds beside PyTorch's memory. The bare context grows with the number of SMs: a
# straight line through four measured cards (RTX 4060 Ti 107 MiB at 34 SMs, RTX 3090 256 at 82,
# RTX 6000 Ada 426 at 142, RTX PRO 6000 555 at 188). Kernels loaded at first use and library handles
# come on top: 64 MiB brings the sum within 101 MiB of what out-of-memory messages show for six cards
# ("this process has ... in use", less what PyTorch reserved): T4 140 MiB, RTX A4000 210, A100 500,
# RTX 4090 503, L40 507, RTX 5090 595.
_CONTEXT_MIB_PER_SM = 3.1
_LIBRARIES_MIB = 64
_CONTEXT_SOURCE = (
    "modelled: 3.1 MiB per SM, and 64 MiB for kernels and library handles; "
    "six cards were within 101 MiB of it"
)


@dataclass(frozen=True)
class _Capability:
    """What all cards of one compute capability share (CUDA C++ Programming Guide)."""

    shared_memory_per_sm: int
    shared_memory_per_block_optin: int
    threads_per_sm: int
    blocks_per_sm: int


_CAPABILITIES = {
    (7, 0): _Capability(96 * _KIB, 96 * _KIB, 2048, 32),
    (7, 5): _Capability(64 * _KIB, 64 * _KIB, 1024, 16),
    (8, 0): _Capability(164 * _KIB, 163 * _KIB, 2048, 32),
    (8, 6): _Capability(100 * _KIB, 99 * _KIB, 1536, 16),
    (8, 9): _Capability(100 * _KIB, 99 * _KIB, 1536, 24),
    (9, 0): _Capability(228 * _KIB, 227 * _KIB, 2048, 32),
    (10, 0): _Capability(228 * _KIB, 227 * _KIB, 2048, 32),
    (12, 0): _Capability(100 * _KIB, 99 * _KIB, 1536, 24),
}


@dataclass(frozen=True)
class Gpu:
    """One card. Sizes are bytes.

    Attributes:
        name: Name in the catalogue, lower case, such as ``"rtx4090"``.
        title: Name that the driver reports.
        compute_capability: Major and minor.
        sm_count: Streaming multiprocessors.
        total_bytes: Memory as ``torch.cuda.mem_get_info`` and ``total_memory`` report it.
        nvml_total_bytes: Memory as NVML reports it: ``total_bytes`` and the driver's reserve.
        shared_memory_per_block_optin: The most shared memory a block can ask for.
        shared_memory_per_sm: Shared memory of one SM.
        threads_per_sm: Resident threads of one SM.
        blocks_per_sm: Resident blocks of one SM.
        l2_bytes: L2 cache.
        memory_bus_bits: Width of the memory bus in bits.
        context_bytes: CUDA context of one process: driver, kernels loaded at first use, library
            handles.
        context_source: Where ``context_bytes`` comes from, and how far off it may be.
    """

    name: str
    title: str
    compute_capability: tuple[int, int]
    sm_count: int
    total_bytes: int
    nvml_total_bytes: int
    shared_memory_per_block_optin: int
    shared_memory_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    l2_bytes: int
    memory_bus_bits: int
    context_bytes: int
    context_source: str

    @property
    def peer_access(self) -> bool:
        """Whether two of them in one machine reach each other's memory: GeForce cards do not.

        Source: NVIDIA's driver refuses peer-to-peer over PCIe on GeForce cards (RTX 4090: NVIDIA's
        developer forums, 2023); an RTX 3090 pair has it only over an NVLink bridge.
        """
        return "GeForce" not in self.title


def gpus() -> tuple[Gpu, ...]:
    """All cards of the catalogue, in its order (by generation, then memory)."""
    return tuple(_catalogue().values())


def find_gpu(name: str) -> Gpu:
    """The card of that name; upper and lower case are the same.

    Raises:
        InputError: There is no such card. The message lists the names.
    """
    found = _catalogue().get(name.lower())
    if found is None:
        raise unknown("GPU", name, _catalogue())
    return found


def find_title(title: str) -> Gpu | None:
    """The card that a driver calls by this title, simulated or not; None if it is no known one."""
    real = title.removesuffix(SIMULATED)
    return next((gpu for gpu in gpus() if gpu.title == real), None)


@cache
def _catalogue() -> dict[str, Gpu]:
    text = files("llmmem.catalogue").joinpath("gpus.toml").read_text(encoding="utf-8")
    return {name: _gpu(name, entry) for name, entry in tomllib.loads(text).items()}


def _gpu(name: str, entry: dict[str, Any]) -> Gpu:
    major, minor = entry["compute_capability"]
    capability = _CAPABILITIES[major, minor]
    return Gpu(
        name=name,
        title=entry["title"],
        compute_capability=(major, minor),
        sm_count=entry["sm_count"],
        total_bytes=entry["total_bytes"],
        nvml_total_bytes=entry["nvml_total_bytes"],
        shared_memory_per_block_optin=capability.shared_memory_per_block_optin,
        shared_memory_per_sm=capability.shared_memory_per_sm,
        threads_per_sm=capability.threads_per_sm,
        blocks_per_sm=capability.blocks_per_sm,
        l2_bytes=entry["l2_bytes"],
        memory_bus_bits=entry["memory_bus_bits"],
        context_bytes=_context_bytes(entry["sm_count"]),
        context_source=_CONTEXT_SOURCE,
    )


def _context_bytes(sm_count: int) -> int:
    return round(_CONTEXT_MIB_PER_SM * sm_count + _LIBRARIES_MIB) * _MIB
