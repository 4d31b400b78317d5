"""Conversations: every token accounted for, whatever the rule says and however the tree branches; both families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from conftest import make_record, picture
from sightline.language.prompts import prompt
from sightline.policy.batch import collate
from sightline.policy.load import Policy
from sightline.policy.tree import build_tree, rollout_path
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.types import Box, NextTurn, Prompt, Reading, Rollout

SETTINGS = SamplingSettings(temperature=0.8, max_new_tokens=24)
SIZES = ((40, 40), (33, 71), (96, 20), (64, 64))


@dataclass
class Crops:
    """Goes on until `turns` are said, with pictures of odd sizes or words alone; some replies end it early."""

    turns: int = 3
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:  # noqa: ARG002
        self.asked.append(tuple(r.text for r in readings))
        kind = sum(map(ord, readings[-1].text)) % 4
        if len(readings) >= self.turns or kind == 3:
            return None
        if kind == 2:
            return NextTurn(" no box")
        shown = (picture(*SIZES[(kind + len(readings)) % 4], seed=kind),)
        return NextTurn("" if kind else " look", shown, (Box(1, 2, 30, 40),))


@pytest.fixture
def ends_often(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """More ids that end a turn, so that random weights stop at ragged lengths."""
    monkeypatch.setattr(policy, "eos", (*policy.eos, *range(300, 460)))
    return policy


def prompts() -> list[Prompt]:
    records = [make_record("a", ((96, 64),)), make_record("b", ((50, 90), (33, 47)), 5), make_record("c", ())]
    return [prompt(r, s, s, "compact") for r in records for s in ("textual", "grounded")]


def converse(policy: Policy, requests: Sequence[Request], seed: int = 0, **more: int) -> list[list[Rollout]]:
    return LocalSampler(policy, **more).sample(requests, SETTINGS, seed=seed, step=0)


def learner_logprobs(policy: Policy, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    tree = build_tree([rollout_path(r, policy.image_token) for r in rollouts], policy.rules)
    batch = collate([[tree]], policy.pixels, pad=policy.pad)
    with torch.no_grad():
        return batch.scatter(policy.module(batch, temperature=SETTINGS.temperature).logprobs)[0]


@pytest.mark.parametrize("branches", [(5,), (2, 4), (4, 2), (2, 2, 2), (1,)])
def test_recorded_logprobs_equal_the_learners(ends_often: Policy, branches: tuple[int, ...]) -> None:
    requests = [Request(p, branches, Crops()) for p in prompts()[:5]]
    sampled = converse(ends_often, requests)
    turns = {len(r.turns) for group in sampled for r in group}
    assert len(turns) > 1
    assert max(turns) == 5
    for group in sampled:
        assert [r.branch for r in group] == [tuple(int(i) for i in b) for b in np.ndindex(*branches)]
        for rollout, want in zip(group, learner_logprobs(ends_often, group), strict=True):
            np.testing.assert_allclose(rollout.logprobs, want, atol=1e-5)
