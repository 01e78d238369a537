"""The symbols that shared libraries import and export (ELF)."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from elftools.elf.elffile import ELFFile

__all__ = [
    "Wanted",
    "exported_symbols",
    "needed_libraries",
    "open_section",
    "text_constants",
    "wanted_symbols",
]


@dataclass(frozen=True)
class Wanted:
    """What a set of libraries imports from one library.

    Attributes:
        soname: SONAME of that library, such as ``"libcudart.so.13"``.
        version: The version node that the imports name, such as ``"libcudart.so.13"``.
        symbols: The imported names.
    """

    soname: str
    version: str
    symbols: frozenset[str]


def wanted_symbols(libraries: Iterable[Path]) -> tuple[Wanted, ...]:
    """All versioned imports of the libraries, by the library and version that they name."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in libraries:
        with path.open("rb") as file:
            for origin, symbol in _imports(_elf(file)):
                found[origin].add(symbol)
    return tuple(
        Wanted(library, version, frozenset(symbols))
        for (library, version), symbols in sorted(found.items())
    )


def exported_symbols(path: Path) -> frozenset[str]:
    """The global functions and variables that an object file or shared library defines."""
    with path.open("rb") as file:
        elf = _elf(file)
        table = _section(elf, ".symtab") or _section(elf, ".dynsym")
        return frozenset(
            symbol.name
            for symbol in table.iter_symbols()
            if symbol["st_info"]["bind"] == "STB_GLOBAL" and symbol["st_shndx"] != "SHN_UNDEF"
        )


def needed_libraries(path: Path) -> tuple[str, ...]:
    """The SONAMEs that a shared library names as its dependencies (DT_NEEDED)."""
    with path.open("rb") as file:
        dynamic = _section(_elf(file), ".dynamic")
        if dynamic is None:
            return ()
        return tuple(tag.needed for tag in dynamic.iter_tags("DT_NEEDED"))


@contextmanager
def open_section(path: Path, name: str) -> Iterator[tuple[IO[bytes], int, int] | None]:
    """Open a library at one of its sections, which may be too large to read at once.

    Returns:
        The file, and the offset and size of the section in bytes; None if there is no such section.
    """
    with path.open("rb") as file:
        section = _section(_elf(file), name)
        yield None if section is None else (file, section["sh_offset"], section["sh_size"])


def text_constants(path: Path) -> bytes:
    """The read-only data of a library, which holds the names that it looks up at run time."""
    with path.open("rb") as file:
        section = _section(_elf(file), ".rodata")
        data: bytes = section.data() if section is not None else b""
        return data


def _elf(file: IO[bytes]) -> ELFFile:
    from elftools.elf.elffile import ELFFile

    return ELFFile(file)


def _section(elf: ELFFile, name: str) -> Any:
    """A section by name, of a class that depends on its kind; None if there is none."""
    return elf.get_section_by_name(name)


def _imports(elf: ELFFile) -> Iterator[tuple[tuple[str, str], str]]:
    """Pairs of (library, version) and symbol, for every versioned undefined symbol."""
    symbols = _section(elf, ".dynsym")
    versions = _section(elf, ".gnu.version")
    requirements = _section(elf, ".gnu.version_r")
    if symbols is None or versions is None or requirements is None:
        return
    origins = {
        auxiliary["vna_other"]: (library.name, auxiliary.name)
        for library, auxiliaries in requirements.iter_versions()
        for auxiliary in auxiliaries
    }
    for index, symbol in enumerate(symbols.iter_symbols()):
        if symbol["st_shndx"] != "SHN_UNDEF":
            continue
        origin = origins.get(versions.get_symbol(index)["ndx"])
        if origin is not None:
            yield origin, symbol.name
