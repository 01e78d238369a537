"""Versions of what a result depends on."""

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
    """Versions by name; ``None`` for what is not installed or not known without a GPU.

    ``cuda`` is the version that PyTorch was built for; ``driver`` is for whoever talks to one to
    fill in. No library is imported for it.
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
