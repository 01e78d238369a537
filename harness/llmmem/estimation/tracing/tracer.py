"""Sees every storage of the meta device born and die, and asks the allocator's model for it."""

from __future__ import annotations

import sys
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch._higher_order_ops.out_dtype import out_dtype, out_dtype_fallback
from torch.utils._python_dispatch import TorchDispatchMode

from llmmem.accounting.allocator import CachingAllocator, OutOfMemory
from llmmem.accounting.attribution import Event
from llmmem.errors import UnsupportedError
from llmmem.estimation.tracing.cublas import cublas_workspace
from llmmem.estimation.tracing.host_values import HostValues
from llmmem.estimation.tracing.meta_cache import MetaCache, key_of
from llmmem.estimation.tracing.replay import AllocationReplay
from llmmem.guesses import Guesses, guess
from llmmem.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from llmmem.accounting.allocator import Block
    from llmmem.catalogue.gpus import Gpu

__all__ = ["AttentionBackend", "FullCard", "Handler", "Placement", "Tracer"]

# Takes the tracer, an operator and its arguments; gives back what the operator does.
Handler: TypeAlias = "Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any]], Any]"

#: Attention kernels of PyTorch.
AttentionBackend: TypeAlias = Literal["cudnn", "flash", "efficient", "math"]

# Where new tensors go: on the card, or on the meta device because the program itself says so.
Placement: TypeAlias = Literal["device", "skeleton"]

aten = torch.ops.aten

# Stands for memory without a limit. It ends a program that allocates until nothing is left.
UNLIMITED = 2**46


# Bytes between the addresses of two storages: more than any has.
_FARTHEST_APART = 2**40


@dataclass(frozen=True)
class FullCard:
    """The card ran out of memory: how many events there were by then, and what the error says."""

    clock: int
    message: str


class _Life(weakref.ref[Any]):
    """A live storage: its key, the number and the block that it has, and what is known of it."""

    key: int
    number: int | None = None
    block: Block | None = None


class _Scratch:
    """Blocks that are taken where a ``with`` begins and given back where it ends."""

    def __init__(self, tracer: Tracer, sizes: tuple[int, ...]) -> None:
        self._tracer = tracer
        self._sizes = sizes

    def __enter__(self) -> None:
        self._taken = [self._tracer.take(nbytes) for nbytes in self._sizes if nbytes]

    def __exit__(self, *error: object) -> None:
        for number, block in reversed(self._taken):
            self._tracer.give(number, block)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, tensors of the meta device take blocks of the allocator.

    Args:
        allocator: The model of the card's allocator.
        gpu: The card whose kernels are assumed.
        handlers: What operators do on a GPU beyond what the meta device shows.
        is_oom_handled: Called when the card is full: whether the running program handles that
            error. Then it is raised, as `torch.OutOfMemoryError`. Otherwise the trace goes on as
            if the card had no limit, so that it also tells what the program needs.

    Attributes:
        card: The model of the card's allocator; as it was left, once the card is full.
        allocator: The model that hands out blocks: that of the card, and one without a limit once
            the card is full.
        full: How the card ran out of memory; None while it has not, or the program handles it.
        has_raised_oom: Whether the program was left to handle that the card is full.
        lost: Why the trace did not reach the end once the card was full; else empty.
        refused: Errors of calls that cannot be traced, in order. A program may catch them and go
            on in another way than on a GPU.
        events: Allocations and frees so far, in order.
        known: Values on the device, as far as they are known.
        guesses: Where the program has decided by values that are not known.
        operators: For each event, the operator that was seen last.
        attention_backends: Those of scaled dot product attention that were taken.
        modelled_libraries: Those that were asked for a workspace whose size only a model tells.
        inexact: Operators and functions of which it is not known exactly what they allocate.
        cudnn_attention_unknown: Bytes that the backward pass of one attention by cuDNN may take
            beyond what is traced, at most; None where there was none.
    """

    def __init__(
        self,
        allocator: CachingAllocator,
        gpu: Gpu,
        handlers: Mapping[Any, Handler],
        is_oom_handled: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = self.allocator = allocator
        self.full: FullCard | None = None
        self.has_raised_oom = False
        self.lost = ""
        self.refused: list[Exception] = []
        self._is_oom_handled = is_oom_handled
        # Blocks by number that were taken before the card was full, where it has no limit.
        self._blocks_without_limit: dict[int, Block] = {}
        self._emptied: set[int] = set()  # positions among the events
        self.gpu = gpu
        self.events: list[Event] = []
        self.attention_backends: set[AttentionBackend] = set()
        self.modelled_libraries: set[str] = set()
        self.inexact: set[str] = set()
        self.operators: list[Any] = []
        self._operator: Any = None
        self.known = HostValues()
        self.guesses = Guesses()
        self.cudnn_attention_unknown: int | None = None
        #: Runs an operator on the meta device, without an account of what is born.
        self.compute = MetaCache()
        self._replays: dict[Any, AllocationReplay] = {}
        self._handlers = dict(handlers)
        # The same by the ids of the operators, which take less than their hashes do.
        self._handlers_by_id: dict[int, Handler] = {}
        self._lives: dict[int, _Life] = {}
        self._requests: list[int] = []  # by number, from 1 on
        self._workspaces: set[bool] = set()
        self._takes_blocks = True
        self._placement: Placement | None = None
        self._skeletons: set[int] = set()
        self._is_over = False
        self._sole_owner = _calibrated_use_counts()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = self._handlers_by_id.get(id(func)) or self._find_handler(func)
        self._operator = func
        # In backward function modes are on, which are for the program alone.
        with torch._C.DisableTorchFunction():
            if self._skeletons and self._placement is None and self._has_skeleton(args):
                with self.placing("skeleton"):
                    return self.run(func, args, kwargs or {})
            try:
                out = handler(self, func, args, kwargs or {})
            except (UnsupportedError, NotImplementedError) as error:
                self.refused.append(error)
                raise
            self.known.follow(func, args, kwargs or {}, out)
            return out

    def refuse(self, reason: str) -> NoReturn:
        """End what the program asks for, which cannot be traced.

        Raises:
            UnsupportedError: Always.
        """
        error = UnsupportedError(reason)
        self.refused.append(error)
        raise error

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: then PyTorch would lead every operator through two functions of Dynamo's."""
        return False

    def _find_handler(self, func: Any) -> Handler:
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = _default_handler(func)
        self._handlers_by_id[id(func)] = handler
        return handler

    # What handlers use.

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operator on the meta device; its outputs are born in order."""
        out = self.compute(func, args, kwargs)
        self.born(out)
        return out

    def run_kernel(
        self,
        kernel: Callable[..., Any],
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run what does the operator's work by operators of its own, each of which is seen.

        What it allocates is remembered, if its outputs are all that is left of it. A workspace of
        cuBLAS is taken once for a thread, so the first call of each is not.
        """
        key = key_of(args, kwargs)
        place = id(func), self.in_backward, key
        if replay := self._replays.get(place):
            return replay.run(self)
        before = self.clock()
        with self.seeing_again():
            out = kernel(*args, **kwargs)
        if key is not None:
            inputs = (*args, *kwargs.values())
            replay = AllocationReplay.of(self.events[before:], inputs, out, self)
            if replay is not None:
                self._replays[place] = replay
        return out

    def born(self, value: Any) -> None:
        """Give each new storage in a tensor, or in a nest of them, a block."""
        if isinstance(value, Tensor):
            # What is sparse consists of tensors with storages of their own.
            if value.is_meta and not value.is_sparse:
                storage = value.untyped_storage()
                if storage._cdata not in self._lives:
                    self._begin(storage)
        elif isinstance(value, tuple | list):
            for item in value:
                self.born(item)

    @contextmanager
    def outside_allocator(self) -> Iterator[None]:
        """What is born inside is not in the allocator's memory on a GPU: it takes no block."""
        before, self._takes_blocks = self._takes_blocks, False
        try:
            yield
        finally:
            self._takes_blocks = before

    @contextmanager
    def placing(self, placement: Placement) -> Iterator[None]:
        """What is born inside is on the device, or is a skeleton: on no device for the program too.

        Elsewhere what comes of a skeleton is one, and all else is on the device.
        """
        before, self._placement = self._placement, placement
        try:
            yield
        finally:
            self._placement = before

    def is_skeleton(self, tensor: Tensor) -> bool:
        """Whether the program itself has put the tensor on the meta device."""
        return bool(self._skeletons) and tensor.untyped_storage()._cdata in self._skeletons

    def _has_skeleton(self, values: Iterable[Any]) -> bool:
        return any(
            self._has_skeleton(value)
            if isinstance(value, tuple | list)
            else isinstance(value, Tensor) and value.is_meta and self.is_skeleton(value)
            for value in values
        )

    @contextmanager
    def seeing_again(self) -> Iterator[None]:
        """What a handler does inside is seen like what the program does.

        It is what entering the tracer once more does, without what that keeps for the end.
        """
        torch._C._push_on_torch_dispatch_stack(self)
        try:
            yield
        finally:
            torch._C._pop_torch_dispatch_stack(None)

    def take(self, nbytes: int) -> tuple[int, Block]:
        """A block that no tensor stands for.

        Raises:
            torch.OutOfMemoryError: The card is full, and the program handles that.
            OutOfMemory: More is asked for than any card has.
        """
        try:
            block = self.allocator.malloc(nbytes)
        except OutOfMemory as error:
            self._card_is_full(nbytes, error)
            block = self.allocator.malloc(nbytes)
        self._requests.append(nbytes)
        number = len(self._requests)
        self._note(Event("alloc", number, block.size))
        return number, block

    def requested(self, number: int) -> int:
        """Bytes that were asked for where the block of that number was taken."""
        return self._requests[number - 1]

    def give(self, number: int, block: Block) -> None:
        """Give back a block that `take` gave."""
        if self._blocks_without_limit:
            block = self._blocks_without_limit.pop(number, block)
        self._note(Event("free", number, block.size))
        self.allocator.free(block)

    def empty_cache(self) -> None:
        """What ``torch.cuda.empty_cache`` does."""
        self._emptied.add(self.clock())
        self.allocator.empty_cache()

    def _card_is_full(self, nbytes: int, error: OutOfMemory) -> None:
        if self.full is not None:
            raise error
        self.has_raised_oom = self.has_raised_oom or self._is_oom_handled()
        if self.has_raised_oom:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {format_size(nbytes)}."
            ) from error
        self.full = FullCard(self.clock(), str(error))
        self.allocator, self._blocks_without_limit = self.without_limit()

    def without_limit(self) -> tuple[CachingAllocator, dict[int, Block]]:
        """All events so far on a card without a limit: its allocator, and the live blocks by number."""
        allocator = CachingAllocator(self.card.config.without_limits(), UNLIMITED, UNLIMITED)
        blocks: dict[int, Block] = {}
        for position, event in enumerate(self.events):
            if position in self._emptied:
                allocator.empty_cache()
            if event.kind == "alloc":
                blocks[event.address] = allocator.malloc(self.requested(event.address))
            else:
                allocator.free(blocks.pop(event.address))
        if len(self.events) in self._emptied:
            allocator.empty_cache()
        return allocator, blocks

    def scratch(self, *sizes: int) -> _Scratch:
        """Blocks of these bytes while inside (0 takes none); freed in reverse order."""
        return _Scratch(self, sizes)

    def use_cublas(self) -> None:
        """The first use by a thread takes a workspace, which is never given back.

        Autograd runs backward, and what is recomputed there, on a thread of its own.
        """
        thread = self.in_backward
        if thread not in self._workspaces:
            self._workspaces.add(thread)
            self.take(cublas_workspace(self.gpu))

    def note_cudnn_attention(self, unknown: int) -> None:
        """An attention by cuDNN may take these bytes beyond what is traced."""
        self.cudnn_attention_unknown = max(self.cudnn_attention_unknown or 0, unknown)

    @property
    def in_backward(self) -> bool:
        """Whether autograd's engine is at work."""
        return torch._C._current_autograd_node() is not None

    def is_engine_s_own(self, tensor: Tensor) -> bool:
        """Whether only autograd's engine holds the tensor and its storage."""
        return _use_counts(tensor) == self._sole_owner

    def hand_over(self, old: Tensor, new: Tensor) -> None:
        """The new tensor takes over the block of the old one: on a GPU it is the same tensor."""
        before = self._lives.get(old.untyped_storage()._cdata)
        if before is None or before.block is None:
            self.born(new)
            return
        life = self._life(new.untyped_storage())
        life.number, life.block = before.number, before.block
        before.number = before.block = None

    def note_guess(self, func: Any) -> None:
        """The program decides by a value that is not known, read by the operator."""
        self.guesses.add(guess(func._schema.name, sys._getframe()))

    # What the observer of the step uses.

    def clock(self) -> int:
        """The number of allocations and frees so far."""
        return len(self.events)

    def address(self, tensor: Tensor) -> int | None:
        """What the events call the tensor's block; ``None`` if it has none."""
        with torch._C.DisableTorchFunction():
            if not tensor.is_meta:
                return None
            life = self._lives.get(tensor.untyped_storage()._cdata)
        return None if life is None else life.number

    def pointer(self, storage: torch.UntypedStorage) -> int:
        """An address that no other storage has had; 0 if it has no block."""
        life = self._lives.get(storage._cdata)
        return 0 if life is None or life.number is None else life.number * _FARTHEST_APART

    def end(self) -> None:
        """Count no more deaths: what is alive now stays in the account."""
        self._is_over = True

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self.operators.append(self._operator)

    def _begin(self, storage: torch.UntypedStorage) -> None:
        life = self._life(storage)
        nbytes = storage.nbytes()
        if self._placement == "skeleton":
            self._skeletons.add(life.key)
        elif nbytes and self._takes_blocks:
            life.number, life.block = self.take(nbytes)

    def _life(self, storage: torch.UntypedStorage) -> _Life:
        life = _Life(storage, self._died)
        life.key = storage._cdata
        self._lives[life.key] = life
        return life

    def _died(self, life: weakref.ref[Any]) -> None:
        assert isinstance(life, _Life)
        # The key may already belong to a new storage, made where the old one was.
        if self._lives.get(life.key) is not life:
            return
        del self._lives[life.key]
        self.known.forget(life.key)
        self._skeletons.discard(life.key)
        if life.block is not None and life.number is not None and not self._is_over:
            self.give(life.number, life.block)


def _default_handler(func: Any) -> Handler:
    """Decomposes operators that consist of others, and runs the rest."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    name = func.name()
    # With a kernel of their own for the CPU they have one for CUDA, and run in one piece there.
    if has_kernel(name, "CompositeImplicitAutograd") and not has_kernel(name, "CPU"):
        return _decompose
    return Tracer.run


def _decompose(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # They arrive here only from within a handler: elsewhere autograd has taken them apart. What
    # does so in C++ takes less time than the decomposition in Python that some have beside it.
    with tracer.seeing_again():
        return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


def _use_counts(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    of_tensor: int = tensor._use_count()  # type: ignore[attr-defined]
    of_storage: int = torch._C._storage_Use_Count(storage._cdata)
    return of_tensor, of_storage


class _UseCounts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how often the first argument of each addition in backward is held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is aten.add.Tensor and not torch.is_grad_enabled():
            self.seen.append(_use_counts(args[0]))
        return func(*args, **(kwargs or {}))


def _calibrated_use_counts() -> tuple[int, int]:
    """The use counts, seen from a dispatch mode, of a gradient that only the engine holds.

    They depend on the version of PyTorch, so they are taken from two small graphs: one where the
    engine may add in place, one where the same tensor is needed elsewhere too.

    Raises:
        UnsupportedError: This version of PyTorch does not tell the two apart.
    """
    own, shared = _UseCounts(), _UseCounts()
    with torch.enable_grad():
        leaf = torch.empty(2, 2, device="meta", requires_grad=True)
        with own:
            torch.autograd.backward(leaf * 2 + leaf * 3, torch.empty(2, 2, device="meta"))
        with shared:
            held = leaf * 2
            torch.autograd.backward(held + held, torch.empty(2, 2, device="meta"))
    if len(own.seen) != 1 or len(shared.seen) != 1 or own.seen == shared.seen:
        raise UnsupportedError(
            f"a trace does not work with torch {torch.__version__}: "
            "it cannot tell where gradients are added in place"
        )
    return own.seen[0]


@out_dtype.py_impl(Tracer)
def _out_dtype(tracer: Tracer, operator: Any, dtype: torch.dtype, *args: Any) -> Any:
    """A product of integers is one kernel; PyTorch asks whether its tensors are on ``cuda``.

    Source: ``torch/_higher_order_ops/out_dtype.py``, ``out_dtype_dense``.
    """
    is_of_int8 = all(isinstance(arg, Tensor) and arg.dtype is torch.int8 for arg in args)
    is_product = operator is torch.ops.aten.mm.default and dtype is torch.int32 and is_of_int8
    with tracer.seeing_again():
        if is_product and all(arg.is_meta for arg in args):
            return torch._int_mm(*args)
        return out_dtype_fallback(operator, dtype, *args)  # type: ignore[no-untyped-call]
