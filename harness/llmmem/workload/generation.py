"""Greedy generation like transformers' ``generate``, but without stopping criteria."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from llmmem.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache

    from llmmem.setups import Setup
    from llmmem.workload.build import Built

__all__ = ["Generation"]

# The names of the cache argument: since transformers 5.24, before, and Mamba's before.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
# If the cache has its newest name, PEFT up to this release repeats learned prompts before every token.
_PEFT_WITHOUT_CACHE = Version("0.21.2")


class Generation:
    """A batch of sequences without padding that grow, greedily, token by token.

    Cache, masks and positions are those of transformers' own ``generate``. A decoder-only model starts with
    the prompt; the decoder of an encoder-decoder model starts with its start token and the encoded prompt.

    Args:
        setup: A setup with mode ``generate``. Prompts have ``seq_len`` tokens, and a static cache has room
            for ``new_tokens`` more.
        built: The model of the setup.

    Attributes:
        tokens: [B, T]: the input of the decoder so far, and the tokens chosen last.

    Raises:
        UnsupportedError: The model or its adapter cannot generate here.
    """

    def __init__(self, setup: Setup, built: Built) -> None:
        # The adapter prepares the inputs; the model inside is called with them.
        self._outer: Any = built.model
        self._model: Any = getattr(built.model, "get_base_model", lambda: built.model)()
        self._config: Any = built.config
        self._setup = setup
        self.tokens = torch.empty(0, dtype=torch.long)
        self._inputs: dict[str, Any] = {}  # inputs of every forward pass, in addition to the tokens
        self._given = inspect.signature(self._model.forward).parameters
        self._cache_name = self._find_cache()
        self._check_prompts()

    def prefill(self, prompts: Tensor) -> None:
        """Process the prompts [B, S] and choose the next tokens."""
        self._inputs = {"use_cache": True, self._cache_name: self._new_cache()}
        if "logits_to_keep" in self._given:
            self._inputs["logits_to_keep"] = 1
        if self._config.is_encoder_decoder:
            mask = torch.ones_like(prompts)
            encoded = self._model.get_encoder()(
                input_ids=prompts, attention_mask=mask, return_dict=True
            )
            self._inputs |= {"attention_mask": mask, "encoder_outputs": encoded}
            self.tokens = torch.full_like(prompts[:, :1], self._config.decoder_start_token_id or 0)
        else:
            self.tokens = prompts
            if "position_ids" in self._given:
                positions = torch.arange(prompts.shape[1], device=prompts.device)
                self._inputs["position_ids"] = positions.expand_as(prompts).contiguous()
        self._extend(is_first_iteration=True)

    def decode(self, tokens: int) -> None:
        """Process the tokens chosen last and choose the next ones, `tokens` times."""
        # As in `generate`: with few tokens, experts are computed differently.
        with self._model._optimize_model_for_decode():
            for _ in range(tokens):
                self._extend(next_sequence_length=1)

    def _extend(self, **how: Any) -> None:
        inputs = self._outer.prepare_inputs_for_generation(self.tokens, **self._inputs, **how)
        self._inputs[self._cache_name] = inputs[
            self._cache_name
        ]  # learned prefixes create a new cache
        logits = self._model(**inputs, return_dict=True).logits
        del inputs
        # Kept until the next iteration, as in `generate`.
        self._scores = logits[:, -1].to(torch.float32, copy=True)
        chosen = self._scores.argmax(-1, keepdim=True)
        del logits
        self.tokens = torch.cat([self.tokens, chosen], dim=-1)
        if (positions := self._inputs.get("position_ids")) is not None:
            self._inputs["position_ids"] = torch.cat([positions, positions[:, -1:] + 1], dim=-1)

    def _new_cache(self) -> Cache:
        if not self._config.is_encoder_decoder:
            return self._cache_for(self._setup.seq_len + self._new_tokens)
        return EncoderDecoderCache(
            self._cache_for(1 + self._new_tokens), self._cache_for(self._setup.seq_len)
        )

    def _cache_for(self, tokens: int) -> Cache:
        config = self._config.get_text_config(decoder=True)
        if self._setup.kv_cache == "static":
            return StaticCache(config=config, max_cache_len=tokens)
        return DynamicCache(config=config)

    @property
    def _new_tokens(self) -> int:
        return self._setup.new_tokens or 0

    def _find_cache(self) -> str:
        for name in _CACHE_NAMES:
            if name in self._given:
                return name
        raise UnsupportedError(
            f"mode 'generate' is not built for {self._config.model_type}: "
            "it takes none of transformers' caches; use mode 'forward'"
        )

    def _check_prompts(self) -> None:
        adapter = getattr(self._outer, "active_peft_config", None)
        if adapter is None or not adapter.is_prompt_learning:
            return
        kind = adapter.peft_type.value
        if self._config.is_encoder_decoder:
            raise UnsupportedError(
                f"mode 'generate' with {kind} is not built for a model with an encoder"
            )
        if self._setup.kv_cache == "static":
            raise UnsupportedError(
                f"{kind} adds entries to the cache, for which a static cache has no room: "
                "use kv_cache 'dynamic'"
            )
        if (
            self._cache_name == "cache"
            and (peft := Version(version("peft"))) <= _PEFT_WITHOUT_CACHE
        ):
            raise UnsupportedError(
                f"mode 'generate' with {kind}: PEFT {peft} looks for the cache under the name "
                "that transformers gave it before 5.24; use an older transformers or a newer PEFT"
            )
