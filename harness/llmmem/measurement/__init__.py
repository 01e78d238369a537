"""Measuring while a step runs: peaks and history of the allocator, the process's memory, source lines."""

from __future__ import annotations
