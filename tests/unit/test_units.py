from __future__ import annotations

import pytest

from llmmem.errors import InputError
from llmmem.units import format_change, format_size, format_written, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("22.5GiB", int(22.5 * 2**30)),
        ("512MiB", 512 * 2**20),
        ("1.5 kB", 1500),
        ("2KiB", 2048),
        ("1TiB", 2**40),
        ("7B", 7),
        (" 80 GB ", 80 * 10**9),
        (25769803776, 25769803776),
    ],
)
def test_gb_counts_in_thousands_and_gib_in_1024s(text, size):
    assert parse_size(text) == size


def test_a_decimal_fraction_is_exact():
    assert parse_size("0.3GB") == 300_000_000
    assert parse_size("1.1TB") == 1_100_000_000_000


@pytest.mark.parametrize(
    "value", ["", "24", "24 gb", "GB", "-1GB", "1,5GB", "1e3MB", "24GBs", "٢GB", 0, -5, "0B", True]
)
def test_what_is_no_size_is_refused_by_name_with_the_accepted_forms(value):
    with pytest.raises(InputError) as caught:
        parse_size(value)
    message = str(caught.value)
    assert repr(value) in message
    assert "24GB" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [None, 1.5, [1]])
def test_a_value_of_another_type_is_refused(value):
    with pytest.raises(InputError, match="invalid size"):
        parse_size(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (3 * 2**29, "1.50 GiB"),
        (2**20, "1.00 MiB"),
        (0, "0.00 MiB"),
        (-(2**30), "-1.00 GiB"),
        (None, "-"),
    ],
)
def test_sizes_are_shown_in_gib_and_small_ones_in_mib(size, text):
    assert format_size(size) == text


def test_a_change_is_shown_with_its_sign():
    assert format_change(2**30) == "+1.00 GiB"
    assert format_change(-(2**20)) == "-1.00 MiB"
    assert format_change(0) == "+0.00 MiB"


@pytest.mark.parametrize("value", [2**63, "9223372036854775808B", "9223372037GB", "8388608.1TiB"])
def test_a_size_beyond_64_bits_is_refused(value: str | int) -> None:
    with pytest.raises(InputError, match=r"it must be below 2\*\*63 B"):
        parse_size(value)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("12GB", "12GB (11.18 GiB)"),
        ("512MiB", "512MiB (0.50 GiB)"),
        ("22.5 GiB", "22.50 GiB"),
        ("64MiB", "64.00 MiB"),
        ("1.001GiB", "1.001GiB (1.00 GiB)"),
    ],
)
def test_a_size_is_shown_as_it_was_written_beside_gib(written: str, shown: str) -> None:
    assert format_written(parse_size(written), written) == shown
