from __future__ import annotations

import pytest

from llmmem.errors import InputError
from llmmem.simgpu.faults import NVML_FAULTS, Faults, faults_from_environment

GIB = 2**30


def test_faults_are_read_from_text() -> None:
    text = " oom_at=100; outside = 20GiB;outside_step=2097152;allocation_seconds=0.5;nvml=gpu_lost;"
    assert Faults.parse(text) == Faults(
        oom_at=100,
        outside=20 * GIB,
        outside_step=2**21,
        allocation_seconds=0.5,
        nvml="gpu_lost",
    )
    assert Faults.parse("") == Faults()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(oom_at=3, oom_count=2, oom_above=GIB),
        Faults(outside=GIB, outside_step=1, launch_error_at=7, lost_at=9, crash_at=1),
        Faults(allocation_seconds=0.25),
        *(Faults(nvml=each) for each in NVML_FAULTS),
    ],
)
def test_the_text_of_faults_reads_as_the_same_faults(faults: Faults) -> None:
    assert Faults.parse(str(faults)) == faults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oom_at", r"invalid fault 'oom_at': expected one such as \"oom_at=100\""),
        ("oom=3", r"unknown fault 'oom'; did you mean .*accepted: oom_at, oom_count, "),
        ("oom_at=0", r"invalid oom_at 0: expected a whole number from 1"),
        ("oom_at=-1", "invalid oom_at -1"),
        ("oom_at=often", "invalid oom_at 'often'"),
        ("oom_at=1.5", r"invalid oom_at '1\.5'"),
        ("oom_at=1;oom_at=2", "fault 'oom_at' is there twice"),
        ("oom_count=2", "oom_count=2 needs oom_at"),
        ("outside=20 GiBs", "fault 'outside': invalid size '20 GiBs': expected a size such as"),
        ("outside=0", "fault 'outside': invalid size 0: it must be above zero"),
        ("nvml=broken", "unknown nvml 'broken'.*accepted: not_supported, no_permission"),
        ("allocation_seconds=nan", "invalid allocation_seconds nan: expected seconds, above 0"),
        ("allocation_seconds=0", "invalid allocation_seconds 0"),
        ("allocation_seconds=soon", "invalid allocation_seconds 'soon'"),
    ],
)
def test_what_is_not_a_fault_is_named_with_what_is(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Faults.parse(text)


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMMEM_SIMULATED_FAULTS", "crash=1")
    with pytest.raises(InputError, match="LLMMEM_SIMULATED_FAULTS: unknown fault 'crash'"):
        faults_from_environment()
    monkeypatch.delenv("LLMMEM_SIMULATED_FAULTS")
    assert faults_from_environment() == Faults()
