"""The options of a session, parsed: the command line, else the environment, else the ini file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from llmmem.devices import Device, parse_device
from llmmem.errors import InputError
from llmmem.report import check_report_path
from llmmem.simgpu.faults import Faults, faults_from_environment
from llmmem.simgpu.side_streams import SideStreams, side_streams_from_environment
from pytest_llmmem.marker import Limit, max_vram
from pytest_llmmem.options import DEFAULT_REPORT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Options"]

AUTO = Device("auto")
NO_FAULTS = Faults()

Value = TypeVar("Value")

MOST_DIGITS = 100  # far beyond any size, and what Python still reads

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class Options:
    """The options of a session, parsed.

    Attributes:
        reports: Files to write the report to.
        table: Whether to show the report at the end.
        device: Where to measure.
        require_gpu: Whether only figures measured on a real GPU count.
        max_vram: The limit for tests without a marker.
        faults: The faults to inject into simulated GPUs.
        side_streams: When work on side streams of simulated GPUs ends.
    """

    reports: tuple[Path, ...] = ()
    table: bool = False
    device: Device = AUTO
    require_gpu: bool = False
    max_vram: Limit | None = None
    faults: Faults = NO_FAULTS
    side_streams: SideStreams = "early"

    @classmethod
    def read(cls, namespace: argparse.Namespace, config: pytest.Config) -> Options:
        """Read all options.

        Args:
            namespace: The command line, as far as it is parsed.
            config: Where the ini file and the root directory are found.

        Raises:
            pytest.UsageError: A value is not valid, or two options contradict.
        """
        given = _Given(namespace, config)
        paths, origin = given.paths()
        reports = (given.parse(check_report_path, path or DEFAULT_REPORT, origin) for path in paths)
        options = cls(
            reports=tuple(dict.fromkeys(config.rootpath / path for path in reports)),
            table="" in paths,
            device=given.value("device", parse_device, cls.device),
            require_gpu=given.value("require_gpu", _parse_switch, cls.require_gpu),
            max_vram=given.value("max_vram", _parse_limit, cls.max_vram),
            faults=_from_environment(faults_from_environment),
            side_streams=_from_environment(side_streams_from_environment),
        )
        if options.require_gpu and options.device.kind in ("sim", "estimate"):
            raise pytest.UsageError(
                f"--llmmem-require-gpu and --llmmem-device={options.device} contradict: "
                "only a real GPU measures"
            )
        return options

    @property
    def promises_gpu(self) -> bool:
        """Whether a test that finds no GPU fails instead of being skipped."""
        return self.require_gpu or self.device.kind == "cuda"

    @property
    def measures_every_test(self) -> bool:
        """Whether tests without the marker or the fixture are measured too."""
        return bool(self.reports) or self.max_vram is not None

    def describe(self) -> str:
        """The options that differ from their defaults, on one line; empty if there are none."""
        parts = [f"report {path.name}" for path in self.reports]
        if self.max_vram is not None:
            parts.insert(0, f"limit {self.max_vram.size} on the peak of the process")
        if self.require_gpu:
            parts.insert(0, "a real GPU is required")
        if parts or self.device.kind != "auto":
            simulated = " (simulated: values are not computed)" if self.device.kind == "sim" else ""
            parts.insert(0, f"device {self.device}{simulated}")
        if self.faults != NO_FAULTS:
            parts.append(f"faults on demand: {self.faults}")
        if self.side_streams != "early":
            parts.append(f"side streams: {self.side_streams}")
        return ", ".join(parts)


class _Given:
    """The sources of options: the command line, the environment and the ini file, in this order."""

    def __init__(self, namespace: argparse.Namespace, config: pytest.Config) -> None:
        self._namespace = namespace
        self._config = config

    def value(self, name: str, parse: Callable[[Any], Value], default: Value) -> Value:
        """The parsed value of an option."""
        raw, origin = self._raw(name)
        return default if raw is None else self.parse(parse, raw, origin)

    def paths(self) -> tuple[Sequence[str], str]:
        """All paths of reports, and the name of the option, variable or ini key with them."""
        raw, origin = self._raw("report")
        if isinstance(raw, str):
            return raw.split(os.pathsep), origin
        return raw or (), origin

    def parse(self, parse: Callable[[Any], Value], raw: object, origin: str) -> Value:
        """Parse a value; an error names where the value comes from."""
        try:
            return parse(raw)
        except InputError as error:
            raise pytest.UsageError(f"{origin}: {error}") from error

    def _raw(self, name: str) -> tuple[Any, str]:
        option = f"--llmmem-{name.replace('_', '-')}"
        variable = f"LLMMEM_{name.upper()}"
        key = f"llmmem_{name}"
        layers = (
            (getattr(self._namespace, key, None), option),
            (os.environ.get(variable), variable),
            (self._config.getini(key), key),
        )
        return next((layer for layer in layers if layer[0] is not None), (None, option))


def _from_environment(read: Callable[[], Value]) -> Value:
    try:
        return read()
    except InputError as error:
        raise pytest.UsageError(str(error)) from error


def _parse_limit(text: str) -> Limit:
    # Only digits are bytes. On a command line and in a file, every value is text.
    is_bytes = text.isdecimal() and len(text) < MOST_DIGITS
    return max_vram(int(text) if is_bytes else text)


def _parse_switch(value: str | bool) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() not in (*_TRUE, *_FALSE):
        raise InputError(f"invalid value {value!r} (accepted: {', '.join((*_TRUE, *_FALSE[:-1]))})")
    return value.lower() in _TRUE
