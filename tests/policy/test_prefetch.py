"""Images prepared by worker threads are the images prepared in place, once each, within the room there is."""

from __future__ import annotations

import pytest
import torch

from conftest import picture
from sightline.errors import UserError
from sightline.policy import pixels
from sightline.policy.features import Features
from sightline.policy.load import Policy
from sightline.policy.pixels import Pixels
from sightline.policy.prefetch import Prefetch
from sightline.types import ImageRef, Size


def fresh(policy: Policy, capacity: float = 256.0) -> Pixels:
    return Pixels(policy.pixels.processor, policy.frame, capacity)


def test_patches_are_the_same_and_prepared_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(96, 64, seed) for seed in range(5)]
    plain, ahead = fresh(policy), fresh(policy)
    want = plain.batch([(image, 0) for image in images]).pixels
    prefetch = Prefetch(ahead, workers=2)
    assert prefetch.start([*images, images[0]]) == 5
    assert prefetch.start(images) == 0
    for image in images:
        ahead.patches(image)
    prefetch.close()
    monkeypatch.setattr(ahead, "prepared", lambda _: pytest.fail("prepared a second time"))
    found = ahead.batch([(image, 0) for image in images]).pixels
    assert found is not None
    assert want is not None
    assert torch.equal(found, want)
    assert prefetch.start(images) == 0


def test_no_more_is_begun_than_half_the_cache_holds(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(96, 64, seed) for seed in range(8)]
    one = fresh(policy).patches(images[0]).nbytes
    monkeypatch.setattr(pixels, "MOST", 6 * one / 2**20)
    prefetch = Prefetch(fresh(policy, capacity=6 * one / 2**20), workers=1)
    assert prefetch.start(images) == 3
    prefetch.close()
    assert Prefetch(fresh(policy), workers=0).start(images) == 0


def test_images_whose_features_are_kept_are_not_prepared(policy: Policy) -> None:
    """What nobody asks for would stand in the way of others for ever."""
    images = [picture(96, 64, seed) for seed in range(3)]
    own = fresh(policy)
    own.features = Features(policy, 64.0)
    own.batch([(image, 0) for image in images[:2]])
    own._cache.clear()
    prefetch = Prefetch(own, workers=1)
    assert prefetch.start(images) == 1
    own.batch([(image, 0) for image in images])
    assert not own._coming
    prefetch.close()


def test_the_cache_has_room_for_the_images_of_a_step(policy: Policy) -> None:
    images = [picture(96, 64, seed) for seed in range(8)]
    one = fresh(policy).patches(images[0]).nbytes
    own = fresh(policy, capacity=2 * one / 2**20)
    prefetch = Prefetch(own, workers=1)
    assert prefetch.start(images) == 8
    for image in images:
        own.patches(image)
    assert len(own._cache) == 8
    prefetch.close()


def test_an_image_that_cannot_be_opened_fails_where_it_is_used(policy: Policy) -> None:
    own = fresh(policy)
    prefetch = Prefetch(own, workers=1)
    missing = ImageRef(digest="gone", size=Size(96, 64), path="/nowhere/picture.png")
    assert prefetch.start([missing]) == 1
    with pytest.raises(UserError, match=r"picture\.png"):
        own.patches(missing)
    prefetch.close()
