"""Operators that autograd runs in place on a GPU, and out of place under a dispatch mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llmmem.estimation.operators.common import Arguments, Entry, Keywords, is_dense, is_on_device

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES", "missing_nodes"]

aten = torch.ops.aten

# The formulas of some derivatives write in place on a GPU, but not under a dispatch mode
# (``torch/csrc/autograd/FunctionsManual.cpp``, ``areAnyTensorSubclassLike``): the nodes of autograd
# with such a formula, by the operators that it calls instead.
_SELECTING = {
    *("TopkBackward0", "SortBackward0", "SortBackward1", "MaxBackward0", "MinBackward0"),
    *("MedianBackward1", "NanmedianBackward1", "KthvalueBackward0", "ModeBackward0"),
    *("CummaxBackward0", "CumminBackward0"),
}
_LIMITING = {
    *("MaximumBackward0", "MinimumBackward0", "FmaxBackward0", "FminBackward0"),
    *("ClampBackward1", "ClampMinBackward1", "ClampMaxBackward1"),
}
_IN_PLACE_IN_BACKWARD = {
    aten.scatter_add.default: {"GatherBackward0"},
    aten.index_add.default: {"IndexSelectBackward0"},
    aten.index_fill.int_Tensor: {"TraceBackward0"},
    aten.scatter.src: _SELECTING,
    aten.masked_fill.Scalar: _LIMITING,
}


def missing_nodes() -> list[str]:
    """Nodes of autograd that stand here and that the installed PyTorch does not have."""
    nodes = set[str]().union(*_IN_PLACE_IN_BACKWARD.values())
    return sorted(node for node in nodes if not hasattr(torch._C._functions, node))


def _in_place_in_backward(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Return the first argument, as the in-place operator does, where a formula calls this one."""
    node = torch._C._current_autograd_node()
    # A checkpoint recomputes the program's own operators within a node, and records gradients.
    is_formula = node is not None and not torch.is_grad_enabled()
    if is_formula and node.name() in _IN_PLACE_IN_BACKWARD[func] and is_on_device(args[0]):
        return args[0]
    return tracer.run(func, args, kwargs)


def _add(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The engine adds in place to a gradient that nothing else holds, except under a dispatch mode.

    Source: ``torch/csrc/autograd/input_buffer.cpp``, ``can_accumulate_inplace``, for which any
    dispatch mode makes tensors look like subclasses.
    """
    if not kwargs and len(args) == 2 and tracer.in_backward and not torch.is_grad_enabled():
        old, new = args
        if (
            is_on_device(old)
            and is_on_device(new)
            and old.shape == new.shape
            and old.dtype == new.dtype
            and is_dense(old)
            and tracer.is_held_by_engine_alone(old)
        ):
            out = tracer.compute(func, args, kwargs)
            tracer.hand_over(old, out)
            return out
    return tracer.run(func, args, kwargs)


ENTRIES = (
    Entry("add.Tensor", _add),
    Entry(
        "scatter_add.default index_add.default index_fill.int_Tensor scatter.src "
        "masked_fill.Scalar",
        _in_place_in_backward,
    ),
)
