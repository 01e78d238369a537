"""NVML on the simulated GPU, as the bindings and the programs that use them see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmmem.catalogue.gpus import find_gpu

SCENARIOS = Path(__file__).parents[1] / "programs" / "nvml_scenarios.py"
MIB = 2**20
GIB = 2**30
CONTEXT = find_gpu("h100").context_bytes

needs_nvitop = pytest.mark.skipif(find_spec("nvitop") is None, reason="nvitop is not installed")
needs_gpustat = pytest.mark.skipif(find_spec("gpustat") is None, reason="gpustat is not installed")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(SCENARIOS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def value(outcomes: dict[str, dict[str, Any]]) -> Any:
    def of(name: str) -> Any:
        assert "error" not in outcomes[name], outcomes[name]["error"]
        return outcomes[name]["value"]

    return of


@pytest.mark.parametrize("card", ["h100", "rtx4090"])
def test_every_question_is_answered_or_refused_as_not_supported(value: Any, card: str) -> None:
    seen = value(f"every question {card}")
    assert set(seen["errors"].values()) == {"NVMLError_NotSupported"}
    assert seen["unset"] == []
    answered = {
        "nvmlDeviceGetName",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetPciInfo",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetBAR1MemoryInfo",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetComputeMode",
        "nvmlDeviceGetPersistenceMode",
        "nvmlDeviceGetMaxMigDeviceCount",
    }
    assert answered <= set(seen["answered"])


@pytest.mark.parametrize(
    ("card", "brand", "architecture", "cores", "serial", "mig", "mig_device"),
    [
        ("h100", 14, 9, 132 * 128, None, None, "NVMLError_NotFound"),
        ("rtx4090", 5, 8, 16384, *["NVMLError_NotSupported"] * 3),
    ],
)
def test_a_card_is_known_by_what_it_is(
    value: Any,
    card: str,
    brand: int,
    architecture: int,
    cores: int,
    serial: str | None,
    mig: str | None,
    mig_device: str,
) -> None:
    seen = value(f"identity {card}")
    assert [seen["brand"], seen["architecture"], seen["cores"]] == [brand, architecture, cores]
    assert [seen["serial"], seen["mig"], seen["mig device"]] == [serial, mig, mig_device]
    assert seen["bus width"] == find_gpu(card).memory_bus_bits
    assert seen["vendor"] == [0x10DE, 0x10DE]
    assert seen["bus id"] == ["00000000:01:00.0"] * 2


def test_the_driver_and_the_host_are_described(value: Any) -> None:
    seen = value("identity h100")
    version, branch = seen["driver"]
    assert branch == f"r{version.split('.')[0]}"
    assert seen["cuda"] // 1000 in (12, 13)
    assert seen["processors"] == min(os.sysconf("SC_NPROCESSORS_CONF"), 256)
    assert Path(seen["program"]).samefile(sys.executable)
    assert seen["field"] == 3  # the call works, the field says that it is not supported


def test_devices_are_found_by_all_their_names_and_joined_through_the_host(value: Any) -> None:
    seen = value("two devices")
    assert seen["handles"] == [1, 1, 1, 1]
    assert seen["ancestors"] == [0, 30]
    assert [seen["nearest"], seen["all"]] == [[1], 2]
    assert seen["peers"] == [0, 0, 5]
    assert seen["beyond"] == [
        "NVMLError_InvalidArgument",
        "NVMLError_NotFound",
        "NVMLError_InvalidArgument",
    ]


def test_the_library_is_open_as_long_as_one_user_has_it(value: Any) -> None:
    closed = "NVMLError_Uninitialized"
    assert value("before and after use") == [None, closed, closed]


def test_a_monitor_that_is_forked_sees_the_processes_that_use_the_device(value: Any) -> None:
    seen = value("a family of processes")
    assert seen["nobody"] == [[], [], 0]
    assert seen["child"] == [["child"], [CONTEXT + 10 * MIB], CONTEXT + 10 * MIB]
    assert seen["parent"] == [["parent"], [CONTEXT + 100 * MIB], CONTEXT + 100 * MIB]
    names, held, used = seen["both"]
    assert names == ["parent", "child"]
    assert used == sum(held)
    assert seen["after"] == [["parent"], [CONTEXT], CONTEXT]


@needs_nvitop
def test_nvitop_shows_the_devices_and_this_process(value: Any) -> None:
    printed, pid = value("nvitop shows")
    used = f"{(CONTEXT + GIB) // MIB}MiB"
    assert f"| N/A   N/A   P0      N/A / N/A |   {used} / 79.65GiB |      0%" in printed
    assert any(
        row[1:4] == ["1", str(pid), "C"] and row[5] == used
        for row in (line.split() for line in printed.splitlines())
        if len(row) > 5
    )


@needs_nvitop
def test_nvitop_collects_the_bytes_of_the_account(value: Any) -> None:
    seen = value("nvitop collects")
    assert seen["used"] == [0, CONTEXT + GIB]
    assert seen["total"] == find_gpu("h100").nvml_total_bytes
    assert [held for _, held in seen["processes"]] == [CONTEXT + GIB]
    assert seen["snapshot"] == CONTEXT + GIB


@needs_gpustat
def test_gpustat_shows_the_devices_and_this_process(value: Any) -> None:
    seen = value("gpustat shows")
    used = (CONTEXT + GIB) // MIB
    assert seen["used"] == [0, used]
    assert [held for _, held in seen["processes"]] == [used]
    assert f"|  {used} / 81559 MB |" in seen["printed"]
