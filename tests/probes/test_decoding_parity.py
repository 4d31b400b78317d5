"""Rows read while re-scoring are the rows of sampling: a slow replay token by token on eager attention, left-padded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from eager import eager
from measured import segment_table
from sightline.methods.probes import RegionAttention
from sightline.policy.load import Policy
from sightline.policy.packing import Packer
from sightline.probes.scoring import scoring_pass
from sightline.rewards.attention import ratio_score, region_ratio, top_rows
from sightline.types import Group, Rollout


def replay(policy: Policy, rollout: Rollout, pad: int) -> np.ndarray:
    """The last layer's row, mean over heads, of every sampled token as the query of its own decoding step."""
    ids = np.concatenate([np.full(pad, policy.pad), rollout.prompt_ids])
    prompt = torch.from_numpy(ids)[None]
    mask = torch.ones_like(prompt)
    mask[:, :pad] = 0
    shown = policy.pixels.batch([(image, 0) for image in rollout.prompt.images])
    types = (prompt == policy.image_token).int()
    at = Packer(policy).of(0, [0], [rollout]).tree.positions[:, None]
    positions = torch.from_numpy(np.concatenate([np.zeros((3, 1, pad), np.int64), at], axis=2))
    cache, rows = DynamicCache(), []
    with eager(policy), torch.no_grad():
        policy.model(
            input_ids=prompt, attention_mask=mask, pixel_values=shown.pixels, image_grid_thw=shown.grids,
            mm_token_type_ids=types, past_key_values=cache, use_cache=True, position_ids=positions[..., : len(ids)],
        )  # fmt: skip
        for number, token in enumerate(rollout.ids, len(ids)):
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
            out = policy.model(
                input_ids=torch.tensor([[int(token)]]), attention_mask=mask, past_key_values=cache, use_cache=True,
                output_attentions=True, position_ids=positions[..., number : number + 1],
            )  # fmt: skip
            rows.append(out.attentions[-1][0, :, 0, pad:].mean(0).numpy())
    return np.stack([np.pad(row, (0, len(rollout.prompt_ids) + len(rollout.ids) - len(row))) for row in rows])


@pytest.mark.parametrize("pad", [0, 5])
def test_rescoring_equals_incremental_decoding(policy: Policy, talks: list[Group], pad: int) -> None:
    """SAYO's score from entropy-selected consumer rows of the last layer, to 1e-5."""
    group = talks[1].at([0])
    rollout = group.rollouts[0]
    first = int(rollout.turns[0].span.end) if len(rollout.turns) > 1 else len(rollout.ids)
    single = replace(
        rollout, ids=rollout.ids[:first], sampled=rollout.sampled[:first], logprobs=rollout.logprobs[:first],
        images=(), turns=rollout.turns[:1], forks=(), branch=(0,),
    )  # fmt: skip
    probe = RegionAttention(align="consumer", layers=(-1,))
    alone = Group(record=group.record, rollouts=(single,), readings=())
    seen = scoring_pass(Packer(policy), [alone, *talks], (probe,))[0].measurements[0]
    table, visual = segment_table(policy, single, "overlap", False)
    slow = replay(policy, single, pad) @ table
    np.testing.assert_allclose(seen.probes["attention"], slow, atol=1e-6)
    assert seen.entropies is not None
    rows = top_rows(seen.entropies, single.sampled, 0.3)
    cells = float(table[:, 0].sum())
    scores = [
        ratio_score(region_ratio(masses[rows, 0], masses[rows, 1], cells, visual))
        for masses in (seen.probes["attention"], slow)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
