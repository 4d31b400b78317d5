"""The settings that decide where weights, gradients and moments live: defaults, spellings, impossible combinations."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.config import load_recipe
from sightline.errors import UserError

BF16 = ("--model.dtype", "bfloat16")


def load(*words: str) -> Any:
    return load_recipe("grpo", [*words])


def test_by_default_everything_is_trained_in_fp32() -> None:
    model = load().model
    assert model.lora is None
    assert (model.train_vision, model.masters, model.kernels, model.reference) == (True, "fp32", "none", "auto")
    assert load().optim.states == "fp32"


def test_one_key_switches_the_adapter_on() -> None:
    lora = load("--model.lora.rank", "8").model.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.dora) == (8, 64.0, 0.0, False)
    assert (lora.targets, lora.quantise) == ("language", None)
    assert load("--model.lora.targets", "[q_proj, v_proj]").model.lora.targets == ("q_proj", "v_proj")
    assert load("--model.lora.rank", "8", "--model.lora", "null").model.lora is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.masters", "stochastic"), "stochastic rounds bfloat16 weights, but dtype is float32"),
        (("--model.lora.rank", "8", "--model.reference", "cpu"), "the reference is the adapter switched off"),
        (("--model.lora.targets", "all", "--model.train_vision", "false"), "which train_vision: false freezes"),
        (("--model.lora.quantise", "nf4", "--train.parallel", "fsdp"), "weights in four bits .* cannot be cut"),
        (("--optim.states", "8bit", "--train.parallel", "fsdp"), "8-bit states .* cannot be cut"),
        (("--model.kernels", "liger"), "liger needs cuda, but device is cpu"),
        (("--model.kernels", "liger", "--model.device", "cuda", "--model.compile", "true"), "choose one"),
        (("--model.lora.rank", "0"), "rank"),
        (("--model.lora.targets", "vision"), "targets"),
        (("--model.lora.targets", "[]"), "names no layer; leave it at language"),
        (("--model.lora.quantise", "int4"), "quantise"),
        (("--optim.states", "4bit"), "states"),
    ],
)
def test_impossible_combinations_say_why(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(*words)


def test_possible_combinations_load() -> None:
    small = load(*BF16, "--model.masters", "stochastic", "--optim.states", "8bit", "--train.parallel", "ddp")
    assert (small.model.masters, small.optim.states, small.train.parallel) == ("stochastic", "8bit", "ddp")
    codes = load(*BF16, "--model.lora.quantise", "nf4", "--model.lora.dora", "true", "--optim.states", "8bit")
    assert codes.model.lora is not None
    assert (codes.model.lora.quantise, codes.model.lora.dora) == ("nf4", True)
    frozen = load("--model.train_vision", "false", "--model.reference", "cpu", "--train.parallel", "fsdp")
    assert (frozen.model.train_vision, frozen.model.reference) == (False, "cpu")
