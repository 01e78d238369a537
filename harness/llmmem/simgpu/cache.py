"""The cache of compiled libraries, and the checks before one of them is loaded.

Libraries from the cache run with the rights of the user. So none is loaded from a directory that
other users own or may write to, nor one that has changed since it was compiled: a truncated library
would end the process with a bus error.

An entry of the cache is a directory with a manifest of its files and their hashes. It is built beside
its place and moved there when it is complete, so readers need neither a lock nor write permission.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmmem.simgpu.problems import ObstacleError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["cache_directory", "find", "make"]

MANIFEST = "manifest.json"
PRIVATE = 0o700
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
ELSEWHERE = "set XDG_CACHE_HOME to a directory of your own that can be written to"
NEEDED = "64 MiB"


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/llmmem``, by default ``~/.cache/llmmem``; it need not exist.

    Raises:
        ObstacleError: The variable is not an absolute path, or it is not set and there is no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        if not Path(base).is_absolute():
            raise ObstacleError(
                Problem(
                    f"XDG_CACHE_HOME is {base!r}, which is not an absolute path",
                    "set it to one, or unset it",
                )
            )
        return Path(base) / "llmmem"
    try:
        home = Path.home()
    except RuntimeError:  # neither $HOME nor the list of users has one
        raise ObstacleError(
            Problem("there is no home directory for the cache", ELSEWHERE)
        ) from None
    if not os.path.isdir(home):  # noqa: PTH112 - Path's raises where a parent cannot be read
        what = f"the home directory {str(home)!r} does not exist"
        raise ObstacleError(Problem(what, ELSEWHERE))
    return home / ".cache" / "llmmem"


def find(entry: Path) -> tuple[Path, ...] | None:
    """The libraries of an entry in loading order; None if it is missing or damaged.

    Raises:
        ObstacleError: The cache or the entry belongs to another user, others may write to it, or it
            cannot be read.
    """
    with _told(entry.parent):
        for directory in (entry.parent, entry):
            if not os.path.lexists(directory):
                return None
            _check_owned(directory)
        return _whole(entry)


def make(entry: Path, build: Callable[[Path], list[Path]]) -> tuple[Path, ...]:
    """The libraries of an entry, built unless another process does so first.

    Args:
        entry: A directory in the cache; created if it is missing.
        build: Fills a directory and returns its libraries in loading order.

    Raises:
        ObstacleError: It cannot be written, or what `find` raises.
    """
    cache = entry.parent
    with _told(cache):
        _make_private(cache)
        _check_owned(cache)
        with _locked(entry):
            found = find(entry)  # another process may have built it meanwhile
            if found is not None:
                return found
            for abandoned in cache.glob(f"{entry.name}.building-*"):  # its process was killed
                shutil.rmtree(abandoned)
            with tempfile.TemporaryDirectory(prefix=f"{entry.name}.building-", dir=cache) as place:
                work = Path(place) / "libraries"
                work.mkdir(PRIVATE)
                libraries = build(work)
                _seal(work, libraries)
                if os.path.lexists(entry):  # damaged
                    entry.rename(Path(place) / "damaged")
                work.rename(entry)
    return tuple(entry / path.name for path in libraries)


def _make_private(directory: Path) -> None:
    """Make a directory and its parents, as far as they do not exist, for this user alone."""
    for path in (*reversed(directory.parents), directory):
        if not path.exists():
            path.mkdir(PRIVATE, exist_ok=True)


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    from filelock import FileLock

    lock = FileLock(f"{entry}.lock")
    try:
        lock.acquire()
    except NotImplementedError:
        what = f"the file system of {str(entry.parent)!r} has no locks"
        raise ObstacleError(Problem(what, ELSEWHERE)) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told(cache: Path) -> Iterator[None]:
    """Turn an OSError into one line that ends with the remedy."""
    try:
        yield
    except OSError as error:
        path = str(error.filename or cache)
        what = (
            f"the cache of compiled libraries cannot be used, {path!r}: {error.strerror or error}"
        )
        full = f"free some space ({NEEDED} will do), or {ELSEWHERE}"
        raise ObstacleError(
            Problem(what, full if error.errno in NO_SPACE else ELSEWHERE)
        ) from error


# ---- whose it is ----------------------------------------------------------------------------------


def _check_owned(path: Path) -> None:
    """Raise `ObstacleError` if a user other than this one and root can change the path."""
    _check_owner(path, path.lstat())
    status = path.stat()
    _check_owner(path, status)
    if status.st_mode & OTHERS_MAY_WRITE:
        _refuse(path, "can be written to by other users")


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        _refuse(path, f"belongs to another user ({_user_name(status.st_uid)})")


def _refuse(path: Path, why: str) -> None:
    raise ObstacleError(
        Problem(
            f"{str(path)!r} {why}, who may have put libraries of their own there",
            "remove it (it is made anew), or set XDG_CACHE_HOME to a directory of your own",
        )
    )


def _user_name(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


# ---- whether it is whole --------------------------------------------------------------------------


def _seal(directory: Path, libraries: list[Path]) -> None:
    """Write the manifest of a directory."""
    files, links = {}, {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            links[name] = str(path.readlink())
            continue
        path.chmod(path.stat().st_mode & ~OTHERS_MAY_WRITE)
        if path.is_file():
            files[name] = _digest(path)
    manifest = {"libraries": [path.name for path in libraries], "files": files, "links": links}
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _whole(directory: Path) -> tuple[Path, ...] | None:
    """The libraries in loading order, if the directory still matches its manifest."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        _check_contents(directory, manifest)
        return tuple(directory / name for name in manifest["libraries"])
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):
        return None


def _check_contents(directory: Path, manifest: Any) -> None:
    """Raise an error of any kind if the contents do not match the manifest."""
    for name, digest in manifest["files"].items():
        path = directory / name
        _check_owned(path)
        if _digest(path) != digest:
            raise ValueError(f"{name} has changed")
    for name, target in manifest["links"].items():
        _check_owned((directory / name).parent)
        if str((directory / name).readlink()) != target:
            raise ValueError(f"{name} leads elsewhere")
    if not set(manifest["libraries"]) <= set(manifest["files"]):
        raise ValueError("a library is not among the files")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
