"""Facts about the installed PyTorch, found without importing it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmmem.simgpu.symbols import exported_symbols, text_constants

__all__ = ["TorchBuild", "installed_torch"]


@dataclass(frozen=True)
class TorchBuild:
    """An installed PyTorch.

    Attributes:
        root: Its package directory.
        version: ``torch.__version__``.
        cuda: ``torch.version.cuda``, such as ``"13.0"``; None for a build without CUDA.
    """

    root: Path
    version: str
    cuda: str | None

    @property
    def site_packages(self) -> Path:
        """The directory that the package lies in, beside those of the CUDA wheels."""
        return self.root.parent

    def libraries(self) -> tuple[Path, ...]:
        """The shared libraries of PyTorch itself."""
        return tuple(sorted((self.root / "lib").glob("*.so*")))

    def has_cxx11_abi(self) -> bool:
        """Whether it was compiled with the standard library's newer strings (``std::__cxx11``)."""
        exported = exported_symbols(self.root / "lib" / "libc10.so")
        return any("__cxx11" in name for name in exported if name.startswith("_ZN3c105Error"))

    def architectures(self) -> tuple[str, ...]:
        """The architectures of its kernels, such as ``("sm_75", "sm_80", "compute_90")``.

        Empty if they cannot be found.
        """
        library = self.root / "lib" / "libtorch_python.so"
        if not library.is_file():
            return ()
        found = re.search(rb"sm_\d+a?(?: (?:sm|compute)_\d+a?)*(?=\0)", text_constants(library))
        return tuple(found[0].decode().split()) if found else ()

    def runs_on(self, compute_capability: tuple[int, int]) -> bool:
        """Whether a card can run its kernels.

        It can if there is machine code for the card's major version and at most its minor version,
        or PTX (``compute_``) for the card's version or a lower one.
        """
        architectures = self.architectures()
        major, minor = compute_capability
        return not architectures or any(
            number <= 10 * major + minor and (kind == "compute" or number // 10 == major)
            for kind, number in map(_split_architecture, architectures)
        )


def _split_architecture(text: str) -> tuple[str, int]:
    kind, _, number = text.partition("_")
    return kind, int(number.rstrip("a"))


@cache
def installed_torch() -> TorchBuild | None:
    """The PyTorch that ``import torch`` would import, or None."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    text = (root / "version.py").read_text(encoding="utf-8")
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE)
    return TorchBuild(
        root=root,
        version=version[1] if version else "unknown",
        cuda=cuda[1] if cuda else None,
    )
