"""llmmem: how much GPU memory an LLM fine-tuning step takes, estimated, simulated or measured."""

from __future__ import annotations
