"""Values of device tensors, kept on the host: the meta device has none.

Token ids, masks, labels and indices determine a program's branches and the shapes of its tensors. If
the values came from the host or consist of constants, the CPU kernel of each operator computes the
values of its outputs. `llmmem.value_rules` says what follows from values that are not known; the
simulated GPU follows the same rules (``simgpu/csrc/observer``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmmem.estimation.tracing.tensors import tensors_in
from llmmem.value_rules import MOST_FLOAT_BYTES, MOST_INTEGER_BYTES, RULES, choices_setting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmmem.value_rules import Rule

__all__ = ["GUESSED", "KNOWN", "UNKNOWN", "HostValues", "Values", "is_same"]

# Marks of elements: not known, known, or a guess that follows from unknown values.
UNKNOWN, KNOWN, GUESSED = 0, 1, 2

#: Programs mask with numbers of this size, beside which a value that is not known is small.
HUGE = 1e8
#: Arguments that select elements, and are not elements themselves.
SELECTING_ARGUMENTS = ("index", "indices", "mask", "condition")
#: Operators that overwrite their first argument without reading it.
OVERWRITING = ("copy_", "fill_", "zero_", "random_")

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Values:
    """The values of a tensor on the host, with zero for those that are not known.

    Attributes:
        values: A tensor with the strides of the device tensor, or a single value expanded. Must not
            be modified.
        mark: `KNOWN` or `GUESSED`; `UNKNOWN` if some element is not known.
        marks: The mark of each element, unless all are the same.
    """

    values: Tensor
    mark: int
    marks: Tensor | None = None


#: Outputs of constants with at least so many elements are cached, and the size of that cache.
LARGE = 1 << 16
MOST_CACHED = 8


class _UnknownError(Exception):
    """The values of an argument are not known."""


class HostValues:
    """The values of device tensors, kept for each storage as a whole."""

    def __init__(self) -> None:
        self._flat: dict[int, Values] = {}  # by storage, in one dimension
        self._operators: dict[int, _Operator] = {}  # by id, which is faster than a hash
        self._of_constants: dict[Any, Any] = {}  # outputs of large constants, never modified
        self._are_picks_even = choices_setting() == "even"

    def of(self, tensor: Tensor) -> Tensor | None:
        """The tensor's values, which must not be modified; ``None`` unless all are known or guessed."""
        found = self.look_up(tensor)
        return None if found is None or found.mark == UNKNOWN else found.values

    def look_up(self, tensor: Tensor) -> Values | None:
        """The values and marks of a device tensor; ``None`` if nothing is known of it."""
        if not self._flat or tensor.layout is not torch.strided:
            return None
        flat = self._flat.get(tensor.untyped_storage()._cdata)
        if flat is None or flat.values.dtype is not tensor.dtype:
            return None
        if flat.values.dim() == 0:
            return Values(flat.values.expand(tensor.shape), flat.mark)
        view = tensor.shape, tensor.stride(), tensor.storage_offset()
        values = flat.values.as_strided(*view)
        if flat.marks is None:
            return Values(values, flat.mark)
        marks = flat.marks.as_strided(*view)
        return _with_marks(values, marks)

    def learn(self, tensor: Tensor, values: Tensor, mark: int = KNOWN) -> None:
        """Set the values of the tensor. The caller must not modify them afterwards."""
        self.write(tensor, Values(values, mark))

    def write(self, tensor: Tensor, new: Values) -> None:
        """Set the values and marks of the tensor."""
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        count = storage.nbytes() // tensor.element_size()
        if not count or not _has_values(tensor.dtype):
            return
        if tensor.numel() and not new.values.numel():  # the CPU kernel returned nothing
            self.forget(storage._cdata)
            return
        # Elements that share memory are written once.
        is_repeated = [
            size > 1 and not stride
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        fills = tensor.numel() == count and not any(is_repeated)
        is_uniform = fills and new.marks is None
        if is_uniform and _is_constant(new.values):
            one = new.values if new.values.dim() == 0 else new.values.flatten()[0]
            self._flat[storage._cdata] = Values(one.to(tensor.dtype, copy=True), new.mark)
            return
        if count * tensor.element_size() > _most_bytes(tensor.dtype):
            self.forget(storage._cdata)
            return
        view = tensor.shape, tensor.stride(), tensor.storage_offset()
        if is_uniform:
            values = new.values.to(tensor.dtype).expand(tensor.shape)
            if values.stride() != tensor.stride():
                values = torch.empty(count, dtype=tensor.dtype).as_strided(*view).copy_(values)
            self._flat[storage._cdata] = Values(values.as_strided((count,), (1,)), new.mark)
            return
        flat = None if fills else self._flat.get(storage._cdata)
        values, marks = _spread_out(flat, count, tensor.dtype)
        once = tuple(slice(0, 1) if repeated else slice(None) for repeated in is_repeated)
        values.as_strided(*view)[once].copy_(new.values.expand(tensor.shape)[once])
        marks.as_strided(*view)[once].copy_(_marks(new).expand(tensor.shape)[once])
        self._flat[storage._cdata] = Values(values, UNKNOWN, marks)

    def forget(self, key: int) -> None:
        """Forget the values of a storage, whose key is its ``_cdata``."""
        self._flat.pop(key, None)

    # Following operators.

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Compute on the host what the operator has done on the meta device."""
        operator = self._operators.get(id(func)) or self._describe(func)
        if operator.is_ignored:
            return
        if type(out) is Tensor and not operator.is_mutable and not _is_small(out):
            if not operator.may_be_constant:
                return
            if out.is_floating_point() and not self._may_be_known(operator, args):
                return
        if operator.rule == "unscale":
            overflow = self._not_finite(args[0])
            self._write_arguments(operator, args[:1], {}, None)
            if overflow is not None:
                self.write(args[1], overflow)
            return
        found = self._answers(operator, args, kwargs, out)
        outs = (out,) if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else ()
        if operator.is_mutable:
            self._write_arguments(operator, args, kwargs, found)
            return
        for item, values in zip(outs, found or (), strict=False):
            if isinstance(item, Tensor) and item.is_meta and values is not None:
                self.write(item, values)

    def found(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values | None:
        """The first output of an operator with a data-dependent shape; ``None`` if it is not known."""
        try:
            called = self._call(_operator(func), args, kwargs, zeros=False)
        except _UnknownError:
            return None
        return called[0] if called else None

    def _describe(self, func: Any) -> _Operator:
        operator = self._operators[id(func)] = _operator(func)  # keeps the id valid
        return operator

    def _may_be_known(self, operator: _Operator, args: tuple[Any, ...]) -> bool:
        """Whether the output, large and of floats, can be known: if inputs are constants or shifted."""
        if operator.rule == "shift":
            return not (isinstance(args[1], Tensor) and args[1].dim())
        for value in args:
            if isinstance(value, Tensor) and value.is_meta and value.dim():
                if value.layout is not torch.strided:
                    return False
                found = self._flat.get(value.untyped_storage()._cdata)
                if found is None or found.values.dim():
                    return False
        return True

    def _answers(
        self, operator: _Operator, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Sequence[Values | None] | None:
        """The values of the outputs, or of the arguments that the operator writes to."""
        rule = operator.rule
        if rule in ("random", "same"):
            return None
        if rule == "constant":
            return self._filled(operator, args, kwargs)
        if rule in ("draw", "permute"):
            return self._drawn(operator, args, kwargs, out)
        knowledge = self._survey(operator, args, kwargs)
        if knowledge.none_on_device and not operator.makes_on_device(kwargs):
            return None
        try:
            if not knowledge.is_some_unknown:
                return self._call(operator, args, kwargs, zeros=False)
        except _UnknownError:
            pass
        follow_unknown = _OF_UNKNOWN.get(rule)
        if follow_unknown is None:
            return None
        try:
            found: Sequence[Values | None] | None = follow_unknown(
                self, operator, args, kwargs, out, knowledge
            )
        except (_UnknownError, RuntimeError, NotImplementedError):
            return None
        return found

    def _survey(
        self, operator: _Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Knowledge:
        some_unknown = some_known = False
        none_on_device = True
        values = [*args, *(value for name, value in kwargs.items() if name not in operator.outs)]
        if operator.overwrites:
            none_on_device = not values.pop(0).is_meta
        for tensor in tensors_in(values):
            if not tensor.is_meta:
                continue
            none_on_device = False
            if tensor.layout is not torch.strided:
                some_unknown = True
                continue
            found = self._flat.get(tensor.untyped_storage()._cdata)
            if found is None or found.values.dtype is not tensor.dtype:
                some_unknown = some_unknown or bool(tensor.numel())
            else:
                some_known = True
        return _Knowledge(none_on_device, some_unknown, some_known)

    def _call(
        self, operator: _Operator, args: tuple[Any, ...], kwargs: dict[str, Any], *, zeros: bool
    ) -> list[Any] | None:
        """The outputs, or the arguments that are written to, computed by the CPU kernel.

        Raises:
            _UnknownError: A value is not known, and `zeros` does not allow zero in its place.
        """
        on_host = _HostArguments(self, zeros)
        given = [on_host.argument(operator, i, value) for i, value in enumerate(args)]
        named = {name: on_host.keyword(operator, name, value) for name, value in kwargs.items()}
        if on_host.is_large:
            if not (on_host.is_constant and operator.may_be_constant) or operator.is_mutable:
                return None
            given = [_one_of(value) for value in given]
        try:
            out = self._computed(operator, given, named)
        except (RuntimeError, NotImplementedError, IndexError):
            return None
        if operator.is_mutable:
            values = (*given, *(named.get(name) for name in operator.names[len(given) :]))
            return [
                on_host.outcome(value) if written else None
                for value, written in zip(values, operator.written, strict=True)
            ]
        outs = out if isinstance(out, tuple | list) else (out,)
        return [Values(item, on_host.mark) if isinstance(item, Tensor) else None for item in outs]

    def _computed(self, operator: _Operator, given: Sequence[Any], named: dict[str, Any]) -> Any:
        """The operator's output on the host, cached for large constants such as each layer's mask."""
        key = None if named or operator.is_mutable else _key_of_constants(operator, given)
        if key is None:
            return operator.func(*given, **named)
        if key not in self._of_constants:
            if len(self._of_constants) >= MOST_CACHED:
                self._of_constants.clear()
            self._of_constants[key] = operator.func(*given)
        return self._of_constants[key]

    def _not_finite(self, tensors: Sequence[Tensor]) -> Values | None:
        """One if a number is known not to be finite; numbers that are not known count as finite."""
        for tensor in tensors:
            seen = self.look_up(tensor)
            if seen is None or not tensor.numel():
                continue
            values = seen.values.as_strided((), ()) if _is_constant(seen.values) else seen.values
            if not bool(values.isfinite().all()):
                return Values(torch.ones(()), GUESSED if seen.mark == GUESSED else KNOWN)
        return None

    def _write_arguments(
        self,
        operator: _Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        found: Sequence[Any] | None,
    ) -> None:
        for i, name in enumerate(operator.names):
            target = args[i] if i < len(args) else kwargs.get(name)
            if not operator.written[i] or target is None:
                continue
            values = found[i] if found and i < len(found) else None
            listed = target if isinstance(target, list | tuple) else (target,)
            known = values if isinstance(values, list) else len(listed) * [values]
            for tensor, given in zip(listed, known, strict=True):
                if not isinstance(tensor, Tensor) or not tensor.is_meta:
                    continue
                if given is not None:
                    self.write(tensor, given)
                elif self._flat:
                    self._forget_part(tensor)

    def _forget_part(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:
            return
        key = tensor.untyped_storage()._cdata
        flat = self._flat.get(key)
        if flat is None:
            return
        is_part = tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()
        if is_part and flat.values.dtype is tensor.dtype and flat.values.dim():
            self.write(tensor, Values(torch.zeros((), dtype=tensor.dtype), UNKNOWN))
        else:
            self.forget(key)

    def _filled(
        self, operator: _Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Values | None] | None:
        """A single value, which is an argument or follows from the operator's name."""
        bound = dict(zip(operator.names, args, strict=False)) | kwargs
        value = bound.get("fill_value", bound.get("value", int("ones" in operator.name)))
        if isinstance(value, Tensor):
            found = self.of(value) if value.is_meta else value
            if found is None:
                return None
            value = found.item()
        return None if isinstance(value, complex) else [Values(torch.tensor(value), KNOWN)]

    # Rules for values that are not known.

    def _drawn(
        self, operator: _Operator, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> list[Values | None] | None:
        if not isinstance(out, Tensor) or not out.is_meta:
            return None
        bound = dict(zip(operator.names, args, strict=False)) | kwargs
        low = bound.get("low", bound.get("from")) or 0
        high = bound.get("high", bound.get("to"))
        if operator.rule == "permute":
            high = bound["n"]
        n = max(1, (high or 0) - low)
        values = low + (n // 2 + torch.arange(out.numel())) % n
        return [Values(values.view(out.shape).to(out.dtype), GUESSED)]

    def _compare(
        self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge
    ) -> Any:
        """A value that is not known equals only itself."""
        differs = operator.rule == "unequal"
        left, right = args[:2]
        if isinstance(left, Tensor) and isinstance(right, Tensor) and is_same(left, right):
            return [_constant(not differs)]
        numbers = (self._number(value) for value in (left, right))
        if not seen.some_known and any(n is not None and not math.isfinite(n) for n in numbers):
            return [_constant(differs)]
        if not seen.some_known or operator.name == "isin" or not isinstance(left, Tensor):
            return [_constant(differs, GUESSED)]
        parts = [self._part(value) for value in args]
        unknown = _marks(parts[0]).eq(UNKNOWN)
        if isinstance(parts[1], Values):
            unknown = unknown | _marks(parts[1]).eq(UNKNOWN)
        values = operator.func(*map(_values, parts), *args[len(parts) :])
        return [Values(values.masked_fill(unknown, differs), GUESSED)]

    def _order(
        self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge
    ) -> Any:
        return self._call(operator, args, kwargs, zeros=True)

    def _finite(self, *_: Any) -> Any:
        return [_constant(False)]

    def _quantify(
        self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge
    ) -> Any:
        """Unknown values are false for ``any`` and true for ``all``."""
        is_all = operator.rule == "all"
        if not seen.some_known:
            return [_constant(is_all, GUESSED)]
        part = self._part(args[0])
        values = part.values.ne(0).masked_fill(_marks(part).eq(UNKNOWN), is_all)
        return [Values(operator.func(values, *args[1:], **kwargs), GUESSED)]

    def _convert(
        self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge
    ) -> Any:
        """An unknown value is true as a boolean: it does not equal zero."""
        is_bool = isinstance(out, Tensor) and out.dtype is torch.bool
        if operator.is_mutable or not is_bool or args[0].dtype is torch.bool:
            return None
        return [_constant(True, GUESSED)]

    def _move(self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge) -> Any:
        """Elements move together with their marks."""
        if not seen.some_known:
            return None
        on_host = _HostArguments(self, zeros=False)
        values, marks, is_any = [], [], False
        for name, value in zip(operator.names, args, strict=False):
            if name in SELECTING_ARGUMENTS or not (
                isinstance(value, Tensor) or _is_list_of_tensors(value)
            ):
                values.append(on_host.value(value))
                # The value that fills or pads is known.
                marks.append(KNOWN if name == "value" else values[-1])
                is_any = is_any or name == "value"
                continue
            items = value if isinstance(value, list | tuple) else [value]
            parts = [self._part(item) for item in items]
            is_any = is_any or any(self.look_up(item) is not None for item in items if item.is_meta)
            ours, theirs = [part.values for part in parts], [_marks(part) for part in parts]
            values.append(ours if isinstance(value, list | tuple) else ours[0])
            marks.append(theirs if isinstance(value, list | tuple) else theirs[0])
        if not is_any:
            return None
        moved = operator.func(*marks)
        return [_with_marks(operator.func(*values, **kwargs), moved)]

    def _shift(
        self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge
    ) -> Any:
        """A sum with a huge number is that number; otherwise both have to be known."""
        left, right = args[:2]
        number = self._number(right)
        is_huge = number is not None and abs(number) >= HUGE
        if operator.is_mutable or not isinstance(left, Tensor) or not (seen.some_known or is_huge):
            return None
        if not _is_small(left):
            sign = -1 if operator.name == "sub" else 1
            value = torch.tensor(sign * (number or 0), dtype=torch.float64)
            return [Values(value, KNOWN)] if is_huge else None
        parts = [self._part(left), self._part(right)]
        known = _marks(parts[0]).ne(UNKNOWN)
        huge = parts[0].values.abs().ge(HUGE) & known
        if isinstance(parts[1], Values):
            beside = _marks(parts[1]).ne(UNKNOWN)
            known, huge = known & beside, huge | (parts[1].values.abs().ge(HUGE) & beside)
        elif is_huge:
            huge = torch.ones_like(huge)
        marks = (known | huge).to(torch.uint8)
        if not bool(marks.any()):
            return None
        return [_with_marks(operator.func(*map(_values, parts), **kwargs), marks)]

    def _weigh(
        self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge
    ) -> Any:
        """The weight of a masked score is zero."""
        found = self.look_up(args[0]) if _is_small(args[0]) else None
        if found is None or found.marks is None:
            return None
        marks = found.values.le(-HUGE).to(torch.uint8)
        return [_with_marks(torch.zeros_like(found.values), marks)]

    def _pick(self, operator: _Operator, args: Any, kwargs: Any, out: Any, seen: _Knowledge) -> Any:
        """Choices by scores that are not known are spread evenly (`llmmem.value_rules`)."""
        bound = dict(zip(operator.names, args, strict=False)) | kwargs
        outs = out if isinstance(out, tuple | list) else (out,)
        if operator.rule == "pick" and len(outs) == 1 and not operator.name.startswith("arg"):
            return None
        scores = args[0]
        dims = max(1, scores.dim())
        dim = bound.get("dim", -1)
        of_all = not scores.dim() or ("arg" in operator.name and bound.get("dim") is None)
        along = (-1 if dim is None else dim) % dims
        n = scores.numel() if of_all else scores.shape[along]
        partly = self._picked_partly(operator, bound, scores, along) if _is_small(scores) else None
        if partly is not None:
            return partly
        indices = self._picks(outs[-1].shape, n, along, several=operator.rule == "picks")
        return [*[None] * (len(outs) - 1), Values(indices, GUESSED)]

    def _picks(self, shape: torch.Size, n: int, dim: int, *, several: bool) -> Tensor:
        n = max(1, n)
        count = math.prod(shape)
        k = shape[dim] if several and shape else 1
        inner = math.prod(shape[dim + 1 :]) if several and shape else 1
        i = torch.arange(count)
        rows = i // (inner * max(1, k)) * inner + i % max(1, inner)
        picks = i // max(1, inner) % max(1, k)
        return ((n // 2 + (rows * k if self._are_picks_even else 0) + picks) % n).view(shape)

    def _picked_partly(
        self, operator: _Operator, bound: dict[str, Any], scores: Tensor, dim: int
    ) -> list[Values | None] | None:
        """Choices by partly known scores: an unknown score ranks between -1 and 0, a weight above 0."""
        are_weights = operator.name == "multinomial"
        found = self.look_up(scores)
        if found is None or found.marks is None or not (are_weights or operator.name == "topk"):
            return None
        k = bound["num_samples"] if are_weights else bound["k"]
        largest = are_weights or bound.get("largest", True)
        n = scores.shape[dim]
        rows = torch.arange(scores.numel() // n).view(found.values.select(dim, 0).shape)
        along = [1] * scores.dim()
        along[dim] = n
        first = rows.unsqueeze(dim) * (k if self._are_picks_even else 0) + n // 2
        rank = -((torch.arange(n).view(along) - first) % n).double() / n + 2 * are_weights
        ranked = torch.where(
            found.marks.eq(UNKNOWN), rank if largest else -rank, found.values.double()
        )
        indices = ranked.topk(min(k, n), dim, largest).indices
        if are_weights:
            return [Values(indices, GUESSED)]
        values = _with_marks(found.values.gather(dim, indices), found.marks.gather(dim, indices))
        return [values, Values(indices, GUESSED)]

    def _part(self, value: Any) -> Any:
        """A tensor's values and marks, with zeros for unknown values; a number as it is.

        Raises:
            _UnknownError: The tensor is too large for values of single elements.
        """
        if not isinstance(value, Tensor):
            return value
        if not value.is_meta:
            return Values(value, KNOWN)
        if not _is_small(value):
            raise _UnknownError
        found = self.look_up(value)
        zeros = torch.zeros((), dtype=value.dtype).expand(value.shape)
        return found or Values(zeros, UNKNOWN)

    def _number(self, value: Any) -> float | None:
        if isinstance(value, bool | int | float):
            return float(value)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            return None
        values = self.of(value) if value.is_meta else value
        return None if values is None else float(values)


_OF_UNKNOWN: dict[Rule | str, Callable[..., Any]] = {
    "equal": HostValues._compare,
    "unequal": HostValues._compare,
    "order": HostValues._order,
    "finite": HostValues._finite,
    "any": HostValues._quantify,
    "all": HostValues._quantify,
    "copy": HostValues._convert,
    "move": HostValues._move,
    "shift": HostValues._shift,
    "weigh": HostValues._weigh,
    "pick": HostValues._pick,
    "picks": HostValues._pick,
}


@dataclass(frozen=True, slots=True)
class _Knowledge:
    """Whether the device inputs of an operator are known."""

    none_on_device: bool
    is_some_unknown: bool
    some_known: bool


class _HostArguments:
    """Replaces device tensors in an operator's arguments by their values, and collects their marks."""

    def __init__(self, host_values: HostValues, zeros: bool) -> None:
        self._host_values = host_values
        self._zeros = zeros
        self.mark = KNOWN
        self.is_large = False
        self.is_constant = True

    def argument(self, operator: _Operator, position: int, value: Any) -> Any:
        """A positional argument; a copy, if the operator writes to it."""
        if not operator.written[position]:
            return self.value(value)
        if isinstance(value, list | tuple):
            return [self.argument(operator, position, item) for item in value]
        if not (isinstance(value, Tensor) and value.is_meta):
            return value
        if not _is_small(value):
            raise _UnknownError
        if position == 0 and operator.overwrites:
            return torch.empty(value.shape, dtype=value.dtype)
        return self.value(value).clone()

    def value(self, value: Any) -> Any:
        """An argument or a nested list, with values in place of device tensors."""
        if isinstance(value, Tensor):
            return self._tensor(value) if value.is_meta else value
        if isinstance(value, tuple | list):
            return [self.value(item) for item in value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def keyword(self, operator: _Operator, name: str, value: Any) -> Any:
        """A keyword argument; an empty tensor, if the operator writes to it (``out=``)."""
        if name in operator.outs and isinstance(value, Tensor) and value.is_meta:
            if not _is_small(value):
                raise _UnknownError
            return torch.empty(value.shape, dtype=value.dtype)
        return self.value(value)

    def outcome(self, value: Any) -> Any:
        """The values of an argument after the call."""
        if isinstance(value, list):
            return [self.outcome(item) for item in value]
        return Values(value, self.mark) if isinstance(value, Tensor) else None

    def _tensor(self, tensor: Tensor) -> Tensor:
        found = self._host_values.look_up(tensor)
        if found is None or found.mark == UNKNOWN:
            if tensor.numel() and not self._zeros:
                raise _UnknownError
            zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
            found = Values(zeros if found is None else found.values, GUESSED)
        if tensor.numel():
            self.mark = max(self.mark, found.mark)
        self.is_large = self.is_large or not _is_small(tensor)
        self.is_constant = self.is_constant and _is_constant(found.values)
        return found.values


@dataclass(frozen=True)
class _Operator:
    """An operator and what follows from its schema."""

    func: Any
    name: str
    rule: Rule | str
    names: tuple[str, ...]
    written: tuple[bool, ...]
    outs: frozenset[str]
    is_ignored: bool
    is_mutable: bool
    overwrites: bool
    may_be_constant: bool

    def makes_on_device(self, kwargs: dict[str, Any]) -> bool:
        device = kwargs.get("device")
        return device is not None and torch.device(device).type == "meta"


@cache
def _operator(func: Any) -> _Operator:
    name = func._schema.name.partition("::")[2]
    arguments = func._schema.arguments
    rule: Rule | str = RULES.get(name, "plain")
    is_drawn = rule == "plain" and torch.Tag.nondeterministic_seeded in func.tags
    if func.namespace != "aten" or is_drawn:
        rule = "random"
    return _Operator(
        func=func,
        name=name,
        rule=rule,
        names=tuple(argument.name for argument in arguments),
        written=tuple(bool(argument.is_write) for argument in arguments),
        outs=frozenset(a.name for a in arguments if a.is_write and a.kwarg_only),
        is_ignored=rule == "ignore",
        is_mutable=func._schema.is_mutable,
        overwrites=name in OVERWRITING,
        may_be_constant=torch.Tag.pointwise in func.tags
        or rule in ("any", "all", "finite", "constant"),
    )


def _has_values(dtype: torch.dtype) -> bool:
    return not dtype.is_complex


def _most_bytes(dtype: torch.dtype) -> int:
    return MOST_FLOAT_BYTES if dtype.is_floating_point else MOST_INTEGER_BYTES


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= _most_bytes(tensor.dtype)


def is_same(left: Tensor, right: Tensor) -> bool:
    """Whether both device tensors are the same view of the same storage."""

    def view_of(tensor: Tensor) -> Any:
        key = tensor.untyped_storage()._cdata
        return key, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()

    return left.is_meta and right.is_meta and view_of(left) == view_of(right)


def _is_constant(values: Tensor) -> bool:
    return all(
        size <= 1 or not stride for size, stride in zip(values.shape, values.stride(), strict=True)
    )


def _key_of_constants(operator: _Operator, given: Sequence[Any]) -> Any:
    """A key for a call with one large tensor of a single value; ``None`` for other calls."""
    tensor, *rest = given or [None]
    if not isinstance(tensor, Tensor) or tensor.numel() < LARGE or not _is_constant(tensor):
        return None
    if not all(isinstance(value, int) for value in rest):
        return None
    one = tensor.as_strided((), ()).item()
    return operator.func, tensor.shape, tensor.dtype, one, *rest


def _one_of(value: Any) -> Any:
    """One element of a tensor of a single value, which is enough for a pointwise operator."""
    if not isinstance(value, Tensor) or not value.dim() or not value.numel():
        return value
    return value.as_strided([1] * value.dim(), [1] * value.dim())


def _constant(value: bool, mark: int = KNOWN) -> Values:
    return Values(torch.tensor(value), mark)


def _values(part: Any) -> Any:
    return part.values if isinstance(part, Values) else part


def _marks(part: Values) -> Tensor:
    if part.marks is not None:
        return part.marks
    return torch.tensor(part.mark, dtype=torch.uint8).expand(part.values.shape)


def _with_marks(values: Tensor, marks: Tensor) -> Values:
    """Values with a single mark if no element is unknown, else with a mark for each element."""
    if not marks.numel():
        return Values(values, KNOWN)
    if not bool(marks.all()):
        return Values(values, UNKNOWN, marks)
    return Values(values, int(marks.max()))


def _spread_out(flat: Values | None, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Copies of the values and marks of a whole storage, to write to; storages may share values."""
    if flat is None or flat.values.dtype is not dtype:
        return torch.zeros(count, dtype=dtype), torch.zeros(count, dtype=torch.uint8)
    if flat.marks is None:
        marks = torch.full((count,), flat.mark, dtype=torch.uint8)
    else:
        marks = flat.marks.clone()
    return flat.values.expand(count).clone(), marks


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value)
