"""Side streams on the simulated GPU: both ends of when their work is done, and captures of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmmem import InputError, simgpu

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAMS = Path(__file__).parents[1] / "programs" / "simgpu_streams.py"

#: The peak reserved by each program (MiB), early and late, and whether a note of the early run says that
#: there is another end.
RESERVED = {
    "nobody_waits": (64, 512, True),
    "the_default_stream_waits": (64, 512, True),
    "the_host_waits_for_the_stream": (64, 64, False),
    "the_host_waits_for_the_device": (64, 64, False),
    "the_host_reads_what_depends_on_it": (66, 66, True),
    "the_host_reads_what_does_not": (66, 514, True),
    "the_host_waits_for_an_event": (64, 64, False),
    "expandable_segments": (80, 520, True),
    "a_full_card": (64, 192, True),
    "no_side_stream": (66, 66, False),
    "memory_of_its_own": (64, 64, False),
    "pinned_batches": (66, 66, False),
    "offload": (64, 256, True),
}

UNJOINED = "capturing stream has unjoined work"
INVALIDATED = "operation failed due to a previous error during capture"


def run(side_streams: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS)],
        env=os.environ | {"LLMMEM_SIDE_STREAMS": side_streams},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not [outcome["error"] for outcome in found.values() if "error" in outcome]
    return {name: outcome["value"] for name, outcome in found.items()}


@pytest.fixture(scope="module")
def early() -> dict[str, Any]:
    return run("early")


@pytest.fixture(scope="module")
def late() -> dict[str, Any]:
    return run("late")


@pytest.mark.parametrize("program", RESERVED)
def test_what_is_reserved_has_two_ends_and_a_note_says_so(
    early: dict[str, Any], late: dict[str, Any], program: str
) -> None:
    least, most, is_noted = RESERVED[program]
    assert early[program] == [least, is_noted]
    assert late[program] == [most, True]


def test_process_groups_of_nccl_come_to_their_end(
    early: dict[str, Any], late: dict[str, Any]
) -> None:
    assert early["collectives"] == late["collectives"] == 6


def test_a_program_that_asks_for_a_side_stream_is_told(
    early: dict[str, Any], late: dict[str, Any]
) -> None:
    assert early["a_program_that_asks"] == {
        "before": [True, True],
        "first": [True, True, True],
        "noted": True,
    }
    # The default stream has waited for nothing; and a loop of questions comes to its end.
    assert late["a_program_that_asks"]["first"] == [False, False, True]


def test_a_stream_that_waits_for_a_capture_takes_part_in_it(early: dict[str, Any]) -> None:
    seen = early["a_graph_of_two_streams"]
    assert seen["capturing"] == [False, True, False]
    assert seen["in the pool"] == [False, True, True, True, False]
    assert early["graphed_callables"] == [2, True]


def test_captures_fail_as_cuda_documents(early: dict[str, Any], late: dict[str, Any]) -> None:
    of_an_event = "operation not permitted on an event last recorded in a capturing stream"
    assert early["errors_of_captures"] == {
        "a fork without work": [],
        "a fork that is not joined": [UNJOINED],
        "work after the join": [UNJOINED],
        "joined through a third": [],
        "waits for what is not captured": [
            INVALIDATED,
            "dependency created on uncaptured work in another stream",
        ],
        "the default stream waits": [
            INVALIDATED,
            "operation would make the legacy stream depend on a capturing blocking stream",
        ],
        "waits for another capture": [
            INVALIDATED,
            INVALIDATED,
            "operation would result in a merge of separate capture sequences",
        ],
        "asks for an event": [INVALIDATED, of_an_event],
        "waits for the device": [INVALIDATED, "operation not permitted when stream is capturing"],
        "asks for it later": [of_an_event],
        "and for it recorded anew": [],
    }
    assert late["errors_of_captures"] == early["errors_of_captures"]


def test_another_end_is_refused_with_the_two_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMMEM_SIDE_STREAMS", "never")
    with pytest.raises(InputError, match=r"LLMMEM_SIDE_STREAMS 'never' \(accepted: early, late\)"):
        simgpu.activate("h100")


def test_the_setting_is_one_of_the_gpu_and_of_the_programs_it_is_given_to(
    run_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMMEM_SIDE_STREAMS", "late")
    program = """
import os
from llmmem import simgpu
gpu = simgpu.activate("h100")
del os.environ["LLMMEM_SIDE_STREAMS"]
print(gpu.side_streams, gpu.environment()["LLMMEM_SIDE_STREAMS"], simgpu.activate("h100").side_streams)
"""
    assert run_python(program).split() == ["late", "late", "early"]
