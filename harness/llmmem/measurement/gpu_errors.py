"""Classifies the errors that PyTorch raises when the GPU fails, without importing torch."""

from __future__ import annotations

__all__ = ["describe", "is_cuda_error", "is_out_of_memory"]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the GPU ran out of memory.

    If NVML does not list processes (MIG, Jetson), older versions of PyTorch such as 2.8 cannot build the
    message of ``torch.OutOfMemoryError`` and raise an internal error instead (pytorch issue 112377).
    """
    return type(error).__name__ == "OutOfMemoryError" or _failed_to_say_so(error)


def is_cuda_error(error: BaseException | None) -> bool:
    """Whether the error is a CUDA error, after which the process cannot use the GPU any more.

    PyTorch before 2.8 has no class for these errors.
    """
    return type(error).__name__ == "AcceleratorError" or (
        type(error) is RuntimeError and str(error).startswith("CUDA error: ")
    )


def describe(error: BaseException) -> str:
    """The first line of the error; the rest of PyTorch's messages is advice."""
    line = str(error).partition("\n")[0]
    return (
        f"CUDA out of memory; PyTorch then met with: {line}" if _failed_to_say_so(error) else line
    )


def _failed_to_say_so(error: BaseException | None) -> bool:
    return type(error) is RuntimeError and all(
        part in str(error) for part in ("NVML_SUCCESS ==", "ASSERT FAILED", "CachingAllocator")
    )
