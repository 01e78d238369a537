"""The tokens of our own loop are those of transformers' generate."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llmmem.errors import InputError, UnsupportedError
from llmmem.setups import Setup
from llmmem.workload.build import build, quiet_libraries
from llmmem.workload.generation import Generation
from llmmem.workload.step import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

CPU = torch.device("cpu")
META = torch.device("meta")
NEW_TOKENS = 5


class Notes:
    """Notes the phases, the tokens that the model is given, and the logits that it makes."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.tokens: list[int] = []
        self.logits: list[list[int]] = []

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.phases.append(name)
        yield

    def watch(self, model: torch.nn.Module) -> None:
        def note(_module: Any, _arguments: Any, given: dict[str, Any], output: Any) -> None:
            self.tokens.append(given["input_ids"].shape[1])
            self.logits.append(list(output.logits.shape))

        model.register_forward_hook(note, with_kwargs=True)

    def label(self, component: str, tensors: Iterable[torch.Tensor]) -> None:
        assert component == "weights"
        assert list(tensors)


def setup_of(path: str, **keys: Any) -> Setup:
    given = {"seq_len": 8, "batch_size": 2, "dtype": "float32", "new_tokens": NEW_TOKENS}
    return Setup(model=path, mode="generate", **{**given, **keys})


def prompts(setup: Setup) -> torch.Tensor:
    return torch.randint(3, 200, (setup.batch_size, setup.seq_len))


def generated(setup: Setup) -> tuple[list[Any], list[Any]]:
    """Tokens by our loop and by transformers, the first chosen by the prefill."""
    torch.manual_seed(0)
    with quiet_libraries(), torch.no_grad():
        built = build(setup, CPU)
        ids = prompts(setup)
        ours = Generation(setup, built)
        ours.prefill(ids)
        ours.decode(NEW_TOKENS)
        theirs = built.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS + 1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return ours.tokens.tolist(), theirs.tolist()


@pytest.mark.parametrize("kv_cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("llama", {}),
        ("llama", {"method": "lora"}),
        ("gpt2", {}),
        ("t5", {"task": "seq2seq-lm"}),
        ("t5", {"task": "seq2seq-lm", "method": "lora"}),
    ],
)
def test_the_tokens_are_those_of_transformers(
    tiny_model: Callable[..., str], model_type: str, keys: dict[str, Any], kv_cache: str
) -> None:
    ours, theirs = generated(setup_of(tiny_model(model_type), kv_cache=kv_cache, **keys))
    assert ours == theirs


@pytest.mark.usefixtures("peft_finds_the_cache")
@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_learned_prompts_come_before_the_tokens(
    tiny_model: Callable[..., str], peft_type: str
) -> None:
    adapter = {"peft_type": peft_type, "num_virtual_tokens": 3}
    ours, theirs = generated(setup_of(tiny_model("llama"), adapter=adapter))
    assert ours == theirs


@pytest.mark.usefixtures("peft_loses_the_cache")
def test_learned_prompts_are_refused_where_peft_would_repeat_them(
    tiny_model: Callable[..., str],
) -> None:
    adapter = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}
    with pytest.raises(UnsupportedError, match=r"PEFT \S+ looks for the cache under the name"):
        generated(setup_of(tiny_model("llama"), adapter=adapter))


@pytest.mark.parametrize(
    ("model_type", "keys", "reason"),
    [
        ("llama", {"kv_cache": "static"}, "kv_cache 'dynamic'"),
        ("t5", {"task": "seq2seq-lm"}, "model with an encoder"),
    ],
)
def test_learned_prompts_that_have_no_room_are_refused(
    tiny_model: Callable[..., str], model_type: str, keys: dict[str, Any], reason: str
) -> None:
    adapter = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}
    setup = setup_of(tiny_model(model_type), adapter=adapter, **keys)
    with pytest.raises(UnsupportedError, match=reason):
        execute(setup, CPU, Notes())


def test_a_generating_run_prefills_and_decodes_in_each_step(
    tiny_model: Callable[..., str],
) -> None:
    notes = Notes()
    execute(setup_of(tiny_model("llama"), steps=2), CPU, notes)
    assert notes.phases == ["load", *["prefill", "decode"] * 2]
    assert notes.tokens == [8, *[1] * NEW_TOKENS] * 2
    # Only the last token's logits are ever made, of the prompt too.
    assert notes.logits == [[2, 1, 256]] * 2 * (1 + NEW_TOKENS)


def test_new_tokens_need_positions_too(tiny_model: Callable[..., str]) -> None:
    path = tiny_model("gpt2")
    build(setup_of(path, seq_len=60, new_tokens=4), META)
    with pytest.raises(InputError, match=r"seq_len 60.* 64 positions, and new_tokens is 5"):
        build(setup_of(path, seq_len=60, new_tokens=5), META)


def test_a_model_without_a_cache_of_transformers_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "openai-gpt", "n_embd": 64, "n_layer": 2, "n_head": 4}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"not built for openai-gpt.*mode 'forward'"):
        execute(setup_of(str(path)), CPU, Notes())
