"""Kept features of a frozen vision tower: equal to those computed anew, one entry per picture, bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from conftest import make_record, picture
from eager import batch_of, gradients, relative_difference
from sightline.interventions import Intervention, intervene
from sightline.language.prompts import prompt
from sightline.policy.features import Features, freeze_vision, tower
from sightline.policy.load import Policy, load_policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler


@pytest.fixture
def frozen(policy: Policy) -> Policy:
    found = load_policy(policy.source)
    freeze_vision(found, 64.0)
    return found


def kept(policy: Policy) -> Features:
    assert policy.pixels.features is not None
    return policy.pixels.features


def test_the_forward_is_that_of_the_whole_policy(policy: Policy, frozen: Policy) -> None:
    ours, theirs = batch_of(frozen), batch_of(policy)
    assert ours.pixels is None
    assert ours.features is not None
    assert bool(ours.features.deepstack) == (policy.family == "qwen3_vl")
    first, second = frozen.module(ours).logprobs, policy.module(theirs).logprobs
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    first.sum().backward()
    second.sum().backward()
    found, expected = gradients(frozen), gradients(policy)
    assert found.keys() == {n for n in expected if ".visual." not in n}
    assert relative_difference(found, {n: expected[n] for n in found}) < 1e-5


def test_an_image_is_encoded_once_for_sampler_and_learner(frozen: Policy) -> None:
    shown = prompt(make_record(), "textual", "textual", "compact")
    settings = SamplingSettings(max_new_tokens=4)
    for _ in range(2):
        LocalSampler(frozen).sample([Request(shown, (2,))], settings, seed=0, step=0)
    batch_of(frozen, 0)
    assert kept(frozen).encoded == 1
    batch_of(frozen, 1)
    assert kept(frozen).encoded == 2


def test_replies_do_not_depend_on_the_cache(policy: Policy, frozen: Policy) -> None:
    shown = prompt(make_record(), "textual", "textual", "compact")
    settings = SamplingSettings(max_new_tokens=6)
    [[ours]], [[theirs]] = (
        LocalSampler(p).sample([Request(shown, (1,))], settings, seed=0, step=0) for p in (frozen, policy)
    )
    assert ours.ids.tolist() == theirs.ids.tolist()


def test_features_do_not_depend_on_company(frozen: Policy) -> None:
    """Not even by rounding: a resumed run meets the images in other batches."""
    images = [picture(96, 64, 1), picture(64, 64, 2), picture(48, 96, 3)]
    together = frozen.pixels.batch([(image, 0) for image in images]).features
    alone = load_policy(frozen.source)
    freeze_vision(alone, 64.0)
    parts = [alone.pixels.batch([(image, 0)]).features for image in reversed(images)][::-1]
    assert together is not None
    assert torch.equal(together.features, torch.cat([p.features for p in parts if p is not None]))


def test_changed_pictures_and_other_limits_are_other_pictures(frozen: Policy) -> None:
    image = picture(96, 64)
    frame = frozen.frame
    blank = intervene([image], [], frame, Intervention(kind="blank"), (0,)).images[0]
    first = frozen.pixels.batch([(image, 0)]).features
    second = frozen.pixels.batch([(blank, 0)]).features
    assert kept(frozen).encoded == 2
    assert first is not None
    assert second is not None
    assert not torch.equal(first.features, second.features)
    frozen.pixels.frame = replace(frame, max_pixels=32 * 32)
    frozen.pixels.processor.size["longest_edge"] = 32 * 32
    frozen.pixels._cache.clear()
    third = frozen.pixels.batch([(image, 0)]).features
    assert third is not None
    assert len(third.features) < len(first.features)


def test_the_bytes_are_bounded_and_the_oldest_go_first(policy: Policy) -> None:
    images = [picture(64, 64, i) for i in range(4)]
    frozen = load_policy(policy.source)
    freeze_vision(frozen, 64.0)
    one = frozen.pixels.batch([(images[0], 0)]).features
    assert one is not None
    size = kept(frozen).bytes
    assert size == one.features.nbytes + sum(layer.nbytes for layer in one.deepstack)
    freeze_vision(frozen, 2.5 * size / 2**20)
    for i in (0, 1, 0, 2, 0, 1):
        frozen.pixels.batch([(images[i], 0)])
        assert kept(frozen).bytes <= 2.5 * size
    assert kept(frozen).encoded == 4  # 0, 1, 2, and 1 again
    freeze_vision(frozen, 0.0)
    frozen.pixels.batch([(images[0], 0)])
    assert (kept(frozen).bytes, kept(frozen).encoded) == (0, 1)


def test_the_tower_is_frozen_and_nothing_else(frozen: Policy) -> None:
    frozen_names = {n for n, p in frozen.model.named_parameters() if not p.requires_grad}
    assert frozen_names == {n for n, _ in frozen.model.named_parameters() if ".visual." in n}
    assert len(frozen_names) == len(list(tower(frozen).parameters()))
