"""The optimizers of transformers' Trainer: one entry each, from which all else derives.

A new optimizer is one entry of :data:`OPTIMIZERS`: what a setup accepts, how it is created, which
library it needs and what the closed-form rules count of it all come from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OPTIMIZERS", "OptimizerEntry", "OptimizerState"]

FLOAT32 = Fraction(4)
BYTE = Fraction(1)
HALF_A_BYTE = Fraction(1, 2)


@dataclass(frozen=True)
class OptimizerState:
    """The values that an optimizer keeps on the device for each parameter.

    Scales of quantized states, step counters and the float32 states of small tensors are left out.

    Attributes:
        values: How many.
        bytes_per_value: Their size; ``None`` if they have the parameter's dtype.
        added_by: How many more an argument adds, where it is set.
    """

    values: int
    bytes_per_value: Fraction | None = None
    added_by: Mapping[str, int] = field(default_factory=dict)

    def bytes_per_parameter(self, parameter: Fraction, arguments: Mapping[str, Any]) -> Fraction:
        """Bytes for each parameter.

        Args:
            parameter: Bytes of the parameter itself.
            arguments: Arguments of the optimizer that were given.
        """
        added = sum(more for name, more in self.added_by.items() if arguments.get(name))
        return (self.values + added) * (self.bytes_per_value or parameter)


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer by the name that the Trainer gives it.

    Attributes:
        module: Where its class is.
        class_name: The name of the class.
        arguments: The arguments that make it the optimizer of this name.
        state: What it keeps for each parameter; ``None`` if no rule tells.
        refused: Why llmmem does not build it; empty if it does.
    """

    module: str = ""
    class_name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    state: OptimizerState | None = None
    refused: str = ""

    @property
    def package(self) -> str:
        """The package that it is imported from."""
        return self.module.partition(".")[0]


def _torch(name: str, state: OptimizerState, **arguments: Any) -> OptimizerEntry:
    return OptimizerEntry("torch.optim", name, arguments, state)


def _bitsandbytes(name: str, bits: int, values: int, **arguments: bool) -> OptimizerEntry:
    state = OptimizerState(values, BYTE if bits == 8 else FLOAT32)
    return OptimizerEntry("bitsandbytes.optim", name, {"optim_bits": bits, **arguments}, state)


def _torchao(name: str, bytes_per_value: Fraction) -> OptimizerEntry:
    state = OptimizerState(2, bytes_per_value)
    return OptimizerEntry("torchao.optim", name, {"block_size": 256}, state)


def _schedule_free(name: str, values: int) -> OptimizerEntry:
    return OptimizerEntry("schedulefree", name, state=OptimizerState(values))


def _refused(reason: str) -> OptimizerEntry:
    return OptimizerEntry(refused=reason)


_ADAM = OptimizerState(2, added_by={"amsgrad": 1})
_TARGETS = _refused("it needs target modules, which a setup cannot name")
_IN_BACKWARD = _refused("it updates weights during the backward pass, in a loop of its own")

#: By name. Classes and arguments are those of ``transformers/trainer_optimizer.py`` (5.23), which
#: cannot be asked without importing all of PEFT and bitsandbytes; tests hold this table to it, and
#: the states to what the optimizers keep.
OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    "adamw_torch": _torch("AdamW", _ADAM),
    "adamw_torch_fused": _torch("AdamW", _ADAM, fused=True),
    "adamw_torch_xla": _refused("it runs on XLA devices only"),
    "adamw_torch_npu_fused": _refused("it runs on NPU devices only"),
    "adafactor": OptimizerEntry(  # its state depends on the shapes: a row and a column of each
        "transformers.optimization",
        "Adafactor",
        {"lr": 5e-5, "scale_parameter": False, "relative_step": False},
    ),
    "adamw_anyprecision": _refused("its library, torchdistx, is not maintained"),
    "adamw_torch_4bit": _torchao("AdamW4bit", HALF_A_BYTE),
    "adamw_torch_8bit": _torchao("AdamW8bit", BYTE),
    "ademamix": _bitsandbytes("AdEMAMix", 32, 3, is_paged=False),
    "sgd": _torch("SGD", OptimizerState(0, added_by={"momentum": 1})),
    "adagrad": _torch("Adagrad", OptimizerState(1)),
    "adamw_bnb_8bit": _bitsandbytes("AdamW", 8, 2, is_paged=False),
    "adamw_8bit": _bitsandbytes("AdamW", 8, 2, is_paged=False),
    "ademamix_8bit": _bitsandbytes("AdEMAMix", 8, 3, is_paged=False),
    "lion_8bit": _bitsandbytes("Lion", 8, 1, is_paged=False),
    "lion_32bit": _bitsandbytes("Lion", 32, 1, is_paged=False),
    "paged_adamw_32bit": _bitsandbytes("AdamW", 32, 2, is_paged=True),
    "paged_adamw_8bit": _bitsandbytes("AdamW", 8, 2, is_paged=True),
    "paged_ademamix_32bit": _bitsandbytes("AdEMAMix", 32, 3, is_paged=True),
    "paged_ademamix_8bit": _bitsandbytes("AdEMAMix", 8, 3, is_paged=True),
    "paged_lion_32bit": _bitsandbytes("Lion", 32, 1, is_paged=True),
    "paged_lion_8bit": _bitsandbytes("Lion", 8, 1, is_paged=True),
    "rmsprop": _torch("RMSprop", OptimizerState(1, added_by={"momentum": 1, "centered": 1})),
    "rmsprop_bnb": _bitsandbytes("RMSprop", 32, 1),
    "rmsprop_bnb_8bit": _bitsandbytes("RMSprop", 8, 1),
    "rmsprop_bnb_32bit": _bitsandbytes("RMSprop", 32, 1),
    "galore_adamw": _TARGETS,
    "galore_adamw_8bit": _TARGETS,
    "galore_adafactor": _TARGETS,
    "galore_adamw_layerwise": _TARGETS,
    "galore_adamw_8bit_layerwise": _TARGETS,
    "galore_adafactor_layerwise": _TARGETS,
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    # It keeps its state on the host.
    "grokadamw": OptimizerEntry("grokadamw", "GrokAdamW", state=OptimizerState(0)),
    "schedule_free_radam": _schedule_free("RAdamScheduleFree", 2),
    "schedule_free_adamw": _schedule_free("AdamWScheduleFree", 2),
    "schedule_free_sgd": _schedule_free("SGDScheduleFree", 1),
    "apollo_adamw": _TARGETS,
    "apollo_adamw_layerwise": _TARGETS,
    # Whether it keeps a compensation too depends on each parameter's dtype.
    "stable_adamw": OptimizerEntry("optimi", "StableAdamW", {"lr": 5e-5}),
}
