"""Dimensions read from a config: both key layouts, and the parameters they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sightline.errors import UserError
from sightline.policy.architecture import architecture
from sightline.policy.load import Policy, checkpoint_folder

CLASSES = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}


def config_of(family: str) -> dict[str, Any]:
    return json.loads((checkpoint_folder(f"embedded:{family}") / "config.json").read_text())


def test_parameters_are_those_of_the_model(policy: Policy) -> None:
    model = architecture(policy.model.config)
    assert model.parameters == sum(p.numel() for p in policy.model.parameters())
    assert model.vision.parameters == sum(p.numel() for p in policy.model.model.visual.parameters())


def test_linear_layers_are_those_of_the_model(policy: Policy) -> None:
    layers = {n: m for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    found = architecture(policy.model.config).linear
    assert found.keys() == layers.keys()
    assert all((m.inputs, m.outputs) == (layers[n].in_features, layers[n].out_features) for n, m in found.items())


@pytest.mark.parametrize("family", CLASSES)
def test_an_untied_head_counts(family: str) -> None:
    raw: dict[str, Any] = {**config_of(family), "tie_word_embeddings": False}
    raw["text_config"]["tie_word_embeddings"] = False
    stock = getattr(transformers, CLASSES[family])
    with torch.device("meta"):
        model = stock(stock.config_class.from_dict(raw))
    assert architecture(raw).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", CLASSES)
def test_both_key_layouts_and_config_objects_agree(family: str, tmp_path: Path) -> None:
    raw = config_of(family)
    flat = {**raw["text_config"], **{k: v for k, v in raw.items() if k != "text_config"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert architecture(raw) == architecture(flat) == architecture(loaded)


def test_what_is_missing_or_unknown_is_one_line() -> None:
    raw = config_of("qwen3_vl")
    with pytest.raises(UserError, match="model type 'llava' is not supported"):
        architecture(raw | {"model_type": "llava"})
    with pytest.raises(UserError, match="a dimension of the model is missing: 'vision_config'"):
        architecture({k: v for k, v in raw.items() if k != "vision_config"})
    del raw["text_config"]["hidden_size"]
    with pytest.raises(UserError, match="'hidden_size'"):
        architecture(raw)
