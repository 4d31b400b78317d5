"""Names of layers: what a recipe writes, and which layers peft then finds."""

from __future__ import annotations

import re

import pytest
import torch

from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.policy.architecture import architecture
from sightline.policy.load import Policy, load_policy
from sightline.policy.targets import chosen

PEFT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def linear(policy: Policy) -> list[str]:
    return [n for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear)]


def test_the_seven_usual_names_are_the_language_model(policy: Policy) -> None:
    """Also where the tower has layers of the same name."""
    layers = linear(policy)
    assert chosen(layers, PEFT) == chosen(layers, "language") == [n for n in layers if ".language_model." in n]
    assert chosen(layers, "all") == [n for n in layers if n != "lm_head"]


def test_names_of_the_tower_and_of_single_layers(policy: Policy) -> None:
    layers = linear(policy)
    assert chosen(layers, ["qkv"]) == [n for n in layers if n.endswith(".qkv")]
    assert chosen(layers, ["layers.0.self_attn.q_proj"]) == ["model.language_model.layers.0.self_attn.q_proj"]
    [own] = [n for n in layers if n.endswith("visual.blocks.1.attn.qkv")]
    assert set(chosen(layers, ["visual.blocks.1.attn.qkv", "v_proj"])) == {
        own, *(n for n in layers if n.endswith(".v_proj"))
    }  # fmt: skip
    assert chosen(layers, [own]) == [own]


def test_peft_adapts_the_chosen_layers(policy: Policy) -> None:
    for targets in (("gate_proj", "qkv"), ("o_proj", "o_proj"), "all"):
        fresh = load_policy(policy.source, lora=Lora(rank=2, targets=targets))
        found = {n.split(".lora_")[0] for n, p in fresh.model.named_parameters() if p.requires_grad}
        names = {n.removeprefix("base_model.model.") for n in found} - {"model.visual.patch_embed.proj"}
        assert names == set(chosen(linear(policy), targets))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("wq", r"no linear layer is called wq \(layers here: .*q_proj"),
        ("0", "no linear layer is called 0"),
        ("embed_tokens", "no linear layer is called embed_tokens"),
        ("proj.", "no linear layer"),
        ("lm_head", "the output matrix takes no adapter"),
        ("q_.*", "no linear layer"),
    ],
)
def test_what_is_no_layer_is_refused(policy: Policy, target: str, said: str) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.targets: " + said):
        chosen(linear(policy), ["q_proj", target])


def test_the_dimensions_alone_tell_the_layers(policy: Policy) -> None:
    names = architecture(policy.model.config).linear
    for targets in ("language", "all", ("qkv", "up_proj")):
        assert set(chosen(list(names), targets)) == set(chosen(linear(policy), targets))
    with pytest.raises(UserError, match="layers here: ") as error:
        chosen(list(names), ["wq"])
    assert not re.search(r"[:,] \d", str(error.value))
