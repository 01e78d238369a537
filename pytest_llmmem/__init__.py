"""The pytest plugin of llmmem; `pytest_llmmem.plugin` holds its hooks."""

from __future__ import annotations
