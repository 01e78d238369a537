"""Versions of the libraries that a result depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from llmmem.simgpu.torch_build import installed_torch

__all__ = ["library_versions"]

_DISTRIBUTIONS = {
    "llmmem": "pytest-llmmem",
    "transformers": "transformers",
    "peft": "peft",
    "bitsandbytes": "bitsandbytes",
}


def library_versions() -> dict[str, str | None]:
    """Versions by name, without importing any of the libraries.

    ``None`` stands for a library that is not installed. ``cuda`` is the version that PyTorch was built
    for. ``driver`` is always ``None``: callers that use NVML fill it in.
    """
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    torch = installed_torch()
    return versions | {
        "torch": torch.version if torch else None,
        "cuda": torch.cuda if torch else None,
        "driver": None,
    }


def _version(name: str) -> str | None:
    try:
        return version(_DISTRIBUTIONS[name])
    except PackageNotFoundError:
        return None
