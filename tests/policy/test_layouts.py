"""The recorded tables against the classes that are loaded, at real dimensions, without memory."""

from __future__ import annotations

import math

import pytest

from released import CLASSES, WORDS
from sightline.errors import UserError
from sightline.policy.architecture import architecture
from sightline.policy.layouts import current_name, released_name, tensor_shapes
from sightline.policy.published import PUBLISHED, published_config
from sightline.policy.skeleton import skeleton


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_class_has_the_recorded_tensors(name: str) -> None:
    import transformers

    released, config = PUBLISHED[name], published_config(name)
    class_name = CLASSES[released.family]
    model = skeleton(getattr(transformers, class_name).config_class.from_dict(config), class_name)
    recorded = tensor_shapes(architecture(config))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == recorded
    assert all(p.is_meta for p in model.parameters())
    assert sum(map(math.prod, recorded.values())) == released.parameters == architecture(config).parameters
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == released.is_tied
    assert recorded["model.language_model.embed_tokens.weight"][0] == released.vocab > WORDS[released.family]


def test_counts_of_tensors_that_are_known_from_the_files() -> None:
    """Entries of the published indexes."""
    counts = {
        "Qwen/Qwen2.5-VL-3B-Instruct": 824,
        "Qwen/Qwen2.5-VL-7B-Instruct": 729,
        "Qwen/Qwen3-VL-32B-Instruct": 1058,
    }
    assert {n: len(tensor_shapes(architecture(published_config(n)))) for n in counts} == counts


@pytest.mark.parametrize("family", CLASSES)
def test_both_layouts_lead_to_the_same_names(family: str) -> None:
    name = next(n for n, r in PUBLISHED.items() if r.family == family and not r.is_tied)
    names = list(tensor_shapes(architecture(published_config(name))))
    released = [released_name(n, family) for n in names]
    assert [current_name(n) for n in released] == [current_name(n) for n in names] == names
    assert len(set(released)) == len(names)
    if family == "qwen2_5_vl":
        assert {n.split(".")[0] + "." + n.split(".")[1] for n in released} == {
            "model.embed_tokens", "model.layers", "model.norm", "lm_head.weight", "visual.blocks", "visual.merger",
            "visual.patch_embed",
        }  # fmt: skip
    else:
        assert released == names


def test_a_size_that_is_not_recorded_is_named() -> None:
    with pytest.raises(UserError, match="Qwen/Qwen9"):
        published_config("Qwen/Qwen9")
