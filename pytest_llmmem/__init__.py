"""The pytest plugin of llmmem; `pytest_llmmem.plugin` is its entry point."""

from __future__ import annotations
