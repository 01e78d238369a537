"""README and docs: their examples run as they are written, and their commands are valid."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from llmmem import Setup, simgpu
from llmmem.cli.main import command
from llmmem.cli.setup_options import read_setup
from llmmem.devices import parse_device

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def blocks(language: str) -> list[str]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found += re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found


def commands() -> list[str]:
    """Every command line of the documents, those in the middle of a sentence included."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^ *\$ (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    return list(dict.fromkeys(found))


TESTS = [block for block in blocks("python") if "def test_" in block]
PROGRAMS = [block for block in blocks("python") if "def test_" not in block]


def test_tests_pass_as_they_are_written(
    pytester: pytest.Pytester,
    run_pytest: Callable[..., pytest.RunResult],
    simulated_gpu: None,
) -> None:
    assert len(TESTS) == 3
    for number, block in enumerate(TESTS[1:]):
        pytester.path.joinpath(f"test_{number}.py").write_text(block)

    result = run_pytest(TESTS[0], "--llmmem-device=sim:rtx4090", "-n0")

    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["llmmem: 3 gated = 0 measured + 3 simulated + *"])


@pytest.mark.parametrize("simulated", [False, True], ids=["estimates", "on a simulated GPU"])
def test_programs_run_as_they_are_written(
    tmp_path: Path, clean_environment: None, simulated: bool
) -> None:
    if simulated and (problems := simgpu.check()):
        pytest.skip(f"no simulated GPU here: {problems[0]}")
    # One after the other in one process, as in a notebook.
    program = "\n".join(text for text in PROGRAMS if ("simgpu" in text) == simulated)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if re.search(r"\d", line)]
    assert len(printed) == program.count("print(") > 0


def test_setup_files_are_setups() -> None:
    (setup,) = blocks("toml")
    assert Setup.from_mapping(tomllib.loads(setup)).method == "lora"


@pytest.mark.parametrize(
    "line", [line for line in commands() if re.search(r"\b(llmmem|pytest) ", line)]
)
def test_a_command_is_accepted(line: str) -> None:
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    program, *arguments = words
    if program == "pytest":
        for argument in arguments:
            if argument.startswith("--llmmem-device="):
                parse_device(argument.partition("=")[2])
        return
    assert program == "llmmem"
    name, *arguments = arguments
    chosen = command.commands[name]
    options = chosen.make_context(name, arguments, parent=click.Context(command)).params
    if name in ("run", "estimate"):
        keys = {key: options[key] for key in options if key in Setup.__dataclass_fields__}
        read_setup(options["source"], keys)
    if "device" in options:
        parse_device(options["device"])
