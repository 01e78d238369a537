from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = """
    def test_plain():
        pass
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "ini", "device"),
    [
        ([], {}, "", None),
        ([], {}, "llmmem_device = cuda:1", "cuda:1"),
        ([], {"LLMMEM_DEVICE": "cuda:2"}, "llmmem_device = cuda:1", "cuda:2"),
        (
            ["--llmmem-device=cuda:3"],
            {"LLMMEM_DEVICE": "cuda:2"},
            "llmmem_device = cuda:1",
            "cuda:3",
        ),
    ],
)
def test_an_option_beats_the_environment_and_that_the_ini_file(
    pytester: pytest.Pytester,
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    ini: str,
    device: str | None,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pytester.makeini(f"[pytest]\n{ini}\n")
    result = run_pytest(PLAIN, *arguments)
    result.assert_outcomes(passed=1)
    if device is None:
        result.stdout.no_fnmatch_line("llmmem:*")
    else:
        result.stdout.fnmatch_lines([f"llmmem: device {device}"])


def test_every_option_can_come_from_the_ini_file_or_the_environment(
    pytester: pytest.Pytester,
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    header = (
        "llmmem: device auto, a real GPU is required, limit 0.93 GiB on the peak of the process, "
        "report a.json, report b.md"
    )
    pytester.makeini(
        """
        [pytest]
        llmmem_report =
            a.json
            b.md
        llmmem_require_gpu = true
        llmmem_max_vram = 1GB
        """
    )
    run_pytest(PLAIN).stdout.fnmatch_lines([header])
    pytester.makeini("[pytest]\n")
    monkeypatch.setenv("LLMMEM_REPORT", "a.json:b.md")
    monkeypatch.setenv("LLMMEM_REQUIRE_GPU", "1")
    monkeypatch.setenv("LLMMEM_MAX_VRAM", str(10**9))
    run_pytest(PLAIN).stdout.fnmatch_lines([header])


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--llmmem-device=gpu"], {}, "--llmmem-device: invalid device 'gpu' (accepted: auto, *"),
        (
            ["--llmmem-device=sim:rtx4091"],
            {},
            "--llmmem-device: *mean 'rtx4090'*",
        ),
        (
            ["--llmmem-report=out.txt"],
            {},
            "--llmmem-report: *'out.txt' *.csv, .json*",
        ),
        (["--llmmem-max-vram=24gb"], {}, "--llmmem-max-vram: invalid size '24gb': *"),
        (["--llmmem-require-gpu", "--llmmem-device=sim"], {}, "*contradict*"),
        (["--llmmem-require-gpu", "--llmmem-device=estimate"], {}, "*contradict*"),
        ([], {"LLMMEM_REQUIRE_GPU": "maybe"}, "LLMMEM_REQUIRE_GPU: invalid value 'maybe' *"),
        ([], {"LLMMEM_DEVICE": "sim:"}, "LLMMEM_DEVICE: unknown GPU '' *"),
    ],
)
def test_a_value_that_is_not_accepted_is_a_usage_error_that_names_it(
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run_pytest(PLAIN, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message.replace('[', '[[]')}"])
    assert "Traceback" not in result.stderr.str()


def test_the_marker_and_the_options_are_documented_by_pytest_itself(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    run_pytest(PLAIN, "--markers", "--strict-markers").stdout.fnmatch_lines(
        ["@pytest.mark.max_vram(limit=None, [*], gpu=None, *): Fail the test if *"]
    )
    run_pytest(PLAIN, "--help").stdout.fnmatch_lines(
        ["*--llmmem-report=*", "*--llmmem-device=*", "*llmmem_max_vram*"]
    )


def test_a_simulated_gpu_that_comes_too_late_is_a_usage_error(
    pytester: pytest.Pytester,
    run_pytest: Callable[..., pytest.RunResult],
    simulated_gpu: None,
) -> None:
    pytester.makepyfile(early_bird="import torch")
    pytester.syspathinsert()
    result = run_pytest(PLAIN, "-p", "early_bird", "--llmmem-device=sim:rtx4090")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --llmmem-device=sim:rtx4090: torch was imported before *"])


def test_without_cuda_in_torch_the_simulated_gpu_is_a_usage_error_with_what_to_install(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    from llmmem import simgpu

    problems = simgpu.check()
    if not problems:
        pytest.skip("the simulated GPU works here")
    result = run_pytest(PLAIN, "--llmmem-device=sim:rtx4090")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --llmmem-device=sim:rtx4090: {problems[0]}"])
