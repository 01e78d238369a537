"""The `llmmem` command, a module for each of its commands."""

from __future__ import annotations

from llmmem.cli.main import main

__all__ = ["main"]
