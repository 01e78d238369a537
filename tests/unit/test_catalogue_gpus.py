from __future__ import annotations

import pytest

from llmmem.catalogue.gpus import find_gpu, find_title, gpus
from llmmem.errors import InputError

GIB = 2**30


def test_the_catalogue_has_the_cards_that_are_promised() -> None:
    assert {gpu.name for gpu in gpus()} == {
        "t4",
        "v100-32gb",
        "a10g",
        "a100-40gb",
        "a100-80gb",
        "l4",
        "l40s",
        "h100",
        "h200",
        "b200",
        "rtx3090",
        "rtx4090",
        "rtx5090",
    }


@pytest.mark.parametrize(
    ("name", "capacity"),
    [
        ("t4", "14.56"),
        ("v100-32gb", "31.75"),
        ("a10g", "22.06"),
        ("rtx3090", "23.69"),
        ("a100-40gb", "39.39"),
        ("a100-80gb", "79.15"),
        ("l4", "22.05"),
        ("rtx4090", "23.64"),
        ("l40s", "44.40"),
        ("h100", "79.18"),
        ("h200", "139.80"),
        ("b200", "178.35"),
        ("rtx5090", "31.37"),
    ],
)
def test_capacities_are_those_of_pytorchs_messages(name: str, capacity: str) -> None:
    assert f"{find_gpu(name).total_bytes / GIB:.2f}" == capacity


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_a_card_is_plausible(gpu: object) -> None:
    from llmmem.catalogue.gpus import Gpu

    assert isinstance(gpu, Gpu)
    assert gpu.total_bytes < gpu.nvml_total_bytes < 1.04 * gpu.total_bytes * 1.02
    assert gpu.shared_memory_per_block_optin <= gpu.shared_memory_per_sm
    assert 100 << 20 < gpu.context_bytes < 700 << 20
    assert "modelled" in gpu.context_source


def test_names_are_found_in_any_case_and_the_nearest_is_named() -> None:
    assert find_gpu("RTX4090").compute_capability == (8, 9)
    with pytest.raises(InputError, match="unknown GPU 'rtx4080'; did you mean 'rtx4090'"):
        find_gpu("rtx4080")


def test_a_card_is_known_by_the_whole_title_that_its_driver_gives() -> None:
    for gpu in gpus():
        assert find_title(gpu.title) == gpu
        assert find_title(f"{gpu.title} (simulated)") == gpu
    assert find_title("NVIDIA H100 PCIe") is None
    assert find_title("NVIDIA L4000") is None
