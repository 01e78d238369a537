"""A setup made real on a torch device: config, weights, quantization, adapter, checkpointing.

All devices (``cuda``, ``cpu``, ``meta``) share one code path: the model is first created without storage,
then each tensor is allocated once, on its device, so that nothing is ever held twice. transformers, PEFT and
bitsandbytes run their own code wherever they make a decision.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import Field, dataclass, fields, is_dataclass
from inspect import isclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from llmmem.catalogue.models import find_model, nearest_models
from llmmem.documents import read_document
from llmmem.errors import InputError, UnsupportedError, unknown
from llmmem.workload.config_bounds import check_config
from llmmem.workload.parallel import create_shards, fully_shard_layers
from llmmem.workload.quantization import backend_of, constant_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.quantizers.base import HfQuantizer

    from llmmem.setups import Setup
    from llmmem.workload.quantization import QuantizationBackend

__all__ = [
    "Built",
    "build",
    "load_config",
    "local_config",
    "model_class",
    "quiet_libraries",
    "skeleton",
    "weight_tensors",
]

_LOUD_LIBRARIES = ("transformers", "huggingface_hub", "bitsandbytes", "peft", "accelerate")


@dataclass(frozen=True)
class _Task:
    """Names of a task: transformers' auto class, its table of classes by config, PEFT's type."""

    auto_class: str
    classes: str
    peft_type: str | None


_TASKS: Mapping[str, _Task] = {
    "causal-lm": _Task("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING", "CAUSAL_LM"),
    "masked-lm": _Task("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING", None),
    "seq2seq-lm": _Task(
        "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "SEQ_2_SEQ_LM"
    ),
    "sequence-classification": _Task(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        "SEQ_CLS",
    ),
}


@dataclass(frozen=True)
class Built:
    """The model of a setup, ready to run.

    Attributes:
        model: The model on its device, in train or eval mode: transformers' own, or the
            `PeftModel` around it.
        config: Its config.
        trainable: The parameters to pass to an optimizer.
    """

    model: nn.Module
    config: PretrainedConfig
    trainable: tuple[nn.Parameter, ...]


def build(
    setup: Setup,
    device: torch.device,
    *,
    mesh: DeviceMesh | None = None,
    move: Callable[[nn.Module, torch.device], None] | None = None,
) -> Built:
    """Create the model of a setup on a device.

    Each weight is created once, in the setup's dtype, on the device, tied weights shared. A linear
    layer is quantized while it moves from the host, one at a time. With FSDP2
    only this rank's shards are ever created.

    Args:
        setup: What to build.
        device: The device; ``meta`` has no storage.
        mesh: The mesh of ranks of a parallel setup (`llmmem.workload.parallel.rank_zero`).
        move: Quantizes one layer of the quantization's library, without storage, onto the device. The
            default is that of the backend (`llmmem.workload.quantization`). The ``meta`` device needs
            another one, because libraries do not quantize there.

    Raises:
        InputError: The model, its config or the adapter is not valid.
        UnsupportedError: The setup is valid but cannot be built here.
        torch.OutOfMemoryError: The device ran out of memory.
    """
    _check_supported(setup)
    with quiet_libraries():
        skeletal = skeleton(setup)
        adapter = _adapter_config(setup) if setup.has_adapter else None
        # Learned prompts use positions before those of the batch.
        _check_positions(skeletal, setup, getattr(adapter, "num_virtual_tokens", None) or 0)
        if setup.strategy == "fsdp2":
            assert mesh is not None, "fsdp2 needs the mesh of its ranks"
            model = _in_shards(skeletal, adapter, setup, device, mesh)
        else:
            model = _in_one_piece(skeletal, adapter, setup, device, move)
    trainable = tuple(p for p in model.parameters() if p.requires_grad)
    return Built(model, skeletal.config, trainable)


def load_config(setup: Setup) -> PretrainedConfig:
    """The config of the setup's model: from the catalogue, a directory, a file, or the hub.

    Raises:
        InputError: There is no such model, or its config is broken.
        UnsupportedError: The config describes a model that cannot be built.
    """
    from transformers import AutoConfig

    path = local_config(setup.model)
    named = Path(setup.model)
    if path is None and (named.suffix == ".json" or named.is_absolute()):
        raise InputError(f"cannot read model {setup.model!r}: no such file or directory")
    if path is not None:
        _check_local(path, setup.model)
    with quiet_libraries():
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                setup.model if path is None else str(path), trust_remote_code=False
            )
        except Exception as error:  # a config class may raise anything on a bad value
            raise _unreadable(setup.model, path is not None, error) from error
    if path is None:
        check_config(config.to_dict(), setup.model)
    if own := getattr(config, "quantization_config", None):
        method = own.get("quant_method") if isinstance(own, dict) else own.quant_method
        raise UnsupportedError(
            f"the weights of {setup.model!r} are stored quantized ({method}), which is not built "
            "here: take the model that they were made from, with a quantization of the setup"
        )
    if setup.num_labels is not None:
        config.num_labels = setup.num_labels
        if config.pad_token_id is None:
            # The heads on decoders look for the last token that is not padding.
            config.pad_token_id = 0
    return config


def _check_local(path: Path, model: str) -> None:
    """Check the numbers of a config before its class uses them."""
    file = path / "config.json" if path.is_dir() else path
    try:
        document = read_document(file)
    except (OSError, ValueError) as error:
        raise _unreadable(model, True, error) from error
    if isinstance(document, Mapping):
        check_config(document, model)


def local_config(model: str) -> Path | None:
    """The file or directory with the model's config; ``None`` for a model that only the hub has."""
    entry = find_model(model)
    path = entry.path if entry else Path(model)
    return path if _exists(path) else None


def model_class(setup: Setup) -> type[PreTrainedModel]:
    """Import and return the class of the setup's model for its task.

    Raises:
        InputError: As in `load_config`, or the model has no class for the task.
    """
    import transformers

    config = load_config(setup)
    _check_task(setup, config)
    classes = getattr(transformers, _TASKS[setup.task].classes)
    found: type[PreTrainedModel] = classes[type(config)]
    return found


def skeleton(setup: Setup) -> PreTrainedModel:
    """The setup's model without storage and without quantization or adapter.

    Parameters are on the ``meta`` device, buffers on the host with their values. It uses no device memory,
    and active dispatch modes do not see its creation.

    Raises:
        InputError: As in `load_config`, or the model has no class for the task, or its config describes a
            model that cannot exist.
        UnsupportedError: The attention implementation is not installed.
    """
    import transformers

    config = load_config(setup)
    _check_task(setup, config)
    auto_class = getattr(transformers, _TASKS[setup.task].auto_class)
    options = {} if setup.attention is None else {"attn_implementation": setup.attention}
    with quiet_libraries(), _disable_current_modes():
        try:
            with torch.device("meta"):
                model: PreTrainedModel = auto_class.from_config(
                    config, dtype=_torch_dtype(setup.dtype), trust_remote_code=False, **options
                )
        except ImportError as error:
            raise UnsupportedError(f"cannot build {setup.model!r}: {_one_line(error)}") from error
        except Exception as error:  # modelling code may raise anything on a bad config
            raise InputError(f"cannot build {setup.model!r}: {_one_line(error)}") from error
        _fill_buffers(model)
    return model


def weight_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors that the model holds: parameters, buffers and quantization constants."""
    yield from model.parameters()
    yield from constant_tensors(model)
    yield from model.buffers()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress warnings and log messages of libraries, except errors."""
    loggers = [logging.getLogger(name) for name in _LOUD_LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _in_one_piece(
    skeletal: PreTrainedModel,
    adapter: Any,
    setup: Setup,
    device: torch.device,
    move: Callable[[nn.Module, torch.device], None] | None,
) -> nn.Module:
    """The whole model on one device, from its skeleton."""
    if not setup.is_quantized:
        _create(skeletal, device, {})
        return _completed(skeletal, adapter, setup)
    backend = backend_of(setup)
    quantizer = _lay_out_quantized(skeletal, setup, backend)
    move = move or backend.move_to_device
    layers = filter(backend.is_quantized_layer, skeletal.modules())
    _create(skeletal, device, dict.fromkeys(layers, move))
    quantizer.postprocess_model(skeletal)
    return _completed(skeletal, adapter, setup)


def _in_shards(
    skeletal: PreTrainedModel,
    adapter: Any,
    setup: Setup,
    device: torch.device,
    mesh: DeviceMesh,
) -> nn.Module:
    """This rank's shards of the model, from its skeleton."""
    try:
        model = _completed(skeletal, adapter, setup)
    except (NotImplementedError, RuntimeError) as error:
        raise UnsupportedError(
            f"the adapter needs the weights of its base, which fsdp2 has only in shards: "
            f"{_one_line(error)}"
        ) from error
    fully_shard_layers(model, mesh)
    create_shards(model, device, _initialise)
    return model


def _completed(model: PreTrainedModel, adapter: Any, setup: Setup) -> nn.Module:
    """The model with its adapter (a PEFT config or none) and checkpointing, in the setup's mode."""
    wrapped = model if adapter is None else _with_adapter(model, adapter, setup)
    if setup.gradient_checkpointing:
        _enable_checkpointing(wrapped, setup)
    return wrapped.train(setup.is_train)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a file name
        return False


def _check_supported(setup: Setup) -> None:
    if setup.strategy == "fsdp2" and setup.is_quantized:
        raise UnsupportedError(
            f"quantization {setup.quantization!r} and fsdp2 do not go together: FSDP2 gathers "
            "parameters in the dtype of the computation, and quantized ones are bytes; "
            "take method lora, or strategy ddp"
        )
    if setup.strategy == "fsdp2" and setup.has_adapter and setup.mode == "generate":
        raise UnsupportedError(
            "mode 'generate' with an adapter is not built for fsdp2: take strategy ddp, or the "
            "model without the adapter"
        )
    if setup.is_quantized:
        backend_of(setup)


def _check_task(setup: Setup, config: PretrainedConfig) -> None:
    import transformers

    having = [
        name for name, task in _TASKS.items() if type(config) in getattr(transformers, task.classes)
    ]
    if setup.task not in having:
        raise InputError(
            f"model {setup.model!r} ({config.model_type}) has no class for task {setup.task!r} "
            f"(it has: {', '.join(having) or 'none that a setup can name'})"
        )
    if setup.task == "sequence-classification" and config.is_encoder_decoder:
        raise UnsupportedError(
            f"sequence classification with {setup.model!r} is not built: the heads of "
            "encoder-decoder models search the ids for their end-of-sequence tokens"
        )


def _check_positions(model: PreTrainedModel, setup: Setup, virtual_tokens: int) -> None:
    """Check that position tables have a row for each token: otherwise kernels fail on a GPU."""
    new_tokens = setup.new_tokens or 0
    tokens = setup.seq_len + virtual_tokens + new_tokens
    if model.config.is_encoder_decoder:  # its decoder begins with a token of its own
        tokens = max(setup.seq_len + virtual_tokens, 1 + new_tokens)
    for rows in _position_tables(model):
        if tokens > rows:
            taken = f", of which the adapter takes {virtual_tokens}" if virtual_tokens else ""
            taken += f", and new_tokens is {new_tokens}" if new_tokens else ""
            raise InputError(
                f"invalid seq_len {setup.seq_len}: {setup.model!r} has {rows} positions{taken}"
            )


def _position_tables(model: PreTrainedModel) -> Iterator[int]:
    """The number of usable rows of each position table."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("position_embeddings", "embed_positions", "wpe") and isinstance(
            module, nn.Embedding
        ):
            # The first rows are reserved for padding (RoBERTa) or by an offset (OPT, BART).
            padding = -1 if module.padding_idx is None else module.padding_idx
            yield module.num_embeddings - max(getattr(module, "offset", 0), padding + 1)
    for name, buffer in model.named_buffers():
        if name.endswith(".embed_positions"):  # GPT-J: sines and cosines
            yield buffer.shape[0]


def _lay_out_quantized(model: Any, setup: Setup, backend: QuantizationBackend) -> HfQuantizer:
    """Replace the linear layers that transformers would quantize, still without storage."""
    from transformers.quantizers.auto import AutoHfQuantizer

    config = backend.config(setup)
    quantizer: HfQuantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    if setup.task == "sequence-classification" and setup.has_adapter:
        # PEFT trains the head, so it cannot be quantized; transformers' list may not contain it.
        kept = quantizer.get_modules_to_not_convert(model)
        backend.keep_unquantized(config, [*kept, "classifier", "score"])
    default = torch.get_default_dtype()
    torch.set_default_dtype(_torch_dtype(setup.dtype))
    try:
        with _disable_current_modes():
            quantizer.preprocess_model(model, device_map=None)
    finally:
        torch.set_default_dtype(default)
    model.hf_quantizer = quantizer
    return quantizer


def _fill_buffers(model: PreTrainedModel) -> None:
    """Compute the values of buffers (positions, rotary frequencies) on the host.

    Buffers created on the meta device have no values. transformers computes them when it initialises weights,
    and skips weights that are marked as loaded.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()  # type: ignore[no-untyped-call]


@torch.no_grad()
def _create(
    model: PreTrainedModel,
    device: torch.device,
    quantized: Mapping[nn.Module, Callable[[nn.Module, torch.device], None]],
) -> None:
    """Allocate every parameter of a skeleton on the device, once, and move the buffers.

    Args:
        model: The skeleton.
        device: The device.
        quantized: The functions that create the quantized layers, by layer.
    """
    # Keyed by the parameters of the skeleton, in which tied weights are the same object.
    created: dict[torch.Tensor, nn.Parameter] = {}
    for module in model.modules():
        if module in quantized:
            quantized[module](module, device)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in created:
                created[parameter] = nn.Parameter(
                    torch.empty_like(parameter, device=device), parameter.requires_grad
                )
                _initialise(created[parameter], name)
            setattr(module, name, created[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _initialise(parameter: torch.Tensor, name: str) -> None:
    """Fill a parameter in place with plausible values; the initialisers of some models allocate."""
    if parameter.dim() > 1:
        parameter.normal_(std=0.02)
    elif name.endswith("bias"):
        parameter.zero_()
    else:  # the scale of a norm
        parameter.fill_(1)


def _with_adapter(model: PreTrainedModel, config: Any, setup: Setup) -> nn.Module:
    import peft

    if setup.kbit_prepare:
        # Checkpointing is switched on later, in the same way for every setup.
        peft.prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            model, use_gradient_checkpointing=False
        )
    if setup.mode != "generate" and hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # as in the batch; X-LoRA rejects models that use a cache
    try:
        with _zeros_for_draws(model, config):
            wrapped: nn.Module = peft.get_peft_model(model, config)
    except (ImportError, NotImplementedError) as error:
        raise UnsupportedError(f"cannot build the adapter: {_one_line(error)}") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"the adapter does not fit the model: {_one_line(error)}") from error
    if setup.adapter_dtype is not None:
        dtype = _torch_dtype(setup.adapter_dtype)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return wrapped


def _zeros_for_draws(model: PreTrainedModel, config: Any) -> AbstractContextManager[None]:
    """If no kernel runs, replace the random numbers of LoRA on the host by zeros, which is much faster.

    PEFT draws each matrix twice, and nothing reads the values. (The skeleton of a sharded model has no values
    either; its shards are initialised later.)
    """
    from llmmem import simgpu

    is_drawn = config.peft_type == "LORA" and config.init_lora_weights is True
    runs_kernels = simgpu.active() is None and not any(p.is_meta for p in model.parameters())
    if not is_drawn or runs_kernels:
        return nullcontext()
    return _zeros_on_host()


@contextmanager
def _zeros_on_host() -> Iterator[None]:
    draw = nn.init.kaiming_uniform_

    def zeros(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if tensor.device.type != "cpu":
            return draw(tensor, *args, **kwargs)
        with torch.no_grad():
            return tensor.zero_()

    nn.init.kaiming_uniform_ = zeros
    try:
        yield
    finally:
        nn.init.kaiming_uniform_ = draw


def _adapter_config(setup: Setup) -> Any:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    table = dict(setup.adapter) if isinstance(setup.adapter, Mapping) else {}
    types = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = table.pop("peft_type")
    if name not in types:
        raise unknown("peft_type", name, sorted(types))
    accepted = {field.name: field for field in fields(types[name]) if field.init}
    for key in table:
        if key not in accepted:
            raise unknown(f"{name} adapter key", key, list(accepted))
    try:
        values = {key: _nested(accepted[key], value) for key, value in table.items()}
        return types[name](**{"task_type": _TASKS[setup.task].peft_type} | values)
    except ImportError as error:
        raise UnsupportedError(f"cannot build the adapter: {_one_line(error)}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"invalid {name} adapter: {_one_line(error)}") from error


def _nested(field: Field[Any], value: Any) -> Any:
    """Convert a table to the dataclass of the field; PEFT converts optional ones itself."""
    made_by: Any = field.default_factory
    if isinstance(value, Mapping) and isclass(made_by) and is_dataclass(made_by):
        return made_by(**value)
    return value


def _enable_checkpointing(model: Any, setup: Setup) -> None:
    given = setup.gradient_checkpointing
    arguments = dict(given) if isinstance(given, Mapping) else {"use_reentrant": False}
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    except ValueError as error:
        raise UnsupportedError(f"no gradient checkpointing: {_one_line(error)}") from error
    if setup.has_adapter:
        model.enable_input_require_grads()


def _unreadable(model: str, local: bool, error: Exception) -> InputError:
    if local:
        return InputError(f"cannot read the config of {model!r}: {_one_line(error)}")
    near = nearest_models(model)
    reason = _one_line(error).split(". ")[0]  # the rest is advice on settings of the hub
    hint = f"; near it in the catalogue: {', '.join(near)}" if near else ""
    return InputError(
        f"unknown model {model!r}{hint} (`llmmem models` lists the catalogue, whose models need "
        f"no network; a directory and a config.json are taken too; the hub: {reason})"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
