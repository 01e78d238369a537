"""What the simulated GPU recognises in the installed libraries; a new release of them shows here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from llmmem.simgpu.compilers import SOURCES
from llmmem.simgpu.coverage import (
    ARGUMENTS,
    ENTRY,
    HEADER,
    LIBRARIES,
    MAGIC,
    REPORT,
    Coverage,
    _arguments,
    _is_readable,
    measure_installed,
)

if TYPE_CHECKING:
    from pathlib import Path

#: What PyTorch and CUDA's own libraries import and the simulated GPU fails to do, by library. A name
#: that is not here is new: write it by hand, or add it if no training step calls it.
REFUSED = {
    "libcudart": "cudaGraphAddNode cudaGraphConditionalHandleCreate cudaIpcOpenEventHandle",
    "libcublasLt": "cublasLtACCMatmulAlgoGetHeuristic cublasLtBIIMatmulAlgoGetHeuristic "
    "cublasLtBSSMatmulAlgoGetHeuristic cublasLtCCCMatmulAlgoGetHeuristic "
    "cublasLtDDDMatmulAlgoGetHeuristic cublasLtGetEnvironmentMode cublasLtGetProperty "
    "cublasLtHHHMatmulAlgoGetHeuristic cublasLtHSHMatmulAlgoGetHeuristic "
    "cublasLtHSSMatmulAlgoGetHeuristic cublasLtHeuristicsCacheCreate "
    "cublasLtHeuristicsCacheGet cublasLtMatmulAlgoConfigGetAttribute "
    "cublasLtSSSMatmulAlgoGetHeuristic cublasLtTSSMatmulAlgoGetHeuristic "
    "cublasLtTSTMatmulAlgoGetHeuristic cublasLtZZZMatmulAlgoGetHeuristic",
    "libcublas": "cublasXtCreate",
    "libcudnn": "cudnnCreateRNNDataDescriptor cudnnGetCTCLossWorkspaceSize "
    "cudnnGetCTCLossWorkspaceSize_v8 cudnnGetFilterNdDescriptor cudnnGetRNNTempSpaceSizes "
    "cudnnGetRNNWeightParams cudnnGetRNNWeightSpaceSize cudnnGetTensorNdDescriptor",
    "libcufft": "cufftMakePlanMany64 cufftXtMakePlanGuru64",
    "libcusolver": "",
    "libcusparse": "cusparseGetMatDiagType cusparseGetMatFillMode cusparseGetMatIndexBase "
    "cusparseGetMatType",
}
#: Looked up by name at run time, most of them by nobody: these have at least so many by hand.
BY_HAND = {"libcuda": 100, "libnccl": 35, "libnvidia-ml": 75}


@pytest.fixture(scope="module")
def figures() -> tuple[Coverage, ...]:
    return measure_installed()


def test_everything_that_is_recognised_by_name_or_layout_is_found(
    figures: tuple[Coverage, ...],
) -> None:
    recognised = [figure for figure in figures if not figure.subject.startswith("functions of lib")]
    assert {figure.subject: figure.missing for figure in recognised if figure.missing} == {}
    expected = {figure.subject: figure.expected for figure in recognised}
    assert expected["operators that have a rule"] > 140
    assert expected["libraries whose fat binaries are readable"] >= 2
    assert expected["attributes of a compiled kernel"] == 4


def test_no_imported_function_fails_but_those_that_are_known(
    figures: tuple[Coverage, ...],
) -> None:
    functions = {
        figure.subject.split()[2]: figure
        for figure in figures
        if figure.subject.startswith("functions of lib")
    }
    assert set(functions) == {*REFUSED, *BY_HAND}
    new = {
        library: set(functions[library].missing) - set(known.split())
        for library, known in REFUSED.items()
    }
    assert {library: names for library, names in new.items() if names} == {}
    for library, least in BY_HAND.items():
        found = re.search(r"\((\d+) by hand", functions[library].subject)
        assert found is not None
        assert int(found[1]) >= least


def test_what_is_not_found_is_named() -> None:
    figure = Coverage.of("names", ["b", "a", "c"], ["c", "d"])
    assert figure == Coverage("names", 1, 3, ("a", "b"))


def test_the_arguments_of_an_operator_are_read_from_its_schema() -> None:
    text = (
        b"\0topk(Tensor self, SymInt k, int dim=-1, bool largest=True) -> (Tensor, Tensor)\0"
        b"random_.from(Tensor(a!) self, int from, int? to, *, Generator? generator=None) -> Tensor"
        b"\0random_.to(Tensor(a!) self, int to) -> Tensor(a!)\0"
    )
    assert _arguments(text) == {
        "topk": {"self", "k", "dim", "largest"},
        "random_": {"self", "from", "to", "generator"},
    }


def a_fat_binary(magic: int = MAGIC, kind: int = 2, architecture: int = 90, cut: int = 0) -> bytes:
    entry = ENTRY.pack(kind, ENTRY.size, 16, architecture) + bytes(16)
    return HEADER.pack(magic, 1, HEADER.size, 2 * len(entry) - cut) + 2 * entry


@pytest.mark.parametrize(
    ("changed", "is_readable"),
    [
        ({}, True),
        ({"kind": 1}, True),
        ({"magic": MAGIC + 1}, False),
        ({"kind": 64}, False),
        ({"architecture": 3000}, False),
        ({"cut": 8}, False),
    ],
)
def test_a_fat_binary_of_another_layout_is_not_readable(
    tmp_path: Path, changed: dict[str, int], is_readable: bool
) -> None:
    path = tmp_path / "section"
    data = a_fat_binary() + bytes(8) + a_fat_binary(**changed)
    path.write_bytes(data)
    with path.open("rb") as file:
        assert _is_readable(file, 0, len(data)) == is_readable


def test_the_names_that_are_looked_for_are_those_of_the_sources() -> None:
    sources = "".join(path.read_text() for path in SOURCES.rglob("*.[ch]*") if path.is_file())
    arguments = {name for names in ARGUMENTS.values() for name in names}
    for name in (*arguments, REPORT, f"{MAGIC:X}", *set(LIBRARIES) - {"libtorch_cpu.so"}):
        assert name in sources
    looked_up = re.findall(r'argument_of\(op, "(\w+)"\)|bound\("(\w+)"\)', sources)
    assert {a or b for a, b in looked_up} <= arguments
