from __future__ import annotations

import pytest
import torch
from torch import nn

from llmmem.accounting.attribution import Label, Span
from llmmem.accounting.timeline import Timeline


class Clock:
    """A stand-in for the allocator's count of events that the test moves by hand."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def timeline():
    return Timeline(Clock(), lambda tensor: id(tensor) if tensor.is_floating_point() else None)


def test_calls_nest_and_carry_the_path_of_the_module(timeline):
    model = nn.Sequential(nn.Linear(2, 2))
    timeline.watch(model)
    with timeline.recording_calls():
        model(torch.zeros(1, 2))
    assert timeline.calls == [Span("0", 2, 3), Span("Sequential", 1, 4)]


def test_no_call_is_recorded_afterwards(timeline):
    model = nn.Linear(2, 2)
    with timeline.recording_calls():
        pass
    model(torch.zeros(1, 2))
    assert timeline.calls == []


def test_a_call_that_raises_is_over(timeline):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    broken = Broken()
    with timeline.recording_calls():
        with pytest.raises(ValueError, match="broken"):
            broken(torch.zeros(1))
        nn.ReLU()(torch.zeros(1))
    assert [span.name for span in timeline.calls] == ["Broken", "ReLU"]


def test_a_phase_that_raises_is_recorded(timeline):
    with pytest.raises(ValueError, match="broken"), timeline.phase("forward"):
        raise ValueError("broken")
    assert timeline.phases == [Span("forward", 1, 2)]


def test_tensors_that_are_not_on_the_device_take_no_label(timeline):
    here, elsewhere = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    timeline.label("weights", [here, elsewhere])
    assert timeline.labels == [Label(1, id(here), "weights")]
