from __future__ import annotations

import os
import shlex
import sys
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
        "llmmem: device auto, a real GPU is required, limit {} on the peak of the process, "
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
    run_pytest(PLAIN).stdout.fnmatch_lines([header.format("1GB (0.93 GiB)")])
    pytester.makeini("[pytest]\n")
    monkeypatch.setenv("LLMMEM_REPORT", "a.json:b.md")
    monkeypatch.setenv("LLMMEM_REQUIRE_GPU", "1")
    monkeypatch.setenv("LLMMEM_MAX_VRAM", str(10**9))
    run_pytest(PLAIN).stdout.fnmatch_lines([header.format("0.93 GiB")])


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--llmmem-device=gpu"], {}, "--llmmem-device: invalid device 'gpu' (accepted: auto, *"),
        (
            ["--llmmem-device=sim:rtx4090x17"],
            {},
            "--llmmem-device: *'sim:rtx4090x17' (accepted: 1 to 16)",
        ),
        (["--llmmem-device=\udcff"], {}, "--llmmem-device: invalid device '*udcff' (accepted: *"),
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
        (
            ["--llmmem-max-vram=9223372037GB"],
            {},
            "--llmmem-max-vram: *'9223372037GB'* below 2*63 *",
        ),
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


ON_THE_SIMULATED_GPU = """
    import torch

    def test_it():
        assert torch.cuda.get_device_name() == "NVIDIA GeForce RTX 4090 (simulated)"
"""


def import_torch_early(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, how: str
) -> list[str]:
    """Have torch imported before any plugin is asked; returns arguments for pytest."""
    path = os.pathsep.join(filter(None, (str(pytester.path), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    if how == "sitecustomize":
        pytester.makepyfile(sitecustomize="import torch")
        return []
    name = f"early_by_{how}"
    pytester.makepyfile(**{name: "import torch"})
    if how == "variable":
        monkeypatch.setenv("PYTEST_PLUGINS", name)
    elif how == "entry_point":
        information = pytester.mkdir("early-1.0.dist-info")
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: early\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[pytest11]\nearly = {name}\n")
    elif how == "option":
        return ["-p", name]
    return []


EARLY = ("sitecustomize", "variable", "entry_point", "option")


@pytest.mark.parametrize("how", EARLY)
def test_where_torch_is_imported_too_early_a_command_is_named(
    pytester: pytest.Pytester,
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    simulated_gpu: None,
    how: str,
) -> None:
    arguments = import_torch_early(pytester, monkeypatch, how)
    result = run_pytest(PLAIN, *arguments, "--llmmem-device=sim:rtx4090")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --llmmem-device=sim:rtx4090: torch was imported before *: "
            "`llmmem exec --device sim:rtx4090 -- python -m pytest * --llmmem-device=sim:rtx4090*`"
        ]
    )


def test_the_command_that_is_named_works_however_torch_is_imported(
    pytester: pytest.Pytester,
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    simulated_gpu: None,
) -> None:
    arguments = [arg for how in EARLY for arg in import_torch_early(pytester, monkeypatch, how)]
    refused = run_pytest(ON_THE_SIMULATED_GPU, *arguments, "--llmmem-device=sim:rtx4090")
    _, command, _ = refused.stderr.str().split("`")
    program, *rest = shlex.split(command)
    assert program == "llmmem"
    done = pytester.run(sys.executable, "-m", program, *rest)
    assert done.ret == 0
    done.assert_outcomes(passed=1)


def test_a_conftest_may_name_plugins_that_import_torch(
    pytester: pytest.Pytester, run_pytest: Callable[..., pytest.RunResult], simulated_gpu: None
) -> None:
    pytester.makepyfile(early_bird="import torch")
    pytester.makeconftest('pytest_plugins = ["early_bird"]')
    pytester.syspathinsert()
    result = run_pytest(ON_THE_SIMULATED_GPU, "--llmmem-device=sim:rtx4090")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "foo:1", "unknown allocator setting 'foo' *accepted: *"),
        ("PYTORCH_ALLOC_CONF", "foo", "invalid allocator setting 'foo' *expected key:value*"),
    ],
)
def test_settings_that_pytorch_does_not_accept_are_a_usage_error(
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    simulated_gpu: None,
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    result = run_pytest(ON_THE_SIMULATED_GPU, "--llmmem-device=sim:rtx4090")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            f"ERROR: --llmmem-device=sim:rtx4090: PyTorch does not accept {variable}='{value}': "
            f"{message}"
        ]
    )
    assert "Traceback" not in result.stderr.str()


def test_a_card_in_the_variable_for_programs_is_a_usage_error(
    run_pytest: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    simulated_gpu: None,
) -> None:
    monkeypatch.setenv("LLMMEM_SIMULATED_GPU", "rtx4090")
    result = run_pytest(PLAIN, "--llmmem-device=sim:l4")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --llmmem-device=sim:l4: invalid LLMMEM_SIMULATED_GPU 'rtx4090' *"]
    )


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


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_path_after_the_report_option_is_a_path_of_tests(
    pytester: pytest.Pytester, run_pytest: Callable[..., pytest.RunResult], workers: str
) -> None:
    pytester.makepyfile(
        **{
            "others/conftest": "def pytest_addoption(parser): parser.addoption('--of-others')",
            "others/test_other": "def test_other(request):"
            " assert request.config.getoption('--of-others') == 'x'",
        }
    )
    result = run_pytest(PLAIN, workers, "--llmmem-report", "others", "--of-others=x")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["llmmem: device auto, report llmmem.csv"])
    assert pytester.path.joinpath("reports/llmmem.csv").is_file()


def test_a_session_that_uses_nothing_of_it_imports_only_the_registration(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("def test_it(tmp_path): pass")
    program = (
        "import pytest, sys\n"
        "pytest.main(['-q', *sys.argv[1:]])\n"
        "ours = [name for name in sys.modules if name.startswith(('llmmem', 'pytest_llmmem'))]\n"
        "print('imported:', *sorted(ours))\n"
    )
    done = pytester.run(sys.executable, "-c", program, "--co")
    expected = (
        "imported: llmmem llmmem.devices llmmem.errors "
        "pytest_llmmem pytest_llmmem.options pytest_llmmem.plugin"
    )
    done.stdout.fnmatch_lines([expected])


def test_a_fixture_that_is_asked_for_as_the_test_runs_is_there(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "def test_it(request):\n    assert request.getfixturevalue('vram').device.kind\n"
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=1)


def test_a_run_that_measures_nothing_imports_only_the_registration(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        "import sys\n"
        "def test_it(tmp_path):\n"
        "    assert 'pytest_llmmem.plugin' in sys.modules\n"
        "    assert 'pytest_llmmem.hooks' not in sys.modules\n"
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=1)


def test_the_fixture_in_a_session_that_does_not_name_it_says_what_to_do(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def hidden(request): request.getfixturevalue('vram')\n"
        "def test_it(): pass\n"
    )
    done = pytester.runpytest_subprocess("-q")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["no test of this session names the fixture vram*argument*"])
