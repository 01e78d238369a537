"""The dispatch mode of a trace: storages of the meta device take blocks of the allocator's model."""

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

# Takes the tracer, an operator and its arguments; returns what the operator does.
Handler: TypeAlias = "Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any]], Any]"

#: Attention kernels of PyTorch.
AttentionBackend: TypeAlias = Literal["cudnn", "flash", "efficient", "math"]

# Where new tensors go: to the card, or to the meta device if the program itself asks for that.
Placement: TypeAlias = Literal["device", "skeleton"]

aten = torch.ops.aten

# Bytes of a card "without a limit". It stops a program that allocates until memory runs out.
UNLIMITED = 2**46
# Bytes between the addresses of two storages: more than any storage has.
_ADDRESS_STEP = 2**40


@dataclass(frozen=True)
class FullCard:
    """The card ran out of memory: the number of events until then, and the message of the error."""

    clock: int
    message: str


class _LiveStorage(weakref.ref[Any]):
    """A live storage: its key, and its block with the number of the allocation."""

    key: int
    number: int | None = None
    block: Block | None = None


class _Scratch:
    """Blocks that are taken at the start of a ``with`` statement and given back at its end."""

    def __init__(self, tracer: Tracer, sizes: tuple[int, ...]) -> None:
        self._tracer = tracer
        self._sizes = sizes

    def __enter__(self) -> None:
        self._taken = [self._tracer.malloc(nbytes) for nbytes in self._sizes if nbytes]

    def __exit__(self, *error: object) -> None:
        for number, block in reversed(self._taken):
            self._tracer.free(number, block)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, tensors of the meta device take blocks of the allocator.

    Args:
        allocator: The model of the card's allocator.
        gpu: The card whose kernels are assumed.
        handlers: The handlers of operators that differ on a GPU from the meta device.
        is_oom_handled: Called when the card is full: whether the running program handles that
            error. If so, it is raised as `torch.OutOfMemoryError`. Otherwise the trace goes on as
            if the card had no limit, to find out how much the program needs.

    Attributes:
        card: The model of the card's allocator. Once the card is full, it no longer changes.
        allocator: The model that allocates blocks: that of the card or, once the card is full, one
            without a limit.
        full: How the card ran out of memory; None if it did not, or if the program handles it.
        has_raised_oom: Whether an error of the full card was raised for the program to handle.
        lost: Why the trace did not reach the end after the card was full; else empty.
        refused: Errors of calls that cannot be traced, in order. A program may catch them and
            continue otherwise than on a GPU.
        events: Allocations and frees so far, in order.
        host_values: The values of tensors on the device, as far as they are known.
        guesses: Source lines at which the program read values that are not known.
        operators: For each event, the operator that was called last.
        attention_backends: The backends of scaled dot product attention that were used.
        modelled_libraries: Libraries that were used and whose workspaces follow a model.
        inexact: Operators and functions whose allocations are not known exactly.
        cudnn_attention_unknown: The most bytes that the backward pass of a single attention by
            cuDNN may take beyond what is traced; None without such an attention.
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
        # By number, the blocks without a limit that stand for those taken before the card was full.
        self._blocks_without_limit: dict[int, Block] = {}
        self._emptied: set[int] = set()  # positions among the events
        self.gpu = gpu
        self.events: list[Event] = []
        self.attention_backends: set[AttentionBackend] = set()
        self.modelled_libraries: set[str] = set()
        self.inexact: set[str] = set()
        self.operators: list[Any] = []
        self._operator: Any = None
        self.host_values = HostValues()
        self.guesses = Guesses()
        self.cudnn_attention_unknown: int | None = None
        #: Runs an operator on the meta device; its outputs take no blocks.
        self.compute = MetaCache()
        self._replays: dict[Any, AllocationReplay] = {}
        self._handlers = dict(handlers)
        # The same by the ids of the operators, which are faster than their hashes.
        self._handlers_by_id: dict[int, Handler] = {}
        self._live: dict[int, _LiveStorage] = {}
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
        # Function modes, which are active in backward, are meant for calls of the program only.
        with torch._C.DisableTorchFunction():
            if self._skeletons and self._placement is None and self._has_skeleton(args):
                with self.placing("skeleton"):
                    return self.run(func, args, kwargs or {})
            try:
                out = handler(self, func, args, kwargs or {})
            except (UnsupportedError, NotImplementedError) as error:
                self.refused.append(error)
                raise
            self.host_values.follow(func, args, kwargs or {}, out)
            return out

    def refuse(self, reason: str) -> NoReturn:
        """Raise an error for a call of the program that cannot be traced, and record it.

        Raises:
            UnsupportedError: Always.
        """
        error = UnsupportedError(reason)
        self.refused.append(error)
        raise error

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, or else PyTorch would call two functions of Dynamo for every operator."""
        return False

    def _find_handler(self, func: Any) -> Handler:
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = _default_handler(func)
        self._handlers_by_id[id(func)] = handler
        return handler

    # Used by handlers.

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator on the meta device, and give its outputs blocks in order."""
        out = self.compute(func, args, kwargs)
        self.allocate(out)
        return out

    def run_kernel(
        self,
        kernel: Callable[..., Any],
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a kernel that consists of other operators, each of which is traced.

        Its allocations are replayed for the same arguments, provided that nothing but its outputs
        stays allocated. That is not so for the first kernel of a thread that uses cuBLAS, which
        takes the workspace.
        """
        arguments = key_of(args, kwargs)
        key = id(func), self.in_backward, arguments
        if replay := self._replays.get(key):
            return replay.run(self)
        before = self.clock()
        with self.tracing_calls():
            out = kernel(*args, **kwargs)
        if arguments is not None:
            inputs = (*args, *kwargs.values())
            replay = AllocationReplay.of(self.events[before:], inputs, out, self)
            if replay is not None:
                self._replays[key] = replay
        return out

    def allocate(self, value: Any) -> None:
        """Give a block to each new storage of a tensor, or of the tensors in a nested list or tuple."""
        if isinstance(value, Tensor):
            # A sparse tensor consists of tensors with storages of their own.
            if value.is_meta and not value.is_sparse:
                storage = value.untyped_storage()
                if storage._cdata not in self._live:
                    self._allocate_storage(storage)
        elif isinstance(value, tuple | list):
            for item in value:
                self.allocate(item)

    @contextmanager
    def outside_allocator(self) -> Iterator[None]:
        """Tensors that are created inside take no block: a GPU has them outside of the allocator."""
        before, self._takes_blocks = self._takes_blocks, False
        try:
            yield
        finally:
            self._takes_blocks = before

    @contextmanager
    def placing(self, placement: Placement) -> Iterator[None]:
        """Place the tensors that are created inside on the device, or make them skeletons.

        A skeleton is a tensor of the meta device for the program too. Outside of this context,
        operators on a skeleton return skeletons, and all other tensors are on the device.
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
    def tracing_calls(self) -> Iterator[None]:
        """Trace the operators that a handler calls inside, like those of the program.

        This enters the dispatch mode again, without the bookkeeping of ``TorchDispatchMode``.
        """
        torch._C._push_on_torch_dispatch_stack(self)
        try:
            yield
        finally:
            torch._C._pop_torch_dispatch_stack(None)

    def malloc(self, nbytes: int) -> tuple[int, Block]:
        """Allocate a block that belongs to no tensor.

        Returns:
            The number of the allocation, and the block.

        Raises:
            torch.OutOfMemoryError: The card is full, and the program handles this error.
            OutOfMemory: The request is larger than any card.
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
        """Bytes that were requested in the allocation of that number."""
        return self._requests[number - 1]

    def free(self, number: int, block: Block) -> None:
        """Free a block of `malloc`."""
        if self._blocks_without_limit:
            block = self._blocks_without_limit.pop(number, block)
        self._note(Event("free", number, block.size))
        self.allocator.free(block)

    def empty_cache(self) -> None:
        """Free the cached memory, as ``torch.cuda.empty_cache`` does."""
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
        """Repeat all events on a card without a limit.

        Returns:
            Its allocator, and the live blocks by number.
        """
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
        """Blocks of these sizes in bytes (0 takes none) while inside; freed in reverse order."""
        return _Scratch(self, sizes)

    def use_cublas(self) -> None:
        """Take the workspace of cuBLAS at the first use by a thread; it is never freed.

        Autograd runs backward, and recomputes checkpoints, on a thread of its own.
        """
        thread = self.in_backward
        if thread not in self._workspaces:
            self._workspaces.add(thread)
            self.malloc(cublas_workspace(self.gpu))

    def note_cudnn_attention(self, unknown: int) -> None:
        """Record that an attention by cuDNN may take up to `unknown` bytes beyond what is traced."""
        self.cudnn_attention_unknown = max(self.cudnn_attention_unknown or 0, unknown)

    @property
    def in_backward(self) -> bool:
        """Whether autograd's engine is running."""
        return torch._C._current_autograd_node() is not None

    def is_held_by_engine_alone(self, tensor: Tensor) -> bool:
        """Whether autograd's engine alone holds the tensor and its storage."""
        return _use_counts(tensor) == self._sole_owner

    def hand_over(self, old: Tensor, new: Tensor) -> None:
        """Let the new tensor take over the block of the old one: on a GPU they are the same tensor."""
        before = self._live.get(old.untyped_storage()._cdata)
        if before is None or before.block is None:
            self.allocate(new)
            return
        live = self._register(new.untyped_storage())
        live.number, live.block = before.number, before.block
        before.number = before.block = None

    def note_guess(self, func: Any) -> None:
        """Record that the program reads, by the operator, a value that is not known."""
        self.guesses.add(guess(func._schema.name, sys._getframe()))

    # Used by the observer of the step.

    def clock(self) -> int:
        """The number of allocations and frees so far."""
        return len(self.events)

    def address(self, tensor: Tensor) -> int | None:
        """The address of the tensor's block in the events; ``None`` if it has no block."""
        with torch._C.DisableTorchFunction():
            if not tensor.is_meta:
                return None
            live = self._live.get(tensor.untyped_storage()._cdata)
        return None if live is None else live.number

    def pointer(self, storage: torch.UntypedStorage) -> int:
        """An address that no other storage has had; 0 if the storage has no block."""
        live = self._live.get(storage._cdata)
        return 0 if live is None or live.number is None else live.number * _ADDRESS_STEP

    def end(self) -> None:
        """Stop recording frees: storages that are alive now stay allocated."""
        self._is_over = True

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self.operators.append(self._operator)

    def _allocate_storage(self, storage: torch.UntypedStorage) -> None:
        live = self._register(storage)
        nbytes = storage.nbytes()
        if self._placement == "skeleton":
            self._skeletons.add(live.key)
        elif nbytes and self._takes_blocks:
            live.number, live.block = self.malloc(nbytes)

    def _register(self, storage: torch.UntypedStorage) -> _LiveStorage:
        live = _LiveStorage(storage, self._on_death)
        live.key = storage._cdata
        self._live[live.key] = live
        return live

    def _on_death(self, live: weakref.ref[Any]) -> None:
        assert isinstance(live, _LiveStorage)
        # The key may already belong to a new storage at the same address.
        if self._live.get(live.key) is not live:
            return
        del self._live[live.key]
        self.host_values.forget(live.key)
        self._skeletons.discard(live.key)
        if live.block is not None and live.number is not None and not self._is_over:
            self.free(live.number, live.block)


def _default_handler(func: Any) -> Handler:
    """The handler of an operator without an entry: composite operators are decomposed."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    name = func.name()
    # Composite operators that have a CPU kernel also have one for CUDA, which does not decompose them.
    if has_kernel(name, "CompositeImplicitAutograd") and not has_kernel(name, "CPU"):
        return _decompose
    return Tracer.run


def _decompose(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Composite operators arrive here only from within a handler: elsewhere autograd has decomposed
    # them. The C++ decomposition is faster than the Python one that some operators also have.
    with tracer.tracing_calls():
        return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


def _use_counts(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    of_tensor: int = tensor._use_count()  # type: ignore[attr-defined]
    of_storage: int = torch._C._storage_Use_Count(storage._cdata)
    return of_tensor, of_storage


class _UseCounts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the use counts of the first argument of each addition in backward."""

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
    """The use counts, in a dispatch mode, of a gradient that the engine alone holds.

    They depend on the version of PyTorch, so they are taken from two small graphs. In one of them
    the engine may add in place. In the other the same tensor is needed again.

    Raises:
        UnsupportedError: The counts are the same in both graphs.
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
    """Run a product of integers as one kernel, as PyTorch does for tensors on ``cuda``.

    Source: ``torch/_higher_order_ops/out_dtype.py``, ``out_dtype_dense``.
    """
    is_of_int8 = all(isinstance(arg, Tensor) and arg.dtype is torch.int8 for arg in args)
    is_product = operator is torch.ops.aten.mm.default and dtype is torch.int32 and is_of_int8
    with tracer.tracing_calls():
        if is_product and all(arg.is_meta for arg in args):
            return torch._int_mm(*args)
        return out_dtype_fallback(operator, dtype, *args)  # type: ignore[no-untyped-call]
