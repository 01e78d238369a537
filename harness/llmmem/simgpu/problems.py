"""What keeps the simulated GPU from running, with the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from llmmem.errors import UnsupportedError

__all__ = ["ObstacleError", "Problem"]


@dataclass(frozen=True)
class Problem:
    """One thing that keeps the simulated GPU from running here.

    Attributes:
        what: What is missing or in the way.
        remedy: What to do about it.
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


class ObstacleError(UnsupportedError):
    """The error for one problem; its message is one line that ends with the remedy.

    Attributes:
        problem: What is in the way.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem
