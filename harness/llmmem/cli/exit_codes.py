"""Exit codes of the `llmmem` command."""

from __future__ import annotations

__all__ = ["BAD_INPUT", "DONE", "INTERRUPTED", "NOT_OK"]

DONE = 0
#: An outcome other than ok, or something that this machine cannot do.
NOT_OK = 1
BAD_INPUT = 2
INTERRUPTED = 130
