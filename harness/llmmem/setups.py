"""Setup: everything that determines how much memory a step takes.

A `Setup` is complete and valid once it is created: presets are resolved into their parts, keys that
do not apply are ``None``, and keys that contradict each other raise `InputError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.catalogue.positions import positions
from llmmem.documents import check_plain, read_document
from llmmem.errors import InputError, unknown

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "ADAPTER_DTYPES",
    "DTYPES",
    "METHODS",
    "MODES",
    "MOST_LABELS",
    "QUANTIZATIONS",
    "TASKS",
    "Setup",
    "load_setup",
]

TASKS = ("causal-lm", "masked-lm", "seq2seq-lm", "sequence-classification")
MODES = ("train", "forward", "generate")
DTYPES = ("bfloat16", "float16", "float32")
ADAPTER_DTYPES = ("float32", "bfloat16", "float16")
KV_CACHES = ("dynamic", "static")
PARALLEL_STRATEGIES = ("fsdp2", "ddp")
SEQ_LEN = 2048
FOUR_BIT = ("nf4", "fp4")
_QUANTIZATION_METHODS: Mapping[str, str] = {
    "int8": "bitsandbytes",
    "nf4": "bitsandbytes",
    "fp4": "bitsandbytes",
    "fp8": "fp8",
}
QUANTIZATIONS = ("none", *_QUANTIZATION_METHODS)
MOST_LABELS = 1_000_000

LORA: Mapping[str, Any] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
}
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "full": {"quantization": "none", "adapter": "none"},
    "lora": {"quantization": "none", "adapter": LORA},
    "qlora": {"quantization": "nf4", "adapter": LORA},
    "int8-lora": {"quantization": "int8", "adapter": LORA},
}
METHODS = tuple(_PRESETS)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to run. Missing keys are filled in from the preset of the method, then from the defaults here.

    Attributes:
        model: A hub id, an id of the offline catalogue, a local directory or a config.json.
            Weights are never needed.
        task: One of `TASKS`.
        num_labels: The number of classes for sequence classification (default 2), else ``None``.
        mode: ``train``, ``forward`` (no gradients) or ``generate``.
        method: One of `METHODS`: the preset for `quantization` and `adapter` where they are not set.
        quantization: One of `QUANTIZATIONS`, or a ``quantization_config`` of transformers as a
            mapping (with its ``quant_method``).
        double_quant: Whether the quantization constants of a 4-bit base are quantized too.
        adapter: A PEFT config as a mapping (with its ``peft_type``), or ``"none"``.
        adapter_dtype: Dtype of the adapter's weights; ``None`` is PEFT's default, which is
            float32 on a 16-bit base.
        kbit_prepare: Whether `peft.prepare_model_for_kbit_training` is called on a quantized base.
        dtype: Dtype of the weights that are not quantized, and of the computation.
        autocast: ``none`` or the dtype to autocast to.
        optimizer: A name of transformers' ``OptimizerNames``; ``None`` unless in mode train.
        optimizer_args: Arguments that differ from the optimizer's own defaults.
        batch_size: Sequences in a micro-batch.
        seq_len: Tokens in a sequence; by default 2048, or as many as the model has positions for.
        gradient_accumulation_steps: Micro-batches before an optimizer step.
        max_grad_norm: The norm that gradients are clipped to; ``None`` does not clip.
        attention: transformers' attention implementation; ``None`` is the model's default.
        gradient_checkpointing: ``False``, ``True`` (not reentrant, transformers' default) or
            ``{"use_reentrant": True}``.
        new_tokens: Tokens to generate, in mode generate.
        kv_cache: ``dynamic`` or ``static``, in mode generate.
        steps: The number of steps to run; the first one allocates the optimizer state.
        allocator: Value of ``PYTORCH_ALLOC_CONF`` for the run.
        parallel: ``None`` or ``{"strategy": "fsdp2" | "ddp", "world_size": n}``.
    """

    model: str
    task: str = "causal-lm"
    num_labels: int | None = None
    mode: str = "train"
    method: str = "full"
    quantization: Mapping[str, Any] | str | None = None
    double_quant: bool | None = None
    adapter: Mapping[str, Any] | str | None = None
    adapter_dtype: str | None = None
    kbit_prepare: bool | None = None
    dtype: str = "bfloat16"
    autocast: str = "none"
    optimizer: str | None = None
    optimizer_args: Mapping[str, Any] | None = None
    batch_size: int = 1
    seq_len: int = None  # type: ignore[assignment]  # resolved with the others
    gradient_accumulation_steps: int | None = None
    max_grad_norm: float | None = None
    attention: str | None = None
    gradient_checkpointing: bool | Mapping[str, bool] | None = None
    new_tokens: int | None = None
    kv_cache: str | None = None
    steps: int | None = None
    allocator: str = ""
    parallel: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_values()
        for key, value in self._resolved().items():
            object.__setattr__(self, key, value)
        self._check_combination()

    @classmethod
    def from_mapping(cls, keys: Mapping[str, Any]) -> Setup:
        """Create a setup from the keys of a TOML or JSON document.

        ``"none"`` is accepted for every key that can be ``None``, and ``"fsdp2:64"`` for `parallel`.

        Raises:
            InputError: A key is unknown, a value is not accepted, or keys contradict each other.
        """
        names = [field.name for field in fields(cls)]
        for key in keys:
            if key not in names:
                raise unknown("setup key", key, names)
        if "model" not in keys:
            raise InputError("a setup needs the key 'model'")
        _check_plain(keys)
        optional = {"parallel", "max_grad_norm", "attention", "adapter_dtype"}
        given: dict[str, Any] = {
            key: None if key in optional and value == "none" else deepcopy(value)
            for key, value in keys.items()
        }
        given["parallel"] = _read_parallel(given.get("parallel"))
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The keys that apply, as plain values; `from_mapping` creates an equal setup from them."""
        values = {field.name: deepcopy(getattr(self, field.name)) for field in fields(self)}
        return {
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in values.items()
            if value is not None
        }

    def key(self) -> str:
        """One line of JSON, the same for equal setups, for use as the key of stored results."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def describe(self) -> str:
        """A short name for tables, such as ``"qlora bfloat16 1x2048 checkpointing"``."""
        parts = [self.mode] if self.mode != "train" else []
        parts += [self.method, self.dtype, f"{self.batch_size}x{self.seq_len}"]
        if self.gradient_checkpointing:
            parts.append("checkpointing")
        if self.optimizer and self.optimizer != "adamw_torch_fused":
            parts.append(self.optimizer)
        if self.parallel is not None:
            parts.append(f"{self.parallel['strategy']}x{self.parallel['world_size']}")
        return " ".join(parts)

    @property
    def has_adapter(self) -> bool:
        """Whether the model has a PEFT adapter."""
        return self.adapter != "none"

    @property
    def is_quantized(self) -> bool:
        """Whether linear layers of the base model are quantized."""
        return self.quantization != "none"

    @property
    def quantization_method(self) -> str | None:
        """The ``quant_method`` of transformers; ``None`` if the model is not quantized."""
        given = self.quantization
        if isinstance(given, Mapping):
            return str(given["quant_method"])
        return _QUANTIZATION_METHODS.get(given or "")

    @property
    def is_train(self) -> bool:
        """Whether the mode is train."""
        return self.mode == "train"

    @property
    def strategy(self) -> str | None:
        """The parallel strategy, ``fsdp2`` or ``ddp``; ``None`` on a single GPU."""
        return self.parallel["strategy"] if self.parallel is not None else None

    def _check_values(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"invalid model {self.model!r}: expected an id, a directory or a file")
        if not isinstance(self.allocator, str):
            raise InputError(f"invalid allocator {self.allocator!r}: expected a string")
        if self.attention is not None and not isinstance(self.attention, str):
            raise InputError(f"invalid attention {self.attention!r}: expected a string")
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            if (value is not None or key in _NEVER_NONE) and value not in choices:
                raise unknown(key, value, choices)
        self._check_quantization()
        tables = ("quantization", "adapter", "optimizer_args", "parallel")
        _check_plain({key: getattr(self, key) for key in tables})
        for key, most in _MOST.items():
            value = getattr(self, key)
            if value is not None or key in _NEVER_NONE:
                _check_count(key, value, most)
        for key in ("double_quant", "kbit_prepare"):
            if not isinstance(getattr(self, key), bool | None):
                raise InputError(f"invalid {key} {getattr(self, key)!r}: expected true or false")
        norm = self.max_grad_norm
        if norm is not None and (
            isinstance(norm, bool)
            or not isinstance(norm, int | float)
            or not 0 < norm < float("inf")
        ):
            raise InputError(f"invalid max_grad_norm {norm!r}: expected a finite number above zero")
        self._check_tables()

    def _check_quantization(self) -> None:
        given = self.quantization
        if not isinstance(given, Mapping):
            if given is not None and given not in QUANTIZATIONS:
                raise unknown("quantization", given, QUANTIZATIONS)
        elif not isinstance(given.get("quant_method"), str):
            raise InputError(
                f"invalid quantization {dict(given)!r}: it needs a quant_method, "
                'such as "bitsandbytes"'
            )

    def _check_tables(self) -> None:
        if isinstance(self.adapter, Mapping):
            if not isinstance(self.adapter.get("peft_type"), str):
                raise InputError(
                    f'invalid adapter {dict(self.adapter)!r}: it needs a peft_type, such as "LORA"'
                )
        elif self.adapter not in (None, "none"):
            raise InputError(
                f"invalid adapter {self.adapter!r}: expected none or a table with a PEFT config"
            )
        if self.optimizer_args is not None and not isinstance(self.optimizer_args, Mapping):
            raise InputError(f"invalid optimizer_args {self.optimizer_args!r}: expected a table")
        checkpointing = self.gradient_checkpointing
        if isinstance(checkpointing, Mapping):
            valid = set(checkpointing) == {"use_reentrant"} and isinstance(
                checkpointing["use_reentrant"], bool
            )
        else:
            valid = isinstance(checkpointing, bool | None)
        if not valid:
            raise InputError(
                f"invalid gradient_checkpointing {checkpointing!r}: "
                "expected true, false or {use_reentrant = true}"
            )
        if self.parallel is not None:
            _check_parallel(self.parallel)

    def _resolved(self) -> dict[str, Any]:
        """Values for the missing keys that apply."""
        preset = _PRESETS[self.method]
        quantization = deepcopy(self.quantization or preset["quantization"])
        adapter = deepcopy(self.adapter if self.adapter is not None else preset["adapter"])
        defaults: dict[str, Any] = {"steps": 2 if self.mode == "train" else 1}
        if quantization in FOUR_BIT:
            defaults["double_quant"] = True
        if quantization != "none" and adapter != "none":
            defaults["kbit_prepare"] = True
        if self.task == "sequence-classification":
            defaults["num_labels"] = 2
        if self.mode == "train":
            defaults |= {
                "optimizer": "adamw_torch_fused",
                "optimizer_args": {},
                "gradient_accumulation_steps": 1,
                "gradient_checkpointing": False,
            }
        if self.mode == "generate":
            defaults |= {"new_tokens": 32, "kv_cache": "dynamic"}
        given = {key: getattr(self, key) for key in defaults}
        chosen = {
            key: given[key] if given[key] is not None else value for key, value in defaults.items()
        }
        chosen |= {"quantization": quantization, "adapter": adapter}
        if not self.seq_len:  # left out: zero has been refused
            chosen["seq_len"] = _default_seq_len(self.model, adapter, chosen.get("new_tokens") or 0)
        return chosen

    def _check_combination(self) -> None:
        conditions = {
            "double_quant": (self.quantization in FOUR_BIT, "a 4-bit quantization (nf4, fp4)"),
            "adapter_dtype": (self.has_adapter, "an adapter"),
            "kbit_prepare": (
                self.is_quantized and self.has_adapter,
                "a quantization and an adapter",
            ),
            "num_labels": (self.task == "sequence-classification", "task sequence-classification"),
            "optimizer": (self.is_train, "mode train"),
            "optimizer_args": (self.is_train, "mode train"),
            "gradient_accumulation_steps": (self.is_train, "mode train"),
            "max_grad_norm": (self.is_train, "mode train"),
            "gradient_checkpointing": (self.is_train, "mode train"),
            "new_tokens": (self.mode == "generate", "mode generate"),
            "kv_cache": (self.mode == "generate", "mode generate"),
        }
        for key, (applies, needed) in conditions.items():
            if getattr(self, key) is not None and not applies:
                raise InputError(f"the key {key!r} needs {needed}")
        if self.is_train and self.is_quantized and not self.has_adapter:
            raise InputError(
                f"quantization {self.quantization!r} in mode train needs an adapter: "
                "quantized weights take no gradient"
            )
        if self.mode == "generate" and self.task not in ("causal-lm", "seq2seq-lm"):
            raise InputError(
                f"mode 'generate' and task {self.task!r} contradict: "
                "it needs causal-lm or seq2seq-lm"
            )


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "task": TASKS,
    "mode": MODES,
    "method": METHODS,
    "adapter_dtype": ADAPTER_DTYPES,
    "dtype": DTYPES,
    "autocast": ("none", "bfloat16", "float16"),
    "optimizer": tuple(OPTIMIZERS),
    "kv_cache": KV_CACHES,
}
_NEVER_NONE = ("task", "mode", "method", "dtype", "autocast", "batch_size")
#: Upper bounds of counts, far above any real job. Beyond them, a run or an estimate would exhaust the
#: memory of the host or not finish.
_MOST: Mapping[str, int] = {
    "batch_size": 2**20,
    "seq_len": 2**24,
    "gradient_accumulation_steps": 2**16,
    "num_labels": MOST_LABELS,
    "new_tokens": 2**20,
    "steps": 1_000_000,
}
MOST_RANKS = 2**17


def _default_seq_len(model: str, adapter: Mapping[str, Any] | str, new_tokens: int) -> int:
    """`SEQ_LEN`, or fewer if the model's positions, less learned prompts and new tokens, are fewer."""
    limit = positions(model)
    if limit is None:
        return SEQ_LEN
    prompt = adapter.get("num_virtual_tokens") if isinstance(adapter, Mapping) else None
    left = limit - new_tokens - (prompt if isinstance(prompt, int) else 0)
    return max(1, min(SEQ_LEN, left))  # if nothing is left, the build reports it


def load_setup(path: Path, overrides: Mapping[str, Any] | None = None) -> Setup:
    """Read a setup from a .toml or .json file; `overrides` take precedence over its keys.

    Raises:
        InputError: The file cannot be read, is not valid TOML or JSON, or holds no valid setup.
    """
    try:
        keys = read_document(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read setup {str(path)!r}: {error}") from error
    if not isinstance(keys, dict):
        raise InputError(f"cannot read setup {str(path)!r}: expected a table of keys")
    return Setup.from_mapping(keys | dict(overrides or {}))


def _read_parallel(value: object) -> Any:
    """The table for a value such as ``"fsdp2:64"``; other values are returned for the setup to check."""
    strategy, colon, size = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not size.isdecimal() or len(size) > 18:
        return value
    return {"strategy": strategy, "world_size": int(size)}


def _check_parallel(parallel: object) -> None:
    accepted = ("strategy", "world_size")
    if not isinstance(parallel, Mapping):
        raise InputError(
            f"invalid parallel {parallel!r}: expected none, fsdp2:N or ddp:N (N ranks), "
            'or a table such as {strategy = "fsdp2", world_size = 64}'
        )
    for key in parallel:
        if key not in accepted:
            raise unknown("key of parallel", key, accepted)
    if parallel.get("strategy") not in PARALLEL_STRATEGIES:
        raise unknown("parallel strategy", parallel.get("strategy"), PARALLEL_STRATEGIES)
    _check_count("world_size", parallel.get("world_size"), MOST_RANKS)


def _check_count(key: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"invalid {key} {value!r}: expected a whole number above zero")
    if value > most:
        raise InputError(f"invalid {key} {value}: expected {most} at most")


def _check_plain(keys: Mapping[str, Any]) -> None:
    for key, value in keys.items():
        try:
            check_plain(value)
        except ValueError as error:
            raise InputError(f"invalid {key}: {error}") from error
