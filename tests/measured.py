"""Groups to measure, and what eager attention and stock forwards say about each Rollout by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from conftest import make_record, picture
from conversations import Crops, converse, ends_often
from eager import eager, rollouts
from sightline.geometry.grid import membership
from sightline.language.prompts import prompt
from sightline.policy.load import Policy
from sightline.sampling.base import Request
from sightline.types import Box, Group, ImageRef, Record, Region, Rollout

BOXES = (Region(box=Box(8.0, 10.0, 40.0, 44.0)), Region(box=Box(30.0, 30.0, 50.0, 40.0)))


def conversation_groups(policy: Policy, seed: int = 0) -> list[Group]:
    """Two streams of branching conversations about one picture, two, and none; crops come in later turns."""
    two = make_record("b", ((50, 90), (33, 47)), 5)
    records = [
        replace(make_record("a", ((96, 64),)), regions=BOXES),
        replace(two, regions=(*two.regions, Region(box=Box(5.0, 5.0, 20.0, 20.0), image=1))),
        make_record("c", ()),
    ]
    groups = []
    for record in records:
        shown = [prompt(record, s, s, "compact") for s in ("textual", "grounded")]
        asked = [Request(p, (2, 2), Crops()) for p in shown]
        replies = tuple(r for own in converse(ends_often(policy), asked, seed=seed) for r in own)
        groups.append(Group(record=record, rollouts=replies, readings=()))
    return groups


def plain_groups(policy: Policy, count: int = 2) -> list[Group]:
    """Single replies of ragged lengths, two streams a group."""
    found = [tuple(rollouts(policy, seed)) for seed in range(count)]
    return [Group(record=r[0].record, rollouts=r, readings=()) for r in found]


class Stock:
    """One stock forward per Rollout, no tree; what was computed is kept.

    Gives attention matrices (heads, tokens, tokens) by layer, the log-softmax rows that predict each token of
    `Rollout.ids`, and the positions of all visual tokens.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._known: dict[tuple, tuple[list[np.ndarray], np.ndarray, np.ndarray]] = {}

    def __call__(self, rollout: Rollout) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        images = (*rollout.prompt.images, *rollout.images)
        key = (rollout.prompt_ids.tobytes(), rollout.ids.tobytes(), tuple(i.digest for i in images))
        if key not in self._known:
            self._known[key] = self._forward(rollout, images)
        return self._known[key]

    def _forward(self, rollout: Rollout, images: Sequence[ImageRef]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        policy = self.policy
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]))[None]
        shown = [policy.pixels.batch([(image, 0)]) for image in images]
        inputs: dict[str, Any] = {}
        if shown:
            inputs["pixel_values"] = torch.cat([s.pixels for s in shown if s.pixels is not None])
            inputs["image_grid_thw"] = torch.cat([s.grids for s in shown if s.grids is not None])
        with eager(policy), torch.no_grad():
            out = policy.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True,
                mm_token_type_ids=(ids == policy.image_token).int(), **inputs,
            )  # fmt: skip
        rows = torch.log_softmax(out.logits[0, len(rollout.prompt_ids) - 1 : -1] + policy.module.bias, -1).numpy()
        visual = np.flatnonzero(ids[0].numpy() == policy.image_token)
        return [a[0].numpy() for a in out.attentions], rows, visual


def crop_before_picture(policy: Policy) -> Group:
    """One reply to a prompt that shows a crop first and the Record's image behind it."""
    base = rollouts(policy)[0]
    image, crop = picture(96, 64, 1), picture(64, 64, 2)
    record = replace(base.record, images=(image,), regions=BOXES)
    shown = prompt(record, "crops", "textual", "compact", images=(crop, image))
    rollout = replace(base, prompt=shown, prompt_ids=policy.encode(shown).ids)
    return Group(record=record, rollouts=(rollout,), readings=())


def segment_table(policy: Policy, rollout: Rollout, rule: Any, is_first_only: bool) -> tuple[np.ndarray, int]:
    """Weights (tokens, 4) of every token of the whole sequence in the segments, and the prompt's visual tokens."""
    record: Record = rollout.record
    ids = np.concatenate([rollout.prompt_ids, rollout.ids])
    visual = np.flatnonzero(ids == policy.image_token)
    sizes = [image.size for image in record.images]
    region = membership(record.regions, sizes, policy.frame, rule, is_first_only=is_first_only)
    table = np.zeros((len(ids), 4))
    table[:, 3] = 1
    table[visual] = [0, 0, 1, 0]
    own = visual[: len(region)]
    table[own] = np.stack([region, 1 - region, 0 * region, 0 * region], 1)
    return table, int((rollout.prompt_ids == policy.image_token).sum())


def pairs(groups: Sequence[Group]) -> list[tuple[Group, int, Rollout]]:
    return [(group, i, rollout) for group in groups for i, rollout in enumerate(group.rollouts)]
