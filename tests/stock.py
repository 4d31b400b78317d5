"""What several tests need of the engine: an independent reference, and credited groups of random replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from conftest import make_record
from sightline.credit.config import ObjectiveConfig
from sightline.language.parse import read
from sightline.language.prompts import prompt
from sightline.methods.base import Method, MethodConfig
from sightline.policy.load import Policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.types import Group, Rollout, Score, Scores


def reference_logprobs(policy: Policy, group: Sequence[Rollout]) -> list[torch.Tensor]:
    """One stock forward per rollout: input ids, pixels and the library's own positions, no tree anywhere."""
    out = []
    for rollout in group:
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]))[None]
        shown = [policy.pixels.batch([(image, 0)]) for image in (*rollout.prompt.images, *rollout.images)]
        logits = policy.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == policy.image_token).int(),
            pixel_values=torch.cat([v.pixels for v in shown if v.pixels is not None]),
            image_grid_thw=torch.cat([v.grids for v in shown if v.grids is not None]),
        ).logits[0]  # fmt: skip
        start = len(rollout.prompt_ids)
        rows = torch.log_softmax(logits[start - 1 : -1] + policy.module.bias, -1)
        out.append(rows.gather(-1, ids[0, start:, None])[:, 0])
    return out


def groups_of(policy: Policy, method: Method, records: int = 3) -> list[Group]:
    """Credited groups of two streams with random rewards; one textual group is flat."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(records):
        record = make_record(f"r{i}", ((96, 64),), i)
        shown = [prompt(record, s, s, "compact") for s in ("grounded", "textual")]
        asked = [Request(p, (n,)) for p, n in zip(shown, (3, 4), strict=True)]
        settings = SamplingSettings(max_new_tokens=12)
        sampled = [r for g in LocalSampler(policy).sample(asked, settings, seed=0, step=0) for r in g]
        readings = tuple(read(r.text, policy.frame, [record.images[0].size]) for r in sampled)
        scores = tuple(
            Scores(terms={"r": Score(0.5 if i == 1 and r.stream == "textual" else float(rng.random()))})
            for r in sampled
        )
        group = Group(record=record, rollouts=tuple(sampled), readings=readings, scores=scores)
        found.append(replace(group, credits=method.credit(group)))
    return found


def make_method(**objective: object) -> Method:
    return Method(MethodConfig(objective=ObjectiveConfig(**objective)))  # type: ignore[arg-type]
