"""Where a program used a value that is not known, for a size, a branch or the length of a loop.

On the simulated GPU and in a trace numbers are not computed. Where a program reads a whole number or a
boolean that follows from them, the figures that it leads to are those of one way the program could go.
"""

from __future__ import annotations

import sysconfig
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.value_rules import choices_setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

__all__ = ["GUESS", "Guess", "Guesses", "guess", "where"]

#: What the sentence begins with.
GUESS = "a guess:"
#: The most lines that a note names; of the rest it gives the number.
MOST_NAMED = 5

#: Operators by what a program calls to read a value.
READS = {"_local_scalar_dense": "item", "_to_copy": "to the host", "copy_": "to the host"}

#: Parts of the paths of files that no program is written in.
INTERNAL = (
    "/site-packages/torch/",
    "/site-packages/_pytest/",
    "/pytest_llmmem/value_reads.py",  # the plugin's wrapper around reads of tensors
)

HOME = str(Path(__file__).parent)
STANDARD_LIBRARY = sysconfig.get_path("stdlib")


@dataclass(frozen=True)
class Guess:
    """One place in the program.

    Attributes:
        where: File, line and function, such as ``"train.py:12 in step"``.
        operator: What read the value, such as ``"nonzero"`` or ``"item"``.
    """

    where: str
    operator: str

    def __str__(self) -> str:
        return f"{self.where} ({self.operator})"


class Guesses:
    """The places so far, in the order in which they were first met."""

    def __init__(self) -> None:
        self._clock = 0
        self._last_met: dict[Guess, int] = {}
        self._ignored = 0

    @property
    def clock(self) -> int:
        """How often a place was met so far."""
        return self._clock

    def add(self, place: Guess) -> None:
        """Note that a place was met."""
        if self._ignored:
            return
        self._clock += 1
        self._last_met[place] = self._clock

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Places that are met inside decide nothing, and are not noted."""
        self._ignored += 1
        try:
            yield
        finally:
            self._ignored -= 1

    def notes(self, since: int = 0) -> tuple[str, ...]:
        """What to say of them beside a figure: one sentence, or none.

        Args:
            since: The `clock` when the figure began; places not met since then are left out.
        """
        places = [str(place) for place, met in self._last_met.items() if met > since]
        if not places:
            return ()
        more = len(places) - MOST_NAMED
        also = f" and {more} more" if more > 0 else ""
        how = "evenly spread" if choices_setting() == "even" else "the same in every row"
        return (
            f"{GUESS} sizes or branches follow from values that are not computed, read at "
            f"{', '.join(places[:MOST_NAMED])}{also}, with choices by unknown scores {how}",
        )

    @contextmanager
    def annotating_errors(self) -> Iterator[None]:
        """An error that is raised inside may follow from a guess: then it says so."""
        clock = self.clock
        try:
            yield
        except Exception as error:
            self.annotate(error, clock)
            raise

    def annotate(self, error: BaseException, since: int = 0) -> None:
        """Tell beside an error of the program which guesses it may follow from (`notes`)."""
        for note in self.notes(since):
            error.add_note(f"llmmem: this may follow from {note}")


def guess(operator: str, frame: FrameType | None) -> Guess:
    """The place of a value that was read, by the frame that it was read from.

    It is the innermost line that is neither of PyTorch, Python nor llmmem.
    """
    name = operator.partition("::")[2]
    name = READS.get(name, name)
    while frame is not None:
        if place := where(frame.f_code, frame.f_lineno):
            return Guess(place, name)
        frame = frame.f_back
    return Guess("the backward pass", name)


def where(code: CodeType, line: int) -> str | None:
    """A line of the program as text; ``None`` for one of PyTorch, Python or llmmem."""
    if _is_internal(code.co_filename):
        return None
    return f"{_short(code.co_filename)}:{line} in {code.co_name}"


def _is_internal(file: str) -> bool:
    if file.startswith((HOME, "<")) or any(part in file for part in INTERNAL):
        return True
    return file.startswith(STANDARD_LIBRARY) and "site-packages" not in file


def _short(file: str) -> str:
    """The file from the current directory, else with its folder."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(Path(*path.parts[-2:]))
