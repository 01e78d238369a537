from __future__ import annotations

import pytest

from llmmem.measurement.gpu_errors import describe, is_cuda_error, is_out_of_memory


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which cannot be had without torch."""


class AcceleratorError(RuntimeError):
    """The same."""


# As PyTorch 2.8.0 raised them on a simulated GPU whose NVML refused.
NO_PROCESSES = (
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1131, '
    "please report a bug to PyTorch. "
)
NO_DEVICE = (
    "NVML_SUCCESS == DriverAPI::get()->nvmlDeviceGetHandleByPciBusId_v2_( pci_id, &nvml_device) "
    'INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1116, please report a '
    "bug to PyTorch. "
)


@pytest.mark.parametrize(
    ("error", "out_of_memory", "of_cuda"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."), True, False),
        (RuntimeError(NO_PROCESSES), True, False),
        (RuntimeError(NO_DEVICE), True, False),
        (AcceleratorError("CUDA error: unknown error\nSearch for ..."), False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error: not really"), False, False),
        (None, False, False),
    ],
)
def test_errors_of_the_gpu_are_told_apart(
    error: BaseException | None, out_of_memory: bool, of_cuda: bool
) -> None:
    assert is_out_of_memory(error) is out_of_memory
    assert is_cuda_error(error) is of_cuda


def test_an_error_is_described_by_its_first_line() -> None:
    assert describe(AcceleratorError("CUDA error: unknown error\nadvice")) == (
        "CUDA error: unknown error"
    )
    assert describe(RuntimeError(NO_PROCESSES)).startswith("CUDA out of memory; PyTorch then met")
