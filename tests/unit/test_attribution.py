from __future__ import annotations

from llmmem.accounting.attribution import Event, Label, Span, attribute
from llmmem.results import Components


def alloc(address: int, size: int) -> Event:
    return Event("alloc", address, size)


def free(address: int) -> Event:
    return Event("free", address, 0)


# A step in miniature: a weight, a forward that keeps one tensor and drops another, a workspace that
# stays, a backward that makes a gradient, an optimizer that makes its state.
EVENTS = [
    alloc(1, 1000),  # 0 load: the weight
    alloc(2, 16),  # 1 forward: the batch
    alloc(3, 300),  # 2 in the model: dropped before the call ends
    alloc(4, 50),  # 3 in the model: a workspace, never given back
    alloc(5, 200),  # 4 in the model: kept for backward
    free(3),  # 5
    alloc(6, 4),  # 6 forward, after the call: the loss
    alloc(3, 1000),  # 7 backward: the gradient, at an address used before
    free(5),  # 8
    free(6),  # 9
    free(2),  # 10
    alloc(7, 2000),  # 11 optimizer: its state
    free(3),  # 12
]
PHASES = [
    Span("load", 0, 1),
    Span("forward", 1, 7),
    Span("backward", 7, 11),
    Span("optimizer", 11, 13),
]
CALLS = [Span("model.layer", 2, 5), Span("model", 2, 6)]
LABELS = [Label(1, 1, "weights"), Label(11, 3, "gradients"), Label(13, 7, "optimizer")]


def attributed():
    return attribute(EVENTS, phases=PHASES, calls=CALLS, labels=LABELS)


def test_components_sum_to_the_peak():
    found = attributed()
    assert found.peak_bytes == 1000 + 50 + 1000 + 2000
    assert found.components.total == found.peak_bytes
    assert found.components == Components(1000, 1000, 2000, 0, 50)


def test_each_phase_has_its_own_peak_and_components():
    by_phase = {phase.phase: phase for phase in attributed().phases}
    assert by_phase["load"].components == Components(weights=1000)
    # At the forward peak the dropped tensor is a temporary, the kept one and the batch activations.
    assert by_phase["forward"].peak_bytes == 1000 + 16 + 300 + 50 + 200
    assert by_phase["forward"].components == Components(1000, 0, 0, 216, 350)
    assert by_phase["backward"].components == Components(1000, 1000, 0, 220, 50)


def test_a_label_belongs_to_the_block_that_lives_and_not_to_the_address():
    by_phase = {phase.phase: phase for phase in attributed().phases}
    assert by_phase["forward"].components.gradients == 0


def test_what_was_held_when_a_phase_began_is_part_of_its_peak():
    found = attribute(
        [alloc(1, 100), free(1), alloc(2, 10)],
        phases=[Span("load", 0, 1), Span("forward", 1, 3)],
        calls=[],
        labels=[],
    )
    assert [phase.peak_bytes for phase in found.phases] == [100, 100]


def test_recomputed_tensors_are_activations_when_they_outlive_the_recomputed_layer():
    found = attribute(
        [alloc(1, 10), alloc(2, 7), free(2), alloc(3, 5), free(1), free(3)],
        phases=[Span("backward", 0, 6)],
        calls=[Span("layers.0", 0, 3)],
        labels=[],
    )
    assert found.peak_bytes == 17
    assert found.components == Components(activations=10, temporaries=7)


def test_top_allocations_name_the_innermost_module_or_the_phase_largest_first():
    top = attributed().top_allocations
    assert [(holder.component, holder.module, holder.bytes) for holder in top] == [
        ("optimizer", "(optimizer)", 2000),
        ("gradients", "(backward)", 1000),
        ("weights", "(load)", 1000),
        ("temporaries", "model.layer", 50),
    ]


def test_nothing_happened():
    found = attribute([], phases=[], calls=[], labels=[])
    assert found.peak_bytes == 0
    assert found.components == Components()


def test_peaks_up_to_a_position_know_what_became_of_the_blocks():
    found = attribute(EVENTS, phases=PHASES, calls=CALLS, labels=LABELS, until=8)
    assert [phase.phase for phase in found.phases] == ["load", "forward", "backward"]
    assert found.components == Components(1000, 1000, 0, 220, 50)
    assert found.phases[-1].components == found.components


def test_all_that_is_there_before_anything_is_labelled_is_being_loaded():
    labels = [Label(13, 7, "optimizer")]
    found = attribute(EVENTS, phases=PHASES, calls=CALLS, labels=labels, until=1)
    assert found.components == Components(weights=1000)
