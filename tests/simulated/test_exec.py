"""`llmmem exec`: programs that know nothing of llmmem, on the simulated GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmmem import UnsupportedError, load_report, simgpu
from llmmem.catalogue.gpus import find_gpu

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCENARIOS = Path(__file__).parents[1] / "programs" / "program_scenarios.py"
MIB = 2**20
CONTEXT = find_gpu("rtx4090").context_bytes
SIMULATED = "NVIDIA GeForce RTX 4090 (simulated)"

pytestmark = pytest.mark.usefixtures("clean_environment")


def execute(
    *arguments: object, device: str = "sim:rtx4090", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmmem", "exec", "--device", device, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


# ---- the command ----------------------------------------------------------------------------------


def test_output_and_exit_code_are_the_programs_own() -> None:
    done = execute("--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    first, *rest = done.stderr.splitlines()
    assert first == "err"
    assert f"llmmem: simulated on sim:rtx4090 ({SIMULATED}): crashed: exited with code 7" in rest
    assert "no process of the program used the simulated GPU" in done.stderr


def test_json_is_all_there_is_on_standard_output() -> None:
    done = execute("--json", "sh", "-c", "echo out; kill -9 $$")
    result = json.loads(done.stdout)
    assert done.returncode == result["exit_code"] == 128 + signal.SIGKILL
    assert done.stderr == "out\n"
    assert (result["outcome"], result["message"]) == ("crashed", "killed by signal 9 (Killed)")
    assert (result["source"], result["device"], result["gpu"]) == (
        "simulated",
        "sim:rtx4090",
        SIMULATED,
    )
    assert result["command"] == ["sh", "-c", "echo out; kill -9 $$"]
    assert result["peak_process_bytes"] is None
    assert result["processes"] == []


def test_a_request_to_end_reaches_the_program() -> None:
    command = [sys.executable, "-m", "llmmem", "exec", "sh", "-c", "echo up; exec sleep 3600"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        _, printed = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "killed by signal 15 (Terminated)" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PROGRAM"),
        (["--", "no-such-program"], "cannot run 'no-such-program': No such file or directory"),
        (["--device", "cuda", "true"], "invalid device 'cuda:0' for a program (accepted: sim, "),
        (["--device", "sim:rtx490", "true"], "did you mean 'rtx4090'"),
        (["--device", "sim:h100x17", "true"], "accepted: 1 to 16"),
        (["-o", "report.xlsx", "true"], "unknown report format 'report.xlsx'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_run(arguments: list[str], said: str) -> None:
    done = execute(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@pytest.mark.parametrize("card", ["rtx4090", "name=l4;count=17"])
def test_a_card_that_a_program_changes_is_refused_in_one_line(card: str) -> None:
    done = execute("--", "env", f"LLMMEM_SIMULATED_GPU={card}", "echo", "not reached")
    assert (done.returncode, done.stdout) == (2, "")
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"llmmem: invalid LLMMEM_SIMULATED_GPU '{card}' (field ")


def test_a_cache_that_the_loader_cannot_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a b"))
    with pytest.raises(UnsupportedError, match="set XDG_CACHE_HOME to a directory without"):
        simgpu.program_environment("rtx4090")


# ---- what its processes took ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is reported of a program with children: by their names, and all of it."""
    report = tmp_path_factory.mktemp("family") / "report.csv"
    done = execute(
        "-o", report, "--json", "--", "python", SCENARIOS,
        device="sim:rtx4090x2", LLMMEM_BARE_GPU_NAME="1", CUDA_VISIBLE_DEVICES="1,0",
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert (done.returncode, result["outcome"]) == (0, "ok"), done.stderr
    told = json.loads(done.stderr)
    names = {pid: name for name, pid in told["pids"].items()}
    processes: dict[str, list[dict[str, Any]]] = {name: [] for name in told["pids"]}
    for process in result["processes"]:
        processes[names[process["pid"]]].append(process)
    return {"of": processes, "new program": told["new_program"], "all": result, "report": report}


def peaks(process: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(process[f"peak_{metric}_bytes"] for metric in ("allocated", "reserved", "process"))


@pytest.mark.parametrize(
    ("name", "held"),
    [("ends_by_itself", 100), ("resets_its_peaks", 200), ("becomes_another_program", 400)],
)
def test_the_peaks_of_a_child_are_exact(family: dict[str, Any], name: str, held: int) -> None:
    (process,) = family["of"][name]
    assert peaks(process) == (held * MIB, held * MIB, held * MIB + CONTEXT)


def test_of_a_child_that_was_killed_the_process_peak_is_known(family: dict[str, Any]) -> None:
    (process,) = family["of"]["is_killed"]
    assert peaks(process) == (None, None, 300 * MIB + CONTEXT)


def test_gpus_are_told_apart_and_a_process_that_uses_none_is_not_there(
    family: dict[str, Any],
) -> None:
    first, second = family["of"]["uses_two_gpus"]
    assert [first["index"], second["index"]] == [0, 1]
    # PyTorch's first is the second of the machine, as CUDA_VISIBLE_DEVICES has it.
    assert peaks(first)[0] == 600 * MIB
    assert peaks(second)[0] == 500 * MIB
    assert family["of"]["uses_none"] == []


def test_a_new_program_has_the_gpu_and_ends_cleanly_after_a_backward_pass(
    family: dict[str, Any],
) -> None:
    assert family["new program"] == [0, ""]
    (process,) = family["of"]["a_new_program"]
    assert process["command"][1:4] == ["-I", "-W", "error"]
    # Tensors, and the workspaces of cuBLAS on the two threads that compute.
    assert 3 * MIB < process["peak_allocated_bytes"] - 2 * 8_519_680 < 4 * MIB


def test_the_whole_is_the_highest_and_not_known_where_a_part_is_not(family: dict[str, Any]) -> None:
    assert peaks(family["all"]) == (None, None, 600 * MIB + CONTEXT)
    assert any("do not compete for memory" in note for note in family["all"]["notes"])


def test_the_report_has_a_row_for_the_program_and_one_for_each_process(
    family: dict[str, Any],
) -> None:
    rows = load_report(family["report"])
    total = rows.iloc[0]
    assert total["phase"] == "total"
    assert total["test"] == f"python {SCENARIOS}"
    assert (total["source"], total["outcome"], total["gpu"]) == ("simulated", "ok", SIMULATED)
    assert total["peak_process_bytes"] == 600 * MIB + CONTEXT
    assert len(rows) == 1 + len(family["all"]["processes"])
    assert rows["phase"].is_unique
    assert any(name.endswith("[GPU 1]") for name in rows["phase"])
    known = rows[rows["peak_reserved_bytes"].notna()]
    assert set(known["context_bytes"]) == {CONTEXT}
    assert set(known["context_source"]) == {"modelled"}


def test_a_program_that_runs_out_of_memory_is_reported_all_the_same(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    program = "import torch; torch.empty(30 << 30, dtype=torch.uint8, device='cuda')"
    done = execute("-o", report, "python", "-c", program)
    assert done.returncode == 1
    message = "CUDA out of memory. Tried to allocate 30.00 GiB. "
    assert f"torch.OutOfMemoryError: {message}" in done.stderr
    (row,) = json.loads(report.read_text())
    assert row["outcome"] == "oom"
    assert row["message"].startswith(message)
    assert row["peak_process_bytes"] == CONTEXT


NATIVE = """
#define _GNU_SOURCE
#include <dlfcn.h>
int main(void) {
    void *memory;
    int (*allocate)(void **, unsigned long) = dlsym(RTLD_DEFAULT, "cudaMalloc");
    return allocate ? allocate(&memory, 64ul << 20) : 99;
}
"""


def test_a_program_that_is_not_python_is_accounted_for_too(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    assert compiler is not None
    program = tmp_path / "program"
    subprocess.run(
        [compiler, "-x", "c", "-", "-o", program, "-ldl"], input=NATIVE, text=True, check=True
    )
    done = execute("--json", program)
    assert done.returncode == 0
    (process,) = json.loads(done.stdout)["processes"]
    assert process["command"] == [str(program)]
    assert peaks(process) == (None, None, 64 * MIB + CONTEXT)


# ---- training scripts --------------------------------------------------------------------------------


def check_training(script: Path, *arguments: object, device: str = "sim:rtx4090") -> int:
    """Runs a script and gives its peak, which it prints itself too."""
    done = execute("--json", "--", "python", script, *arguments, device=device)
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    said = re.search(r"^peak allocated: (\d+) bytes$", done.stderr, re.MULTILINE)
    assert said is not None, done.stderr
    (process,) = result["processes"]
    assert process["peak_allocated_bytes"] == result["peak_allocated_bytes"] == int(said[1])
    allocated, reserved, held = peaks(result)
    assert allocated < reserved < held
    assert held == reserved + find_gpu(device.removeprefix("sim:")).context_bytes
    return int(said[1])


IN_PROCESS = f"""
import runpy
from llmmem import simgpu

gpu = simgpu.activate("rtx4090")
runpy.run_path({str(EXAMPLES / "hf_trainer.py")!r}, run_name="__main__")
print("peak process:", gpu.peak_process_bytes(), gpu.process_bytes() > gpu.context_bytes)
"""


def test_a_trainer_script_takes_the_same_with_exec_and_with_the_gpu_activated_by_itself() -> None:
    peak = check_training(EXAMPLES / "hf_trainer.py")
    parameters = 124_668_672
    # float32 weights, gradients and two moments of Adam, and what a step needs besides.
    assert 4 * 4 * parameters < peak < 8 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", IN_PROCESS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert f"peak allocated: {peak} bytes" in done.stdout
    assert re.search(r"^peak process: \d+ True$", done.stdout, re.MULTILINE)


def test_a_published_measurement_on_a_real_card_is_met() -> None:
    script = ROOT / "benchmarks" / "published_full_fine_tuning.py"
    peak = check_training(script, 4, device="sim:a100-80gb")
    # The versions are others: torch 2.4.1 and transformers 4.48.1 there.
    assert abs(peak - 72_434_837_504) < MIB


@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")
def test_a_trl_script_runs() -> None:
    assert check_training(EXAMPLES / "trl_sft.py") > 200 * MIB
