"""How much of the installed libraries the simulated GPU recognises, by name or by layout.

Some of what it does depends on names and layouts that no interface promises: operators and their
arguments, a function of PyTorch's allocators, mangled names of kernels, fat binaries, cubins, and
the functions of CUDA's libraries. A new release of PyTorch can rename any of them. The figures here
show that: each says how many of the expected names were found, and names the others.
"""

from __future__ import annotations

import ctypes
import json
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from llmmem.errors import LlmmemError
from llmmem.simgpu.symbols import exported_symbols, open_section, text_constants
from llmmem.value_rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llmmem.simgpu.builder import BuiltLibraries
    from llmmem.simgpu.torch_build import TorchBuild

__all__ = ["Coverage", "CoverageError", "measure", "measure_installed"]

#: The arguments that the observer looks up by name (``csrc/observer``), by operator.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "_to_copy": ("device", "dtype"),
    "argmax": ("dim",),
    "argmin": ("dim",),
    "argsort": ("dim",),
    "constant_pad_nd": ("value",),
    "fill_": ("value",),
    "full": ("fill_value",),
    "full_like": ("fill_value",),
    "gather": ("index",),
    "index": ("indices",),
    "index_select": ("index",),
    "masked_fill": ("mask", "value"),
    "new_full": ("fill_value",),
    "random_": ("from", "to"),
    "randint": ("low", "high"),
    "randint_like": ("low", "high"),
    "randperm": ("n",),
    "sort": ("dim",),
    "topk": ("dim", "largest"),
    "where": ("condition",),
}

#: The function by which PyTorch's allocators report blocks (``csrc/kernels/allocator_blocks.c``).
REPORT = "_ZN3c1027reportMemoryUsageToProfilerEPvlmmNS_6DeviceE"
#: PyTorch's libraries that are known by name (``streams.c``, ``operators.c``, ``allocator_blocks.c``).
LIBRARIES = ("libc10.so", "libc10_cuda.so", "libtorch_cpu.so", "libtorch_cuda.so")

LONGEST_SECONDS = 300


class CoverageError(LlmmemError):
    """The figures could not be measured."""


@dataclass(frozen=True)
class Coverage:
    """How many of the expected names or layouts were found.

    Attributes:
        subject: What was looked for.
        found: How many of them were recognised.
        expected: How many there are.
        missing: The others, by name.
    """

    subject: str
    found: int
    expected: int
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, subject: str, expected: Iterable[str], found: Iterable[str]) -> Coverage:
        """Compare two sets of names; found names that are not expected do not count."""
        wanted = set(expected)
        missing = wanted - set(found)
        return cls(subject, len(wanted) - len(missing), len(wanted), tuple(sorted(missing)))


def measure_installed() -> tuple[Coverage, ...]:
    """All figures for the installed PyTorch, found by a process of its own.

    The libraries are compiled first if they are not in the cache. Call it only where
    `llmmem.simgpu.check` finds nothing.

    Raises:
        CoverageError: The process failed or took longer than `LONGEST_SECONDS`.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "llmmem.simgpu.coverage"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CoverageError(f"it took longer than {LONGEST_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CoverageError(lines[-1])
    return tuple(
        Coverage(**{**fields, "missing": tuple(fields["missing"])})
        for fields in json.loads(done.stdout)
    )


def measure(torch: TorchBuild, libraries: BuiltLibraries) -> tuple[Coverage, ...]:
    """All figures. Loads the core of the simulated GPU into this process."""
    core = ctypes.CDLL(str(libraries.core))
    return (
        *_operators(torch),
        _pytorchs_libraries(torch),
        _fat_binaries((*torch.libraries(), *_bitsandbytes(torch))),
        *_kernels_outside_operators(torch, core),
        *_cubins(torch, core),
        *_functions(libraries),
    )


# ---- operators --------------------------------------------------------------------------------------


def _operators(torch: TorchBuild) -> Iterator[Coverage]:
    text = text_constants(torch.root / "lib" / "libtorch_cpu.so")
    names = {name.decode() for name in re.findall(rb"aten::(\w+)\0", text)}
    yield Coverage.of("operators that have a rule", RULES, names)
    arguments = _arguments(text)
    yield Coverage.of(
        "arguments of operators",
        (f"{operator}({name})" for operator, names in ARGUMENTS.items() for name in names),
        (f"{operator}({name})" for operator, names in arguments.items() for name in names),
    )


def _arguments(text: bytes) -> dict[str, set[str]]:
    """The names of the arguments of PyTorch's operators, of all overloads together."""
    found: dict[str, set[str]] = {}
    for name, listed in re.findall(rb"\0(\w+)(?:\.\w+)?\(([^\0]*)\) -> ", text):
        arguments = re.findall(r" (\w+)(?:=[^,]*)?(?:,|$)", listed.decode("ascii", "replace"))
        found.setdefault(name.decode(), set()).update(arguments)
    return found


def _pytorchs_libraries(torch: TorchBuild) -> Coverage:
    """Libraries by name, and the function that the simulated GPU takes the place of."""
    paths = {path.name: path for path in torch.libraries()}
    found = set(LIBRARIES) & set(paths)
    base = paths.get("libc10.so")
    if base is not None and REPORT in exported_symbols(base):
        found.add(REPORT)
    return Coverage.of("libraries and functions of PyTorch", (*LIBRARIES, REPORT), found)


# ---- kernels ----------------------------------------------------------------------------------------


def _bitsandbytes(torch: TorchBuild) -> tuple[Path, ...]:
    """The library of bitsandbytes for torch's CUDA, if it is installed."""
    version = (torch.cuda or "").replace(".", "")
    folder = torch.site_packages / "bitsandbytes"
    return tuple(folder.glob(f"libbitsandbytes_cuda{version}.so"))


class _Header(NamedTuple):
    """The beginning of a fat binary (``csrc/kernels/kernels.c``)."""

    magic: int
    version: int
    header_size: int
    size: int


class _Entry(NamedTuple):
    """The beginning of an entry of a fat binary: code for one architecture."""

    kind: int
    header_size: int
    size: int
    architecture: int


HEADER, ENTRY = struct.Struct("<IHHQ"), struct.Struct("<H2xIQ12xI")
MAGIC = 0xBA55ED50
PADDING = 8
KINDS = (1, 2)  # PTX, machine code
ARCHITECTURES = range(20, 200)


def _fat_binaries(libraries: Iterable[Path]) -> Coverage:
    readable = {path: is_readable for path in libraries for is_readable in _layouts(path)}
    return Coverage.of(
        "libraries whose fat binaries are readable",
        (path.name for path in readable),
        (path.name for path, is_readable in readable.items() if is_readable),
    )


def _layouts(path: Path) -> Iterator[bool]:
    """Whether a library's section of fat binaries has the known layout; nothing if it has none."""
    with open_section(path, ".nv_fatbin") as found:
        if found is not None:
            file, start, size = found
            yield _is_readable(file, start, start + size)


def _is_readable(file: IO[bytes], at: int, end: int) -> bool:
    while at + HEADER.size <= end:
        header = _Header(*_unpack(file, at, HEADER))
        if header.magic == 0:
            at += PADDING
            continue
        if header.magic != MAGIC:
            return False
        at += header.header_size
        last = at + header.size
        while at < last:
            entry = _Entry(*_unpack(file, at, ENTRY))
            is_known = entry.kind in KINDS and entry.architecture in ARCHITECTURES
            if not is_known or entry.header_size < ENTRY.size:
                return False
            at += entry.header_size + entry.size
        if at != last:
            return False
    return True


def _unpack(file: IO[bytes], at: int, layout: struct.Struct) -> tuple[int, ...]:
    file.seek(at)
    return layout.unpack(file.read(layout.size).ljust(layout.size, b"\0"))


def _kernels_outside_operators(torch: TorchBuild, core: ctypes.CDLL) -> Iterator[Coverage]:
    """Kernels that bitsandbytes launches itself: what they write is read from their names.

    The observer follows the kernels of PyTorch's own operators without their names.
    """
    core.sim_read_pointers.argtypes = [ctypes.c_char_p]
    core.sim_read_pointers.restype = ctypes.c_uint64
    for library in _bitsandbytes(torch):
        names = _kernel_names(text_constants(library))
        yield Coverage.of(
            "kernels of bitsandbytes whose outputs are known",
            names,
            (name for name in names if core.sim_read_pointers(name.encode())),
        )


def _kernel_names(text: bytes) -> set[str]:
    """The mangled names that a library registers its kernels by."""
    return {name.decode() for name in re.findall(rb"(?<=\0)_Z\w+(?=\0)", text)}


#: A kernel that has each of the attributes that are read from a cubin.
PTX = """
.version 7.0
.target sm_80
.address_size 64
.visible .entry probe(.param .u64 out, .param .u32 index) .maxntid 128, 1, 1
{
    .local .align 4 .b8 frame[64];
    .reg .b64 %d<5>;
    .reg .b32 %r<3>;
    ld.param.u64 %d1, [out];
    ld.param.u32 %r1, [index];
    mov.u64 %d2, frame;
    mul.wide.u32 %d3, %r1, 4;
    add.s64 %d4, %d2, %d3;
    st.local.u32 [frame], %r1;
    st.local.u32 [frame+32], %r1;
    ld.local.u32 %r2, [%d4];
    st.global.u32 [%d1], %r2;
    ret;
}
"""
PARAMETERS = (8, 4)
MAX_THREADS = 128


class _Cubin(ctypes.Structure):
    """What is read of a cubin (``csrc/kernels/cubin.h``)."""

    _fields_ = (
        ("registers", ctypes.c_int),
        ("local_bytes", ctypes.c_int),
        ("max_threads", ctypes.c_int),
        ("parameter_count", ctypes.c_size_t),
        ("parameter_sizes", ctypes.c_uint16 * len(PARAMETERS)),
    )


def _cubins(torch: TorchBuild, core: ctypes.CDLL) -> Iterator[Coverage]:
    """The attributes of a kernel that the installed ptxas compiles; nothing without a ptxas."""
    ptxas = torch.site_packages / "triton" / "backends" / "nvidia" / "bin" / "ptxas"
    if ptxas.is_file():
        yield Coverage.of(
            "attributes of a compiled kernel",
            ("registers", "local memory", "threads", "parameters"),
            _attributes(core, _compile(ptxas)),
        )


def _compile(ptxas: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, compiled = Path(folder, "probe.ptx"), Path(folder, "probe.cubin")
        source.write_text(PTX, encoding="ascii")
        subprocess.run(
            [ptxas, "-arch=sm_80", source, "-o", compiled], check=True, capture_output=True
        )
        return compiled.read_bytes()


def _attributes(core: ctypes.CDLL, image: bytes) -> Iterator[str]:
    """The attributes that are read correctly."""
    core.sim_copy_cubin.argtypes = [ctypes.c_char_p]
    core.sim_copy_cubin.restype = ctypes.c_void_p
    core.sim_read_cubin.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    core.sim_read_cubin.restype = ctypes.POINTER(_Cubin)
    copy = core.sim_copy_cubin(image)
    read = core.sim_read_cubin(copy, b"probe") if copy else None
    if not read:
        return
    cubin = read.contents
    if cubin.registers > 0:
        yield "registers"
    if cubin.local_bytes > 0:
        yield "local memory"
    if cubin.max_threads == MAX_THREADS:
        yield "threads"
    if cubin.parameter_count == len(PARAMETERS) and tuple(cubin.parameter_sizes) == PARAMETERS:
        yield "parameters"


# ---- functions of CUDA's libraries ------------------------------------------------------------------


def _functions(libraries: BuiltLibraries) -> Iterator[Coverage]:
    """Of each library, the functions that work: written by hand, or generated without effect."""
    for soname, kinds in libraries.functions().items():
        working = kinds["by hand"] + kinds["no effect"]
        generated = f"{len(kinds['by hand'])} by hand, {len(kinds['no effect'])} without effect"
        subject = f"functions of {soname.split('.so')[0]} that work ({generated})"
        yield Coverage.of(subject, working + kinds["refused"], working)


def _main() -> None:
    from llmmem.simgpu.builder import build
    from llmmem.simgpu.cache import cache_directory
    from llmmem.simgpu.torch_build import installed_torch

    torch = installed_torch()
    assert torch is not None
    json.dump(
        [asdict(figure) for figure in measure(torch, build(torch, cache_directory()))], sys.stdout
    )


if __name__ == "__main__":
    _main()
