"""Sampled conversations for several tests: a rule of every kind of turn, and a policy that ends its turns early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from conftest import make_record, picture
from sightline.language.prompts import prompt
from sightline.policy.load import Policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.types import Box, NextTurn, Prompt, Reading, Rollout

SETTINGS = SamplingSettings(temperature=0.8, max_new_tokens=16)
SIZES = ((40, 40), (33, 71), (96, 20), (1, 40))


@dataclass
class Crops:
    """Goes on until `turns` are said, as the last reply has it: pictures of odd sizes, the first one again, words."""

    turns: int = 3
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:
        self.asked.append(tuple(r.text for r in readings))
        kind = sum(map(ord, readings[-1].text)) % 6
        if len(readings) >= self.turns or kind == 5:
            return None
        if kind == 4 or (kind == 3 and not prompt.images):
            return NextTurn(" no box")
        if kind == 3:
            return NextTurn(" again", prompt.images[:1])
        shown = picture(*SIZES[(kind + len(readings)) % 4], seed=kind)
        return NextTurn("" if kind else " look", (shown,), (Box(1, 2, 30, 40),))


def ends_often(policy: Policy, ends: int = 160) -> Policy:
    """The same weights with more ids that end a turn, so that random ones stop at ragged lengths."""
    return replace(policy, eos=(*policy.eos, *range(300, 300 + ends)))


def prompts() -> list[Prompt]:
    """Two streams of three records: one picture, two, none."""
    records = [make_record("a", ((96, 64),)), make_record("b", ((50, 90), (33, 47)), 5), make_record("c", ())]
    return [prompt(r, s, s, "compact") for r in records for s in ("textual", "grounded")]


def converse(policy: Policy, requests: Sequence[Request], *, seed: int = 0, rows: int = 512) -> list[list[Rollout]]:
    return LocalSampler(policy, rows=rows).sample(requests, SETTINGS, seed=seed, step=0)
