"""When work on side streams ends: the two extremes that can be simulated.

No kernel runs, so work takes no time. What PyTorch's allocator holds back until a side stream is done
(``Tensor.record_stream``) depends on it all the same: see ``csrc/streams/streams.h``.
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias, cast, get_args

from llmmem.errors import InputError

__all__ = [
    "EARLY_ANSWERS",
    "LATE",
    "SIDE_STREAMS_VARIABLE",
    "SideStreams",
    "side_streams_from_environment",
]

SIDE_STREAMS_VARIABLE = "LLMMEM_SIDE_STREAMS"

#: ``early``: work on a side stream is done at once. ``late``: it is not before something waits for it.
SideStreams: TypeAlias = Literal["early", "late"]

EARLY_ANSWERS = (
    "work on side streams counts as done at once, and PyTorch's allocator or the program asked whether "
    "it was (as for Tensor.record_stream): where it still runs, memory comes free later and peaks can "
    f"be higher; {SIDE_STREAMS_VARIABLE}=late simulates the other extreme"
)
LATE = (
    f"{SIDE_STREAMS_VARIABLE}=late: work on side streams is not done before something waits for it, so "
    "that what is held until then (as by Tensor.record_stream) is held as long as it can be"
)


def side_streams_from_environment() -> SideStreams:
    """What ``LLMMEM_SIDE_STREAMS`` asks for; ``early`` where it is not set.

    Raises:
        InputError: It is neither ``early`` nor ``late``.
    """
    value = os.environ.get(SIDE_STREAMS_VARIABLE) or "early"
    if value not in get_args(SideStreams):
        raise InputError(
            f"invalid {SIDE_STREAMS_VARIABLE} {value!r} (accepted: {', '.join(get_args(SideStreams))})"
        )
    return cast("SideStreams", value)
