"""The C sources of the simulated GPU have layers, as the Python modules do (`tool.importlinter`)."""

from __future__ import annotations

import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from llmmem.simgpu.compilers import SOURCES

#: Each folder includes from itself and from the rows below; folders of one row are independent.
LAYERS = (
    ("api", "observer"),
    ("kernels", "collectives", "streams"),
    ("account",),
    ("values",),
    ("base",),
)
RANKS = {folder: rank for rank, row in enumerate(LAYERS) for folder in row}
#: Written by the builder.
GENERATED = {"value_rules.h"}

FILES = sorted(
    path.relative_to(SOURCES)
    for path in SOURCES.rglob("*.[ch]*")
    if not path.is_relative_to(SOURCES / "api" / "include")  # stands in for a header of CUDA's
)


def includes(path: Path) -> list[Path]:
    text = (SOURCES / path).read_text(encoding="utf-8")
    named = re.findall(r'^#include "(.+)"', text, re.MULTILINE)
    return [Path(name) for name in named if name not in GENERATED]


def is_allowed(folder: str, included: str) -> bool:
    return folder == included or RANKS[included] > RANKS[folder]


def check_acyclic(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_source_lies_in_a_folder_of_a_layer() -> None:
    assert {path.parts[0] for path in FILES if len(path.parts) == 2} == set(RANKS)
    assert [str(path) for path in FILES if len(path.parts) != 2] == []


def test_folders_include_from_those_below_only() -> None:
    wrong = [
        f"{path} includes {included}"
        for path in FILES
        for included in includes(path)
        if not is_allowed(path.parts[0], included.parts[0])
    ]
    assert wrong == []


def test_no_file_includes_itself_by_way_of_others() -> None:
    """A header and the source of its name count as one."""
    graph: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        unit = str(path.with_suffix(""))
        graph[unit] |= {str(name.with_suffix("")) for name in includes(path)} - {unit}
    check_acyclic(graph)


def test_every_include_is_there_and_used_headers_are_not_forgotten() -> None:
    included = {name for path in FILES for name in includes(path)}
    assert included - set(FILES) == set()
    headers = {path for path in FILES if path.suffix in (".h", ".hpp")}
    assert headers - included == set()
