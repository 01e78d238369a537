"""What is read while a step runs: the allocator's peaks and history, NVML, and who holds what."""

from __future__ import annotations
