"""Contracts with transformers that fail silently when they break."""

from __future__ import annotations

from typing import Any

import torch

from conftest import make_record
from sightline.language.prompts import prompt
from sightline.policy.attention import NAME, dense_mask
from sightline.policy.batch import collate
from sightline.policy.load import Policy
from sightline.policy.tree import Path, Segment, build_tree


def test_the_mask_of_a_padded_batch_is_not_dropped(policy: Policy) -> None:
    """Fails when the mask function is not registered under the name of the attention function."""
    ids = torch.randint(300, 1200, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    assert policy.model.config.text_config._attn_implementation == NAME
    ours = policy.model(input_ids=ids, attention_mask=mask).logits
    policy.model.set_attn_implementation({"text_config": "eager"})
    eager = policy.model(input_ids=ids, attention_mask=mask).logits
    policy.model.set_attn_implementation({"text_config": NAME})
    torch.testing.assert_close(ours[:, 4:], eager[:, 4:], atol=1e-5, rtol=1e-5)


def test_the_vision_tower_keeps_its_own_attention(policy: Policy) -> None:
    assert policy.model.config.vision_config._attn_implementation != NAME


def test_dense_mask_is_the_rule() -> None:
    end = torch.tensor([[5, 5, 3, 5, 5], [2, 2, 3, 4, 5]])
    seen = dense_mask(end, torch.float32)[:, 0] == 0
    for row in range(2):
        for q in range(5):
            for k in range(5):
                assert bool(seen[row, q, k]) == (k <= q < int(end[row, k]))


class Recorder:
    """A read-out that writes down what it is shown."""

    def __init__(self) -> None:
        self.layers: list[tuple[int, int, int]] = []

    def observe(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, rule: Any, scaling: float, lse: Any = None
    ) -> None:
        assert rule is not None
        assert lse.shape == query.shape[:3]
        assert scaling == query.shape[-1] ** -0.5
        self.layers.append((layer, query.shape[1], key.shape[1]))

    def complete(self, needs_grad: bool) -> None:
        assert needs_grad


def test_a_readout_sees_every_layer_and_changes_nothing(policy: Policy) -> None:
    encoded = policy.encode(prompt(make_record(), "textual", "textual", "compact"))
    import numpy as np

    reply = np.arange(300, 306)
    path = Path(
        (
            Segment("p", encoded.ids, np.zeros(len(encoded.ids), bool), encoded.images),
            Segment("r", reply, np.ones(6, bool)),
        ),
        1,
    )
    batch = collate([[build_tree([path], policy.rules)]], policy.pixels, pad=policy.pad)
    recorder = Recorder()
    plain = policy.module(batch).logprobs
    seen = policy.module(batch, readout=recorder).logprobs
    assert torch.equal(plain, seen)
    config = policy.model.config.text_config
    heads = (config.num_attention_heads, config.num_key_value_heads)
    assert recorder.layers == [(i, *heads) for i in range(config.num_hidden_layers)]


def test_image_grid_agrees_with_the_processor_at_odd_sizes(policy: Policy) -> None:
    for size in ((33, 47), (200, 31), (96, 96), (17, 150)):
        image = make_record("x", (size,)).images[0]
        rows, columns = policy.pixels.grid(image)
        assert len(policy.pixels.patches(image)) == rows * columns * 4
