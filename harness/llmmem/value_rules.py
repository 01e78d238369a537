"""Rules for values of device tensors where no kernel runs: one table for the simulated GPU and the trace.

If the device inputs of a PyTorch operator are known, the operator's own CPU kernel computes its outputs.
This table has the operators for which that is not enough: those that only view memory, and those whose
outputs are partly known although their inputs are not.

- *Numbers are finite.* An unknown number is neither infinite nor NaN, and equals only itself.
- *Numbers read as zero*, so order comparisons and ``isclose`` use zero for an unknown number.
- *Choices are valid.* An operator that picks indices by unknown scores picks them evenly: pick ``j``
  of row ``i``, with ``k`` picks out of ``n`` per row, is ``(n // 2 + i * k + j) % n``.
- ``all`` of an unknown mask is true, and ``any`` of it is false.

A value that follows from one of these rules is a *guess*, and so is everything computed from it. Facts
that hold for every finite number (it is not NaN or infinite, a tensor equals itself) are not guesses.

`llmmem.simgpu.builder` writes the table into a C header.
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias, cast, get_args

from llmmem.errors import InputError

__all__ = [
    "CHOICES_VARIABLE",
    "MOST_FLOAT_BYTES",
    "MOST_INTEGER_BYTES",
    "RULES",
    "Choices",
    "Rule",
    "choices_setting",
]

#: The largest tensors whose values are followed, in bytes: integers and booleans, and floats.
MOST_INTEGER_BYTES = 32 << 20
MOST_FLOAT_BYTES = 8 << 10

#: How indices are picked by unknown scores: spread evenly, or the same for all rows.
Choices: TypeAlias = Literal["even", "same"]
CHOICES_VARIABLE = "LLMMEM_CHOICES"

Rule: TypeAlias = Literal[
    "ignore",  # gives memory without values, or a view of its input
    "constant",  # gives one value all along, whatever its input holds
    "read",  # gives the value to the host
    "copy",  # copies, between host and device too
    "move",  # moves elements, those that are known beside those that are not
    "equal",  # compares for equality, which unknown values never are, ...
    "unequal",  # ... or the other way round
    "order",  # compares by size, or how close two are
    "unscale",  # divides by a scale, and notes numbers that are known not to be finite
    "finite",  # is false of every number that is finite
    "shift",  # adds or subtracts: what is huge stays that
    "weigh",  # gives weights, zero for scores that are masked
    "any",
    "all",
    "pick",  # gives picks along a dimension as its last output, one for a row ...
    "picks",  # ... or several
    "draw",  # draws whole numbers from a range
    "permute",  # gives a permutation
    "random",  # gives numbers that are never known
    "places",  # gives as many rows as are true
    "unique",  # gives as many elements as differ
    "same",  # tells the host whether two tensors are equal
]

#: By operator name without namespace and overload; operators that are not listed need no rule.
RULES: dict[str, Rule] = {
    name: cast("Rule", rule)
    for rule, names in {
        "ignore": "empty empty_like empty_strided new_empty new_empty_strided empty_permuted resize_ "
        "set_ detach detach_ alias view _unsafe_view reshape _reshape_alias as_strided expand "
        "permute transpose t select slice split split_with_sizes chunk unbind squeeze unsqueeze "
        "narrow diagonal unfold movedim swapaxes view_as flatten unflatten record_stream "
        "requires_grad_ is_pinned pin_memory _pin_memory _has_compatible_shallow_copy_type "
        "contiguous lift lift_fresh resolve_conj resolve_neg squeeze_ unsqueeze_ transpose_ t_ "
        "as_strided_ numpy_T data _assert_async _assert_tensor_metadata",
        "constant": "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full "
        "zero_ fill_ zero fill",
        "read": "_local_scalar_dense",
        "copy": "copy_ _to_copy _copy_from",
        "move": "cat clone gather index index_select where masked_fill flip roll repeat "
        "constant_pad_nd tril triu",
        "equal": "eq isin",
        "unequal": "ne",
        "order": "lt le gt ge isclose",
        "finite": "isnan isinf isposinf isneginf",
        "unscale": "_amp_foreach_non_finite_check_and_unscale_",
        "shift": "add sub add_ sub_",
        "weigh": "_softmax",
        "any": "any",
        "all": "all",
        "pick": "argmax argmin max min median nanmedian mode kthvalue",
        "picks": "topk sort argsort multinomial",
        "draw": "randint randint_like random_ random",
        "permute": "randperm",
        "random": "rand randn rand_like randn_like normal normal_ uniform_ exponential_ bernoulli "
        "bernoulli_ cauchy_ geometric_ log_normal_ poisson dropout native_dropout _fused_dropout",
        "places": "nonzero",
        "same": "equal",
        "unique": "_unique _unique2 unique_dim unique_consecutive unique_dim_consecutive",
    }.items()
    for name in names.split()
}


def choices_setting() -> Choices:
    """How indices are picked by unknown scores, as ``LLMMEM_CHOICES`` says; default ``even``.

    Raises:
        InputError: The variable has another value.
    """
    text = os.environ.get(CHOICES_VARIABLE) or "even"
    if text not in get_args(Choices):
        accepted = ", ".join(get_args(Choices))
        raise InputError(f"invalid {CHOICES_VARIABLE} {text!r} (accepted: {accepted})")
    return cast("Choices", text)
