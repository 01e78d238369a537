"""Closed forms: what people compute on paper from a parameter count, in bytes.

They ignore activations, kernels and fragmentation. Next to a trace or a run, they show how far off such
arithmetic is.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from llmmem.catalogue.optimizers import OPTIMIZERS
from llmmem.errors import UnsupportedError
from llmmem.results import Rules
from llmmem.workload.quantization import backend_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PretrainedConfig

    from llmmem.setups import Setup

__all__ = [
    "BYTES_PER_PARAMETER",
    "accelerate_table",
    "inference_bytes",
    "kv_cache_bytes",
    "lora_bytes",
    "optimizer_values",
    "quantization_constants_bytes",
    "rank_bytes",
    "rules",
    "training_bytes",
]

BYTES_PER_PARAMETER: Mapping[str, Fraction] = {
    "float32": Fraction(4),
    "bfloat16": Fraction(2),
    "float16": Fraction(2),
}
INFERENCE_OVERHEAD = Fraction(12, 10)
# Parameters that share a quantization constant, and constants that share one of their own.
BLOCK = 64
NESTED_BLOCK = 256


def inference_bytes(parameters: int, bytes_per_parameter: Fraction) -> int:
    """Weights plus 20%: N x M x 1.2.

    Source: "Transformer Math 101" (EleutherAI, 2023), which puts the overhead of inference at up to
    20 % of the weights.
    """
    return int(parameters * bytes_per_parameter * INFERENCE_OVERHEAD)


def training_bytes(parameters: int, bytes_per_parameter: Fraction, values: Fraction) -> int:
    """Weights, gradients and optimizer values, all of one size: N x M x (1 + 1 + k).

    Source: "Transformer Math 101" (EleutherAI, 2023), without activations and master weights.
    """
    return int(parameters * bytes_per_parameter * (2 + values))


def lora_bytes(
    parameters: int,
    bytes_per_parameter: Fraction,
    trainable: int,
    bytes_per_trainable: Fraction,
    values: Fraction,
) -> int:
    """A frozen base and a trained adapter: N x M + T x M_adapter x (2 + k).

    Source: LoRA (Hu et al., 2021, arXiv:2106.09685): only the adapter has gradients and optimizer
    values. With a 4-bit base, QLoRA (Dettmers et al., 2023, arXiv:2305.14314): M = 0.5 and
    `quantization_constants_bytes`.
    """
    return int(parameters * bytes_per_parameter + trainable * bytes_per_trainable * (2 + values))


def quantization_constants_bytes(parameters: int, is_double: bool) -> int:
    """Scales of a 4-bit base: one fp32 for 64 parameters, or 8 bit and one fp32 for 256 of them.

    Source: QLoRA (arXiv:2305.14314), section 3: 0.5 and 0.127 bits a parameter.
    """
    constants = Fraction(parameters, BLOCK)
    return int(constants * (1 + Fraction(4, NESTED_BLOCK)) if is_double else constants * 4)


def kv_cache_bytes(
    layers: int, heads: int, head_dim: int, tokens: int, batch: int, bytes_per_value: Fraction
) -> int:
    """Keys and values of all layers: 2 x layers x KV heads x head dim x tokens x batch x bytes.

    Source: "Transformer Inference Arithmetic" (kipply, 2022).
    """
    return int(2 * layers * heads * head_dim * tokens * batch * bytes_per_value)


def rank_bytes(whole: int, ranks: int) -> int:
    """The share of one rank if weights, gradients and optimizer values are all sharded.

    Source: ZeRO (Rajbhandari et al., 2019, arXiv:1910.02054), stage 3, which FSDP2 is one form of.
    """
    return whole // ranks


def optimizer_values(setup: Setup, bytes_per_parameter: Fraction) -> Fraction | None:
    """k: the optimizer state per parameter, in units of the parameter's size.

    ``None`` if there is no rule for the optimizer (`llmmem.catalogue.optimizers`).
    """
    state = OPTIMIZERS[setup.optimizer].state if setup.optimizer else None
    if state is None:
        return None
    kept = state.bytes_per_parameter(bytes_per_parameter, setup.optimizer_args or {})
    return kept / bytes_per_parameter


def accelerate_table(model: nn.Module) -> dict[str, dict[str, int]]:
    """The figures that ``accelerate estimate-memory`` prints for a model, in bytes, by dtype.

    Largest layer, total and, for float32 and float16, training with Adam: four times the total.

    Source: accelerate, ``commands/estimate.py`` and ``utils/modeling.py``, whose own code counts.
    """
    from accelerate.utils.modeling import calculate_maximum_sizes

    total, (largest, _) = calculate_maximum_sizes(model)
    table = {}
    for dtype, divisor in (("float32", 1), ("float16", 2), ("int8", 4), ("int4", 8)):
        table[dtype] = {"largest_layer": largest // divisor, "total": total // divisor}
        if divisor <= 2:
            table[dtype]["training_adam"] = 4 * total // divisor
    return table


def rules(setup: Setup) -> Rules:
    """All forms that apply to a setup; parameters are counted on the real model, without memory.

    Raises:
        InputError: The model, its config or the adapter is not valid.
        UnsupportedError: The adapter cannot be built here.
    """
    from llmmem.workload.build import skeleton

    model = skeleton(replace(setup, dtype="float32", attention=None))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    peak, formula = _peak(setup, parameters, model.config)
    table = {
        f"accelerate, with head, {dtype}": row for dtype, row in accelerate_table(model).items()
    }
    headless = accelerate_table(_as_accelerate_loads(model.config))
    table |= {f"accelerate, without head, {dtype}": row for dtype, row in headless.items()}
    return Rules(peak, formula, table)


def _peak(setup: Setup, parameters: int, config: PretrainedConfig) -> tuple[int | None, str]:
    """The closed form for the setup's mode, method and ranks: its value and its text."""
    whole, formula = _whole_peak(setup, parameters, config)
    if whole is None or setup.parallel is None or setup.strategy != "fsdp2":
        return whole, formula
    ranks = setup.parallel["world_size"]
    return rank_bytes(whole, ranks), f"({formula}) / {ranks} ranks"


def _whole_peak(setup: Setup, parameters: int, config: PretrainedConfig) -> tuple[int | None, str]:
    """The closed form for the setup's mode and method on a single GPU: its value and its text."""
    stored = BYTES_PER_PARAMETER[setup.dtype]
    if setup.is_quantized:
        stored = backend_of(setup).bytes_per_parameter(setup)
    if not setup.is_train:
        return _inference(setup, parameters, stored, config)
    if setup.has_adapter:
        return _adapter_training(setup, parameters, stored)
    values = optimizer_values(setup, stored)
    if values is None:
        return None, f"no rule for optimizer {setup.optimizer}"
    peak = training_bytes(parameters, stored, values)
    return peak, f"{parameters:,} x {_number(stored)} B x (1 + 1 + {_number(values)})"


def _inference(
    setup: Setup, parameters: int, stored: Fraction, config: PretrainedConfig
) -> tuple[int, str]:
    peak = inference_bytes(parameters, stored)
    formula = f"{parameters:,} x {_number(stored)} B x 1.2"
    if setup.mode == "generate":
        cache = _kv_cache(setup, config)
        return peak + cache, f"{formula} + {cache:,} B of KV cache"
    return peak, formula


def _kv_cache(setup: Setup, config: PretrainedConfig) -> int:
    text: Any = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return kv_cache_bytes(
        text.num_hidden_layers,
        getattr(text, "num_key_value_heads", None) or heads,
        head_dim,
        setup.seq_len + (setup.new_tokens or 0),
        setup.batch_size,
        BYTES_PER_PARAMETER[setup.dtype],
    )


def _adapter_training(setup: Setup, parameters: int, stored: Fraction) -> tuple[int | None, str]:
    # PEFT trains adapters in float32 on a 16-bit base, unless told otherwise.
    adapter = BYTES_PER_PARAMETER[setup.adapter_dtype or "float32"]
    values = optimizer_values(setup, adapter)
    if values is None:
        return None, f"no rule for optimizer {setup.optimizer}"
    trainable = _trainable(setup)
    peak = lora_bytes(parameters, stored, trainable, adapter, values)
    formula = (
        f"{parameters:,} x {_number(stored)} B + "
        f"{trainable:,} x {_number(adapter)} B x (2 + {_number(values)})"
    )
    is_nested = backend_of(setup).has_nested_constants(setup) if setup.is_quantized else None
    if is_nested is None:
        return peak, formula
    constants = quantization_constants_bytes(parameters, is_nested)
    return peak + constants, f"{formula} + {constants:,} B of quantization constants"


def _trainable(setup: Setup) -> int:
    """Parameters that the adapter trains, counted on PEFT's own model.

    Raises:
        UnsupportedError: PEFT cannot create the adapter without the values of the weights.
    """
    import torch

    from llmmem.workload.build import build

    # The adapter is the same on a base that is not quantized, which needs no bitsandbytes.
    plain = replace(
        setup,
        quantization="none",
        double_quant=None,
        kbit_prepare=None,
        gradient_checkpointing=False,
        parallel=None,
    )
    try:
        built = build(plain, torch.device("meta"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UnsupportedError(
            f"no rule for this adapter, which starts from values of the weights: {reason}"
        ) from error
    return sum(parameter.numel() for parameter in built.trainable)


def _as_accelerate_loads(config: PretrainedConfig) -> nn.Module:
    """The model without its head, as ``AutoModel`` makes it, in float32."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
    return model


def _number(value: Fraction) -> str:
    return f"{float(value):g}"
