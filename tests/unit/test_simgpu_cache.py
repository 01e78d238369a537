"""The cache of compiled libraries: whose it is, whether it is whole, and what is said if not."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmmem.simgpu.cache import cache_directory, find, make
from llmmem.simgpu.problems import ObstacleError

if TYPE_CHECKING:
    from collections.abc import Callable

STRANGER = 54321
ACTIVATE = """
from llmmem import simgpu
from llmmem.errors import LlmmemError
try:
    simgpu.activate("l4")
except LlmmemError as error:
    raise SystemExit(str(error))
print("works", simgpu.check())
"""
#: Programs started without these obey permissions even as root.
CAPABILITIES_OVER_PERMISSIONS = (1, 2)
PR_CAPBSET_DROP = 24


# ---- entries of any kind ---------------------------------------------------------------------------


def fill(work: Path) -> list[Path]:
    libraries = [work / "first.so", work / "second.so"]
    for path in (*libraries, work / "observer.so"):
        path.write_bytes(path.name.encode() * 1000)
    (work / "driver").mkdir()
    (work / "driver" / "link.so").symlink_to("../first.so")
    return libraries


def never(work: Path) -> list[Path]:
    raise AssertionError("it is whole and need not be built")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    made = tmp_path / "home" / "llmmem" / "simgpu-1"
    make(made, fill)
    return made


def test_what_was_made_is_found_in_order_and_is_for_the_user_alone(entry: Path) -> None:
    assert find(entry) == (entry / "first.so", entry / "second.so")
    assert make(entry, never) == find(entry)
    for directory in (entry, entry.parent, entry.parent.parent):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    assert find(tmp_path / "nowhere" / "simgpu-1") is None


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


def lead_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("../second.so")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("second.so", truncate),
        ("second.so", change_a_byte),
        ("second.so", Path.unlink),
        ("observer.so", Path.unlink),
        ("driver/link.so", Path.unlink),
        ("driver/link.so", lead_elsewhere),
        ("manifest.json", truncate),
        ("manifest.json", Path.unlink),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.write_text('{"files": {}, "links": {}}')),
        (".", lambda path: (shutil.rmtree(path), path.write_text("a file"))),
    ],
)
def test_what_is_damaged_is_built_again(
    entry: Path, name: str, damage: Callable[[Path], object]
) -> None:
    before = find(entry)
    damage(entry / name)
    assert find(entry) is None
    assert make(entry, fill) == before == find(entry)
    assert {path.name for path in entry.parent.iterdir()} == {entry.name, f"{entry.name}.lock"}


def test_what_a_killed_build_left_is_cleared_away(tmp_path: Path) -> None:
    entry = tmp_path / "llmmem" / "simgpu-1"
    entry.with_name("simgpu-1.building-abc").mkdir(parents=True)
    make(entry, fill)
    assert {path.name for path in entry.parent.iterdir()} == {"simgpu-1", "simgpu-1.lock"}


@pytest.mark.parametrize("name", ["", "simgpu-1", "simgpu-1/first.so", "simgpu-1/driver"])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_what_others_may_write_to_is_refused(entry: Path, name: str, mode: int) -> None:
    path = entry.parent / name
    path.chmod(mode)
    with pytest.raises(ObstacleError, match=r"others|other users") as caught:
        find(entry)
    message = str(caught.value)
    assert str(path) in message
    assert "remove it" in message
    assert "XDG_CACHE_HOME" in message
    with pytest.raises(ObstacleError):
        make(entry, never)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "simgpu-1", "simgpu-1/first.so"])
def test_what_belongs_to_another_user_is_refused(entry: Path, name: str) -> None:
    path = entry.parent / name
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(ObstacleError, match=f"another user .{STRANGER}.") as caught:
        find(entry)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_strangers_link_is_refused(entry: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(entry.parent)
    assert find(link / entry.name) is not None
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(ObstacleError, match="another user"):
        find(link / entry.name)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "set XDG_CACHE_HOME"),
        (errno.EACCES, "set XDG_CACHE_HOME"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_the_remedy(
    tmp_path: Path, number: int, remedy: str
) -> None:
    def fail(work: Path) -> list[Path]:
        raise OSError(number, os.strerror(number), str(work / "first.so"))

    entry = tmp_path / "llmmem" / "simgpu-1"
    with pytest.raises(ObstacleError, match=os.strerror(number)) as caught:
        make(entry, fail)
    assert remedy in caught.value.problem.remedy
    assert "\n" not in str(caught.value)
    assert [path.name for path in entry.parent.iterdir()] == ["simgpu-1.lock"]


# ---- the libraries themselves ----------------------------------------------------------------------


def obey_permissions() -> None:
    libc = ctypes.CDLL(None)
    for capability in CAPABILITIES_OVER_PERMISSIONS:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def activate(cache: Path | str | None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Activates the simulated GPU in a process, with that directory for caches."""
    kept = {name: text for name, text in os.environ.items() if name != "XDG_CACHE_HOME"}
    chosen = {} if cache is None else {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", ACTIVATE],
        capture_output=True,
        text=True,
        check=False,
        env=kept | chosen | environment,
        preexec_fn=obey_permissions,
    )


@pytest.fixture
def real(simulated_gpu: None, tmp_path: Path) -> Path:
    """A directory for caches with a copy of the compiled libraries; gives their directory."""
    gpu = subprocess.run(
        [
            sys.executable,
            "-c",
            "from llmmem import simgpu; print(simgpu.activate('l4').libraries.core.parent)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    built = Path(gpu.stdout.strip())
    copied = tmp_path / "caches" / "llmmem" / built.name
    copied.parent.mkdir(parents=True, mode=0o700)
    shutil.copytree(built, copied, symlinks=True)
    return copied


NO_COMPILER = {"PATH": "", "CC": "", "CXX": ""}


def test_a_complete_cache_needs_no_compiler_and_no_permission_to_write(real: Path) -> None:
    caches = real.parent.parent
    for directory in (real, real.parent, caches):
        directory.chmod(0o500)
    try:
        done = activate(caches, **NO_COMPILER)
    finally:
        for directory in (caches, real.parent, real):
            directory.chmod(0o700)
    assert (done.returncode, done.stdout) == (0, "works ()\n"), done.stderr
    assert [path.name for path in real.parent.iterdir()] == [real.name]


def test_the_name_of_the_directory_need_not_be_text(real: Path) -> None:
    caches = real.parent.parent
    done = activate(caches.rename(caches.with_name("caches \udcff")), **NO_COMPILER)
    assert (done.returncode, done.stdout) == (0, "works ()\n"), done.stderr


def test_a_library_that_was_cut_short_is_not_loaded(real: Path) -> None:
    os.truncate(next(real.glob("simgpu-cublas.so*")), 8192)
    done = activate(real.parent.parent, **NO_COMPILER)
    assert (done.returncode, done.stderr) == (
        1,
        "there is no C compiler: install gcc or clang, or name a compiler in $CC\n",
    )


def test_a_library_from_where_others_may_write_is_not_loaded(real: Path) -> None:
    real.parent.chmod(0o777)
    done = activate(real.parent.parent)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "can be written to by other users" in done.stderr


def test_doctor_tries_the_libraries(real: Path) -> None:
    path = real / "simgpu-cuda.so.1"
    path.write_bytes(b"no library")
    manifest = json.loads((real / "manifest.json").read_text())
    manifest["files"][path.name] = hashlib.sha256(b"no library").hexdigest()
    (real / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-m", "llmmem", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XDG_CACHE_HOME": str(real.parent.parent)},
    )
    ability = json.loads(done.stdout)["simulated"]
    assert not ability["works"]
    (problem,) = ability["problems"]
    assert "does not load" in problem
    assert f"remove the directory {str(real)!r}" in problem


def a_compiler(tmp_path: Path, message: str) -> str:
    """The path of a compiler that fails with a message."""
    path = tmp_path / "compiler"
    path.write_text(
        f"#!/bin/sh\necho 'In file included from x.c' >&2\necho '{message}' >&2\nexit 1\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.usefixtures("simulated_gpu")
def test_whatever_keeps_the_libraries_from_being_compiled_is_one_line_with_the_remedy(
    tmp_path: Path,
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    (tmp_path / "file").write_text("")
    full = a_compiler(tmp_path, "/usr/bin/ld: final link failed: No space left on device")
    cases = [
        (tmp_path, NO_COMPILER, ["no C compiler", "install gcc or clang"]),
        (tmp_path, {"CC": "no-such-cc"}, ["'no-such-cc', which $CC names", "name a compiler"]),
        (tmp_path, {"CXX": "no-such-c++"}, ["C++ compiler", "$CXX", "install g++"]),
        (locked, {}, ["Permission denied", "set XDG_CACHE_HOME"]),
        (tmp_path / "file", {}, ["Not a directory", "set XDG_CACHE_HOME"]),
        ("relative", {}, ["'relative'", "not an absolute path"]),
        (None, {"HOME": "/nonexistent/home"}, ["'/nonexistent/home'", "set XDG_CACHE_HOME"]),
        (tmp_path / "full", {"CC": full}, ["No space left on device", "free some space"]),
    ]
    for cache, environment, said in cases:
        done = activate(cache, **environment)
        assert (done.returncode, done.stdout) == (1, ""), (environment, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for text in said:
            assert text in done.stderr
    broken = a_compiler(tmp_path, "x.c:1: fatal error: stdio.h: No such file or directory")
    done = activate(tmp_path / "broken", CC=broken)
    assert len(done.stderr.splitlines()) == 1
    assert "fatal error: stdio.h" in done.stderr
    assert "install a complete compiler" in done.stderr
    assert not Path("/nonexistent").exists()
    assert not any(path.is_dir() for path in (tmp_path / "full" / "llmmem").iterdir())


def test_the_cache_lies_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "llmmem"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "llmmem"
