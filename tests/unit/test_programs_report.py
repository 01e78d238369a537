"""The matrix of programs in benchmarks/programs: what it finds, and what its report keeps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

PROGRAMS = Path(__file__).parents[2] / "benchmarks" / "programs"


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("programs_matrix", PROGRAMS / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_has_programs_of_many_libraries_that_say_what_they_do(matrix):
    found = matrix.programs()
    assert len(found) >= 60
    assert len({program.folder for program in found}) >= 15
    assert len({program.name for program in found}) == len(found)
    assert all(program.about for program in found)


def test_a_report_is_read_as_it_was_written(matrix, tmp_path):
    rows = [
        matrix.Row(
            "trl/sft.packing",
            "1.16.0",
            matrix.Figures("ok", 100, 200, ("a note", "another"), "", 1.5),
            matrix.Figures("ok", 100, 202, ("an assumption",), "", 0.5),
        ),
        matrix.Row(
            "torch/memory.plain",
            "2.14.1",
            matrix.Figures("crashed", None, None, (), 'ValueError: "a", b', 2.0),
            matrix.NOT_ESTIMATED,
        ),
    ]
    path = tmp_path / "programs.csv"
    matrix.write(matrix.table(rows), path)
    assert list(matrix.read(path).values()) == rows
    assert [row.verdict for row in rows] == ["differs", "not estimated"]
    assert "1 of 2 programs of 2 libraries run" in matrix.summary(rows)


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (("ok", 100, 200), "equal"),
        (("ok", 100, 201), "differs"),
        (("ok", 99, 200), "differs"),
        (("unsupported", None, None), "refused"),
        (("crashed", None, None), "crashed"),
    ],
)
def test_an_estimate_is_judged_by_both_peaks(matrix, estimate, verdict):
    run = matrix.Figures("ok", 100, 200)
    assert matrix.Row("a/b.c", "1", run, matrix.Figures(*estimate)).verdict == verdict


def test_a_script_of_several_ranks_is_started_as_its_docstring_says(matrix, tmp_path):
    path = tmp_path / "zero.py"
    path.write_text(
        '"""ZeRO of a stage.\n\n'
        "    llmmem exec --device sim:h100x2 -- torchrun --nproc-per-node 2 zero.py 2\n"
        "    llmmem exec --device sim:h100x4 -- torchrun --nproc-per-node 4 zero.py 3 offload\n"
        '"""\n'
    )
    tree = matrix.ast.parse(path.read_text())
    found = matrix.launched("distributed/zero", path, tree)
    assert [program.name for program in found] == [
        "distributed/zero.2",
        "distributed/zero.3.offload",
    ]
    assert [program.device for program in found] == ["sim:h100x2", "sim:h100x4"]
    assert found[1].command[1:] == ("--nproc-per-node", "4", str(path), "3", "offload")
    assert not any(program.estimated for program in found)
