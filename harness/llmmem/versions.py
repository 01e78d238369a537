"""Versions of what a result depends on."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

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
    build = _torch_build()
    return versions | {
        "torch": _assigned(build, "__version__"),
        "cuda": _assigned(build, "cuda"),
        "driver": None,
    }


def _version(name: str) -> str | None:
    try:
        return version(_DISTRIBUTIONS[name])
    except PackageNotFoundError:
        return None


def _torch_build() -> str:
    """PyTorch's own note of how it was built: its metadata tells neither CUDA nor the variant."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    return Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")


def _assigned(source: str, name: str) -> str | None:
    """The string assigned to a variable in Python source; ``None`` for anything else."""
    match = re.search(rf"^{name}\b[^=\n]*=\s*'([^']*)'", source, re.MULTILINE)
    return match[1] if match else None
