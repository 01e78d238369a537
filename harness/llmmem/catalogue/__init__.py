"""What llmmem knows without asking anyone: model configs and GPUs, shipped as package data."""

from __future__ import annotations
