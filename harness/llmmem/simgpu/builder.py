"""Compile the libraries of the simulated GPU for the installed PyTorch.

``csrc`` has the functions that are written by hand. This module generates all others that the
installed libraries import. There is no list of them, because it changes with every release of
PyTorch. A generated function that only computes or sets something succeeds without effect. One that
would have to return something through its arguments fails and names itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from llmmem.simgpu.cache import find, make
from llmmem.simgpu.compilers import SOURCES, Compilers
from llmmem.simgpu.symbols import (
    exported_symbols,
    needed_libraries,
    text_constants,
    wanted_symbols,
)
from llmmem.value_rules import MOST_FLOAT_BYTES, MOST_INTEGER_BYTES, RULES, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmmem.simgpu.torch_build import TorchBuild

__all__ = [
    "CORE",
    "FUNCTION_KINDS",
    "BuiltLibraries",
    "FunctionKind",
    "build",
    "find_built",
    "replaced_libraries",
]

#: The modules that compile the sources.
RECIPE = tuple(
    Path(__file__).with_name(name)
    for name in ("builder.py", "cache.py", "compilers.py", "symbols.py")
)

#: One source for each CUDA library. All other C sources make up the core.
API = SOURCES / "api"

#: SONAME of the core: the library that holds the account. All others link against it.
CORE = "libllmmem-simgpu.so"

#: The observer of PyTorch's operators. The core loads it into programs that have PyTorch.
OBSERVER = "libllmmem-observer.so"

#: The CUDA libraries that are replaced, and the source of each, in loading order: a library links to
#: those before it.
LIBRARIES = {
    "libcuda": "driver.c",
    "libcudart": "cudart.c",
    "libcublasLt": "cublaslt.c",
    "libcublas": "cublas.c",
    "libcudnn": "cudnn.c",
    "libcufft": "cufft.c",
    "libcusolver": "cusolver.c",
    "libcusparse": "cusparse.c",
    "libnccl": "nccl.c",
    "libnvidia-ml": "nvml.c",
}
#: Libraries that have the same name for every version of CUDA.
FIXED_NAMES = {"libcuda": "libcuda.so.1", "libnvidia-ml": "libnvidia-ml.so.1"}

#: The status by which each library says that a function is not supported.
NOT_SUPPORTED = {
    "libcuda": 801,
    "libcudart": 801,
    "libcublasLt": 15,
    "libcublas": 15,
    "libcudnn": 3000,
    "libcufft": 16,
    "libcusolver": 9,
    "libcusparse": 10,
    "libnccl": 5,
    "libnvidia-ml": 3,
}
#: Libraries whose functions cannot be told apart by their names: every generated one fails.
ALL_BY_HAND = ("libcufft", "libcusolver", "libcusparse", "libnccl")
#: Names of functions that return something through their arguments: handles, sizes, answers.
_FILLS_IN = re.compile(
    r"Get|Create|Alloc|Add\w*Node|Clone|Complete|EndCapture|Enumerate|Estimate|Export|Import"
    r"|Instantiate|Load|Occupancy|Open|Size"
)


#: How a function of a replaced library is made: written in C, or generated to succeed without effect
#: or to fail.
FunctionKind: TypeAlias = Literal["by hand", "no effect", "refused"]
FUNCTION_KINDS: tuple[FunctionKind, ...] = get_args(FunctionKind)

#: The file beside the libraries that lists the functions of each by kind.
FUNCTIONS = "functions.json"


@dataclass(frozen=True)
class BuiltLibraries:
    """The compiled libraries, in the order in which they must be loaded.

    Attributes:
        paths: The files. Their names differ from CUDA's (their SONAMEs do not), because PyTorch
            looks for ``libcudart.so`` among the loaded files and then loads the real ones.
    """

    paths: tuple[Path, ...]

    @property
    def core(self) -> Path:
        """The library that holds the account."""
        return self.paths[0]

    @property
    def driver_directory(self) -> Path:
        """Where programs that link to the driver find it under CUDA's own name."""
        return self.core.parent / "driver"

    def functions(self) -> dict[str, dict[FunctionKind, list[str]]]:
        """The functions that installed libraries import or look up, by SONAME and kind."""
        text = (self.core.parent / FUNCTIONS).read_text(encoding="utf-8")
        return cast("dict[str, dict[FunctionKind, list[str]]]", json.loads(text))


def replaced_libraries(torch: TorchBuild) -> dict[str, str]:
    """SONAMEs of the libraries to replace, in loading order, and the source of each.

    The major versions are those that the installed PyTorch links to.
    """
    needed = {name for path in torch.libraries() for name in needed_libraries(path)}
    names = {}
    for base, source in LIBRARIES.items():
        fixed = FIXED_NAMES.get(base)
        for soname in (
            (fixed,) if fixed else sorted(n for n in needed if n.split(".so.")[0] == base)
        ):
            names[soname] = source
    return names


def find_built(torch: TorchBuild, cache: Path) -> BuiltLibraries | None:
    """The libraries for the installed PyTorch if the cache has all of them intact; else None.

    Raises:
        ObstacleError: The cache cannot be read, or another user could have changed it.
    """
    paths = find(_entry(torch, cache, _readers(torch)))
    return None if paths is None else BuiltLibraries(paths)


def build(torch: TorchBuild, cache: Path) -> BuiltLibraries:
    """The libraries for the installed PyTorch, compiled unless they are in the cache.

    Args:
        torch: The PyTorch that is to run on them; a build with CUDA.
        cache: Directory for compiled libraries; made if it is not there.

    Raises:
        ObstacleError: No compiler, no CUDA headers, the compiler failed, or the cache cannot be used.
    """
    readers = _readers(torch)
    entry = _entry(torch, cache, readers)
    paths = find(entry)
    if paths is None:
        compilers = Compilers.installed(torch)
        paths = make(entry, lambda work: _build_into(work, compilers, torch, readers))
    return BuiltLibraries(paths)


def _build_into(
    work: Path, cc: Compilers, torch: TorchBuild, readers: tuple[Path, ...]
) -> list[Path]:
    """Build all libraries in an empty directory; returns them in loading order."""
    core = work / CORE
    # First, so that a compiler that does not work is reported at once: reading symbols takes seconds.
    cc.run(core, "-shared", "-fvisibility=hidden", f"-Wl,-soname,{CORE}", *_core_sources(), "-ldl")
    sonames = replaced_libraries(torch)
    wanted = {found.soname: found for found in wanted_symbols(readers)}
    with ThreadPoolExecutor(max_workers=2) as pool:
        observer = pool.submit(_build_observer, cc, work, torch, core)
        compiled = pool.map(lambda item: _object(cc, work, *item), sonames.items())
        objects = dict(zip(sonames, compiled, strict=True))
        observer.result()
    built = [core]
    functions = {}
    for soname, compiled_object in objects.items():
        symbols = _symbols_looked_up(soname, cc.headers, readers)
        version_node = None
        if soname in wanted:
            symbols |= wanted[soname].symbols
            version_node = wanted[soname].version
        stubs = symbols - exported_symbols(compiled_object)
        functions[soname] = _by_kind(soname, symbols, stubs)
        built.append(_link(cc, work, soname, compiled_object, stubs, version_node, built))
    (work / FUNCTIONS).write_text(json.dumps(functions), encoding="utf-8")
    _add_driver_directory(work)
    return built


def _core_sources() -> list[Path]:
    """All C sources but those of the CUDA libraries."""
    found = (path for path in SOURCES.rglob("*.c") if path.parent != API)
    return sorted(found, key=lambda path: path.name)


def _build_observer(cc: Compilers, work: Path, torch: TorchBuild, core: Path) -> None:
    rules = work / "value_rules.h"
    rules.write_text(_value_rules(), encoding="utf-8")
    cc.run_cpp(
        torch, work / OBSERVER, "-shared", f"-Wl,-soname,{OBSERVER}", "-Wl,-rpath,$ORIGIN",
        f"-I{work}", SOURCES / "observer" / "observer.cpp",
        core, f"-L{torch.root / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,--allow-shlib-undefined",
    )  # fmt: skip
    rules.unlink()


def _value_rules() -> str:
    """The table of `llmmem.value_rules` as a header of C++."""
    names = ["plain", *get_args(Rule)]
    entries = ",\n".join(f'    {{"{name}", Rule::{rule}_}}' for name, rule in RULES.items())
    return (
        "#pragma once\n#include <string_view>\n#include <unordered_map>\n"
        f"constexpr size_t MOST_INTEGER_BYTES = {MOST_INTEGER_BYTES};\n"
        f"constexpr size_t MOST_FLOAT_BYTES = {MOST_FLOAT_BYTES};\n"
        f"enum class Rule {{ {', '.join(f'{name}_' for name in names)} }};\n"
        f"const std::unordered_map<std::string_view, Rule> RULES = {{\n{entries}\n}};\n"
    )


def _add_driver_directory(work: Path) -> None:
    directory = work / "driver"
    directory.mkdir()
    for name in ("libcuda.so.1", "libcuda.so"):
        (directory / name).symlink_to("../simgpu-cuda.so.1")


def _object(cc: Compilers, work: Path, soname: str, source: str) -> Path:
    compiled = work / f"{soname}.o"
    cc.run(compiled, "-c", API / source)
    return compiled


def _link(
    cc: Compilers,
    work: Path,
    soname: str,
    compiled: Path,
    stubs: Iterable[str],
    version_node: str | None,
    before: list[Path],
) -> Path:
    """Link one library: the object, the generated functions, and the version that imports name."""
    generated = work / f"{soname}.c"
    functions = [_generated(soname.split(".so")[0], name) for name in sorted(stubs)]
    generated.write_text('#include "base/unsupported.h"\n' + "".join(functions), encoding="utf-8")
    options = []
    if version_node is not None:
        script = work / f"{soname}.map"
        script.write_text(f"{version_node} {{ global: *; }};\n", encoding="utf-8")
        options.append(f"-Wl,--version-script={script}")
    library = work / f"simgpu-{soname.removeprefix('lib')}"
    cc.run(
        library, "-shared", f"-Wl,-soname,{soname}", "-Wl,-rpath,$ORIGIN", *options,
        compiled, generated, *before, "-ldl",
    )  # fmt: skip
    for leftover in (compiled, generated, work / f"{soname}.map"):
        leftover.unlink(missing_ok=True)
    return library


def _by_kind(
    soname: str, symbols: frozenset[str], stubs: frozenset[str]
) -> dict[FunctionKind, list[str]]:
    refused = {name for name in stubs if _is_refused(soname.split(".so")[0], name)}
    return {
        "by hand": sorted(symbols - stubs),
        "no effect": sorted(stubs - refused),
        "refused": sorted(refused),
    }


def _is_refused(library: str, name: str) -> bool:
    """Whether a generated function fails."""
    always = library in ALL_BY_HAND or library == "libnvidia-ml"
    return always or _FILLS_IN.search(name) is not None


def _generated(library: str, name: str) -> str:
    """The C source of a function that is not written by hand."""
    status = NOT_SUPPORTED[library]
    if not _is_refused(library, name):
        body = "return 0;"
    elif library == "libnvidia-ml":  # programs expect this status there, so no message is printed
        body = f"return {status};"
    else:
        body = f'static bool told; return sim_unsupported("{name}", &told, {status});'
    return f"long {name}(void) {{ {body} }}\n"


def _readers(torch: TorchBuild) -> tuple[Path, ...]:
    """The installed libraries that may import from those that are replaced."""
    packages = torch.site_packages
    return (
        *torch.libraries(),
        *sorted((packages / "bitsandbytes").glob("libbitsandbytes_cuda*.so")),
        *sorted((packages / "nvidia").glob("**/lib/*.so*")),
    )


def _symbols_looked_up(soname: str, headers: Path, readers: tuple[Path, ...]) -> frozenset[str]:
    """Names that programs look up at run time, so that no import shows them."""
    if soname == FIXED_NAMES["libcuda"]:
        return _driver_functions(headers / "cuda.h")
    if soname == FIXED_NAMES["libnvidia-ml"]:
        return _nvml_functions(readers)
    if soname.startswith("libnccl."):
        return _nccl_functions(soname, readers)
    return frozenset()


def _nccl_functions(soname: str, readers: tuple[Path, ...]) -> frozenset[str]:
    """All functions of the installed NCCL: PyTorch imports them without a version.

    Each has two names: a weak one, and a strong one for profilers that begins with p.
    """
    exported = (exported_symbols(path) for path in readers if path.name == soname)
    return frozenset(
        name.removeprefix("p") for names in exported for name in names if name.startswith("pnccl")
    )


def _driver_functions(header: Path) -> frozenset[str]:
    """All functions of the driver's header, in all their versions."""
    text = header.read_text(encoding="utf-8", errors="replace")
    declared = re.findall(r"CUDAAPI\s+(cu[A-Z]\w+)\s*\(", text)
    versioned = re.findall(r"#define\s+cu[A-Z]\w+\s+(cu[A-Z]\w+)\b", text)
    return frozenset(declared) | frozenset(versioned)


def _nvml_functions(readers: tuple[Path, ...]) -> frozenset[str]:
    """The NVML functions named by the installed libraries and by the Python bindings."""
    pattern = rb"\bnvml[A-Z]\w+"
    names = {name for path in readers if "torch" in path.parts or "nccl" in path.name
             for name in re.findall(pattern + rb"(?=\0)", text_constants(path))}  # fmt: skip
    bindings = find_spec("pynvml")
    if bindings is not None and bindings.origin is not None:
        names |= set(re.findall(rb'"(nvml[A-Z]\w+)"', Path(bindings.origin).read_bytes()))
    return frozenset(name.decode() for name in names)


def _entry(torch: TorchBuild, cache: Path, readers: tuple[Path, ...]) -> Path:
    """The directory in the cache, named after all that the build depends on.

    That is the sources, the kind of machine with its C library, PyTorch, and the libraries that the
    builder reads. The compiler is left out, so that a complete cache needs none.
    """
    digest = hashlib.sha256()
    for source in sorted(SOURCES.rglob("*.[ch]*")):
        digest.update(os.fsencode(source.relative_to(SOURCES)) + b"\0" + source.read_bytes())
    for module in RECIPE:
        digest.update(os.fsencode(module.name) + b"\0" + module.read_bytes())
    digest.update(_value_rules().encode())
    for part in (*_machine(), torch.version, _installed("nvidia-ml-py")):
        digest.update(part.encode() + b"\0")
    for path in readers:
        status = path.stat()
        digest.update(os.fsencode(path))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return cache / f"simgpu-{digest.hexdigest()[:20]}"


def _machine() -> tuple[str, str]:
    """What a compiled library needs to run: machines may share a home directory."""
    return platform.machine(), os.confstr("CS_GNU_LIBC_VERSION") or ""


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
