"""The C and C++ compilers for the libraries of the simulated GPU."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.simgpu.problems import ObstacleError, Problem

if TYPE_CHECKING:
    from llmmem.simgpu.torch_build import TorchBuild

__all__ = ["SOURCES", "Compilers", "compiler", "compiler_of_cpp", "cuda_headers", "missing"]

SOURCES = Path(__file__).parent / "csrc"

COMPILE_SECONDS = 300

#: A file system with less room than this is full.
FULL_BYTES = 2**20
_NO_SPACE = re.compile("No space left on device|Disk quota exceeded")


def compiler() -> str | None:
    """The C compiler: ``$CC``, else the first of cc, gcc and clang; None if there is none."""
    return _first_program("CC", ("cc", "gcc", "clang"))


def compiler_of_cpp() -> str | None:
    """The C++ compiler: ``$CXX``, else the first of c++, g++ and clang++; None if there is none."""
    return _first_program("CXX", ("c++", "g++", "clang++"))


def cuda_headers(torch: TorchBuild) -> Path | None:
    """The directory of ``cuda_runtime_api.h`` among the installed wheels, of torch's CUDA major."""
    major = (torch.cuda or "").split(".")[0]
    candidates = (
        torch.site_packages / "nvidia" / f"cu{major}" / "include",
        torch.site_packages / "nvidia" / "cuda_runtime" / "include",
        torch.site_packages / "triton" / "backends" / "nvidia" / "include",
    )
    return next((path for path in candidates if _cuda_major(path) == major), None)


def missing(torch: TorchBuild | None) -> tuple[Problem, ...]:
    """What compiling needs and this machine lacks.

    Args:
        torch: The PyTorch to compile for, whose wheels bring CUDA's headers; None skips their check.
    """
    problems = []
    if torch is not None and cuda_headers(torch) is None:
        problems.append(
            Problem(
                "CUDA's headers are not installed", "reinstall torch with its nvidia-* dependencies"
            )
        )
    if compiler() is None:
        problems.append(
            Problem(
                f"there is no C compiler{_named('CC')}",
                "install gcc or clang, or name a compiler in $CC",
            )
        )
    if compiler_of_cpp() is None:
        problems.append(
            Problem(
                f"there is no C++ compiler{_named('CXX')}",
                "install g++ or clang++, or name one in $CXX",
            )
        )
    return tuple(problems)


@dataclass(frozen=True)
class Compilers:
    """The compilers and headers for one PyTorch.

    Attributes:
        c: The C compiler.
        cpp: The C++ compiler.
        headers: The directory of CUDA's headers.
    """

    c: str
    cpp: str
    headers: Path

    @classmethod
    def installed(cls, torch: TorchBuild) -> Compilers:
        """The compilers of this machine.

        Raises:
            ObstacleError: One of them, or CUDA's headers, is missing.
        """
        for problem in missing(torch):
            raise ObstacleError(problem)
        c, cpp, headers = compiler(), compiler_of_cpp(), cuda_headers(torch)
        assert c is not None
        assert cpp is not None
        assert headers is not None
        return cls(c, cpp, headers)

    def run(self, output: Path, *arguments: str | Path) -> None:
        """Compile C with the common options.

        Raises:
            ObstacleError: The compiler failed or took too long.
            OSError: There is no space for the output.
        """
        _compile(
            self.c, output, "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-pthread",
            f"-I{SOURCES}", f"-I{self.headers}", f"-I{SOURCES / 'api' / 'include'}", *arguments,
        )  # fmt: skip

    def run_cpp(self, torch: TorchBuild, output: Path, *arguments: str | Path) -> None:
        """Compile C++ against the installed PyTorch.

        Raises:
            ObstacleError: The compiler failed or took too long.
            OSError: There is no space for the output.
        """
        include = torch.root / "include"
        _compile(
            # PyTorch is built with NDEBUG, which changes the size of its structures.
            self.cpp, output, "-std=gnu++20", "-O1", "-fPIC", "-pthread", "-w", "-DNDEBUG",
            "-fvisibility=hidden", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.has_cxx11_abi())}",
            f"-I{SOURCES}", f"-I{include}",
            f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", *arguments,
        )  # fmt: skip


def _compile(program: str, output: Path, *arguments: str | Path) -> None:
    # Intermediate files go beside the output. Messages must be in English, because we search them.
    environment = os.environ | {"TMPDIR": str(output.parent), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [program, *map(str, arguments), "-o", str(output)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_SECONDS,
            check=False,
            env=environment,
        )
    except OSError as error:
        raise ObstacleError(
            Problem(f"{program!r} cannot be run ({error.strerror})", "install another compiler")
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ObstacleError(
            Problem(
                f"{program!r} took longer than {COMPILE_SECONDS} s for one file",
                "try again when the machine is less busy",
            )
        ) from error
    if done.returncode:
        raise _failure(program, output, done.stderr)


def _failure(program: str, output: Path, printed: str) -> Exception:
    if _NO_SPACE.search(printed) or shutil.disk_usage(output.parent).free < FULL_BYTES:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output.parent))
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["no message"]
    told = next((line for line in lines if "error" in line.lower()), lines[-1])
    error = ObstacleError(
        Problem(
            f"the simulated GPU could not be compiled with {program!r} ({told})",
            "install a complete compiler, for example with `apt install g++`, or name another one "
            "in $CC and $CXX",
        )
    )
    error.add_note(printed)
    return error


def _first_program(variable: str, names: tuple[str, ...]) -> str | None:
    """The program that an environment variable names, else the first that is installed."""
    chosen = os.environ.get(variable, "").split()
    candidates = chosen[:1] or names
    return next((path for name in candidates if (path := shutil.which(name))), None)


def _named(variable: str) -> str:
    """The part of a message that says which variable names a missing program."""
    chosen = os.environ.get(variable, "").split()
    return f" {chosen[0]!r}, which ${variable} names" if chosen else ""


def _cuda_major(include: Path) -> str | None:
    header = include / "cuda_runtime_api.h"
    if not header.is_file():
        return None
    found = re.search(
        r"#define CUDART_VERSION\s+(\d+)", header.read_text(encoding="utf-8", errors="replace")
    )
    return str(int(found[1]) // 1000) if found else None
