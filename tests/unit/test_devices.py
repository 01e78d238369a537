from __future__ import annotations

import pytest

from llmmem.devices import Device, parse_device
from llmmem.errors import InputError


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", Device("auto")),
        ("estimate", Device("estimate")),
        ("cuda", Device("cuda", index=0)),
        ("cuda:3", Device("cuda", index=3)),
        ("sim", Device("sim", gpu="h100")),
        ("sim:h100", Device("sim", gpu="h100")),
        ("sim:h100x8", Device("sim", gpu="h100", count=8)),
        ("sim:rtx4090", Device("sim", gpu="rtx4090")),
        ("sim:rtx4090x2", Device("sim", gpu="rtx4090", count=2)),
    ],
)
def test_each_accepted_form_is_read(text, device):
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["auto", "cuda:0", "cuda:3", "sim:h100", "sim:h100x8", "estimate"])
def test_a_device_is_written_as_it_is_read(text):
    assert str(parse_device(text)) == text


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "simulated"])
def test_another_form_is_refused_with_the_accepted_ones(text):
    with pytest.raises(InputError, match="sim:GPU") as caught:
        parse_device(text)
    assert repr(text) in str(caught.value)


def test_an_unknown_card_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'rtx4080'.*'rtx4090'"):
        parse_device("sim:rtx4080")


@pytest.mark.parametrize("count", ["0", "17", "9" * 5000])
def test_a_count_of_cards_that_cannot_be_is_refused(count):
    with pytest.raises(InputError, match="accepted: 1 to 16") as caught:
        parse_device(f"sim:rtx4090x{count}")
    assert f"sim:rtx4090x{count}" in str(caught.value)
