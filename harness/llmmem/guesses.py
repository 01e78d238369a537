"""Where a program used a value that is not known, for a size, a branch or the length of a loop.

The simulated GPU and a trace do not compute numbers. If a program reads an integer or a boolean that
depends on them, the figures are those of one of the paths that the program could take.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmmem.program_paths import is_standard_library, short_path
from llmmem.value_rules import choices_setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

__all__ = ["GUESS", "Guess", "Guesses", "guess", "where"]

#: The start of a note about guesses.
GUESS = "a guess:"
#: The most lines that a note names; it counts the others.
MOST_NAMED = 5

#: What a program calls to read a value, by operator.
READS = {"_local_scalar_dense": "item", "_to_copy": "to the host", "copy_": "to the host"}

#: Parts of file paths that never belong to the program.
INTERNAL = (
    "/site-packages/torch/",
    "/site-packages/_pytest/",
    "/pytest_llmmem/value_reads.py",  # the plugin's wrapper around reads of tensors
)

HOME = str(Path(__file__).parent)


@dataclass(frozen=True)
class Guess:
    """A line of the program that read an unknown value.

    Attributes:
        where: File, line and function, such as ``"train.py:12 in step"``.
        operator: What read the value, such as ``"nonzero"`` or ``"item"``.
    """

    where: str
    operator: str

    def __str__(self) -> str:
        return f"{self.where} ({self.operator})"


class Guesses:
    """The guesses so far, in the order of their first occurrence."""

    def __init__(self) -> None:
        self._clock = 0
        self._last_met: dict[Guess, int] = {}
        self._ignored = 0

    @property
    def clock(self) -> int:
        """The number of guesses so far, repetitions included."""
        return self._clock

    def add(self, guess: Guess) -> None:
        """Record a guess."""
        if self._ignored:
            return
        self._clock += 1
        self._last_met[guess] = self._clock

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """While inside, guesses are not recorded, because nothing depends on them."""
        self._ignored += 1
        try:
            yield
        finally:
            self._ignored -= 1

    def notes(self, since: int = 0) -> tuple[str, ...]:
        """The note to show with a figure: one sentence, or none.

        Args:
            since: The value of `clock` when measuring started; only guesses since then are named.
        """
        lines = [str(guess) for guess, met in self._last_met.items() if met > since]
        if not lines:
            return ()
        more = len(lines) - MOST_NAMED
        also = f" and {more} more" if more > 0 else ""
        how = "evenly spread" if choices_setting() == "even" else "the same in every row"
        return (
            f"{GUESS} sizes or branches follow from values that are not computed, read at "
            f"{', '.join(lines[:MOST_NAMED])}{also}, with choices by unknown scores {how}",
        )

    @contextmanager
    def annotating_errors(self) -> Iterator[None]:
        """Add a note to errors that are raised inside if they may follow from a guess."""
        clock = self.clock
        try:
            yield
        except Exception as error:
            self.annotate(error, clock)
            raise

    def annotate(self, error: BaseException, since: int = 0) -> None:
        """Add a note to an error of the program that names the guesses it may follow from."""
        for note in self.notes(since):
            error.add_note(f"llmmem: this may follow from {note}")


def guess(operator: str, frame: FrameType | None) -> Guess:
    """The guess for a value that was read from a frame.

    Its line is the innermost one that belongs to neither PyTorch, Python nor llmmem.
    """
    name = operator.partition("::")[2]
    name = READS.get(name, name)
    while frame is not None:
        if line := where(frame.f_code, frame.f_lineno):
            return Guess(line, name)
        frame = frame.f_back
    return Guess("the backward pass", name)


def where(code: CodeType, line: int) -> str | None:
    """A line of the program as text; ``None`` for a line of PyTorch, Python or llmmem."""
    if _is_internal(code.co_filename):
        return None
    return f"{short_path(code.co_filename)}:{line} in {code.co_name}"


def _is_internal(file: str) -> bool:
    if file.startswith((HOME, "<")) or any(part in file for part in INTERNAL):
        return True
    return is_standard_library(file)
