"""The keys of a setup as options of a command."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import click

from llmmem.documents import read_document
from llmmem.errors import InputError
from llmmem.setups import (
    ADAPTER_DTYPES,
    DTYPES,
    METHODS,
    MODES,
    QUANTIZATIONS,
    TASKS,
    Setup,
    load_setup,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HELP", "read_setup", "setup_options"]

HELP: Mapping[str, str] = {
    "model": "A hub id, a directory or a config.json, instead of the model in the setup file.",
    "task": f"{', '.join(TASKS)}.",
    "num_labels": "Number of classes, for task sequence-classification.",
    "mode": f"{', '.join(MODES)}.",
    "method": f"{', '.join(METHODS)}.",
    "quantization": f"{', '.join(QUANTIZATIONS)}, or a quantization_config of transformers.",
    "double_quant": "Quantize the quantization constants of a 4-bit base too.",
    "adapter": 'none, or a PEFT config such as {peft_type = "LORA", r = 8}.',
    "adapter_dtype": f"{', '.join(ADAPTER_DTYPES)}.",
    "kbit_prepare": "Call peft.prepare_model_for_kbit_training on a quantized base.",
    "dtype": f"Of the weights: {', '.join(DTYPES)}.",
    "autocast": "none, bfloat16, float16.",
    "optimizer": "A name of transformers' OptimizerNames, such as adamw_torch.",
    "optimizer_args": "Arguments of the optimizer, such as {momentum = 0.9}.",
    "batch_size": "Sequences in a micro-batch.",
    "seq_len": "Tokens in a sequence.",
    "gradient_accumulation_steps": "Micro-batches before an optimizer step.",
    "max_grad_norm": "Clip gradients to this norm, or none.",
    "attention": "transformers' attention implementation, or none for the model's default.",
    "gradient_checkpointing": "Recompute activations in the backward pass.",
    "new_tokens": "Tokens to generate, in mode generate.",
    "kv_cache": "dynamic or static, in mode generate.",
    "steps": "Number of steps to run.",
    "allocator": "PYTORCH_ALLOC_CONF for the run.",
    "parallel": "none, fsdp2:N or ddp:N: run rank 0 of N ranks.",
}


Command = TypeVar("Command", bound="Callable[..., Any]")


def setup_options(command: Command) -> Command:
    """Add the argument MODEL | SETUP, as `source`, and an option for every setup key to a command.

    Options that are not set are ``None``. Pass all of them to `read_setup`.
    """
    hints = get_type_hints(Setup)
    for field in reversed(fields(Setup)):
        command = _option(field.name, hints[field.name])(command)
    return click.argument("source", metavar="MODEL | SETUP.toml")(command)


def read_setup(source: str, options: Mapping[str, Any]) -> Setup:
    """The setup of a command's argument and options.

    A .toml or .json file is a setup, and options take precedence over its keys. A JSON file with
    ``model_type`` is a model, and so is anything else.

    Raises:
        InputError: The file or the setup is not valid.
    """
    given = {key: value for key, value in options.items() if value is not None}
    path = Path(source)
    if path.suffix in (".toml", ".json") and not _is_model(path):
        return load_setup(path, given)
    if "model" in given:
        raise InputError(f"two models, {source!r} and {given['model']!r}: expected one")
    return Setup.from_mapping({"model": source} | given)


def _option(key: str, hint: Any) -> Callable[[Command], Command]:
    kinds = get_args(hint) or (hint,)
    name = f"--{key.replace('_', '-')}"
    if bool in kinds:
        return click.option(f"{name}/--no-{name[2:]}", key, default=None, help=HELP[key])
    types = [get_origin(kind) or kind for kind in kinds]
    metavar, read = next((_READERS[kind] for kind in types if kind in _READERS), ("TEXT", str))
    return click.option(name, key, type=_as_far_as_it_can(read), metavar=metavar, help=HELP[key])


def _as_far_as_it_can(read: Callable[[str], object]) -> Callable[[str], object]:
    """Leave what cannot be read as text, so that `Setup` says what it expects instead."""

    def value(text: str) -> object:
        try:
            return read(text)
        except ValueError:
            return text

    return value


def _table(text: str) -> object:
    """A table in TOML or JSON; ``ValueError`` if it is neither."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return tomllib.loads(f"table = {text}")["table"]
    raise ValueError(text)


_READERS: Mapping[Any, tuple[str, Callable[[str], object]]] = {
    int: ("N", int),
    float: ("X", float),
    Mapping: ("TABLE", _table),
}


def _is_model(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    try:
        document = read_document(path)
    except (OSError, ValueError):
        return path.name == "config.json"
    return isinstance(document, dict) and "model_type" in document
