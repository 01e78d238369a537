from __future__ import annotations

from llmmem.results import Peaks


def test_the_highest_of_two_peaks_is_taken_metric_by_metric() -> None:
    assert Peaks(1, 20, 300).highest(Peaks(10, 2, 300)) == Peaks(10, 20, 300)


def test_a_peak_that_is_not_known_once_is_not_known() -> None:
    assert Peaks(1, 2, None).highest(Peaks(1, 2, 3)) == Peaks(1, 2, None)
    assert Peaks(1, 2, 3).highest(Peaks(1, 2, None)) == Peaks(1, 2, None)
