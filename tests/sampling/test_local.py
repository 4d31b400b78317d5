"""The local sampler against the learner's forward, against `generate`, and against itself in other batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import make_record
from sightline.language.prompts import prompt
from sightline.policy.batch import collate
from sightline.policy.load import Policy
from sightline.policy.tree import build_tree, rollout_path
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.types import Prompt, Rollout

SETTINGS = SamplingSettings(temperature=0.8, max_new_tokens=40)


@pytest.fixture
def ends_often(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """More ids that end a turn, so that random weights stop at ragged lengths."""
    monkeypatch.setattr(policy, "eos", (*policy.eos, *range(300, 420)))
    return policy


def prompts() -> list[Prompt]:
    records = [make_record("a", ((96, 64),)), make_record("b", ((50, 90), (33, 47)), 5), make_record("c", ())]
    return [prompt(r, s, s, "compact") for r in records for s in ("textual", "grounded")]


def requests(shown: list[Prompt], *n: int) -> list[Request]:
    return [Request(p, (count,)) for p, count in zip(shown, n, strict=True)]


def learner_logprobs(policy: Policy, rollouts: list[Rollout], temperature: float) -> list[np.ndarray]:
    tree = build_tree([rollout_path(r, policy.image_token) for r in rollouts], policy.rules)
    batch = collate([[tree]], policy.pixels, pad=policy.pad)
    with torch.no_grad():
        return batch.scatter(policy.module(batch, temperature=temperature).logprobs)[0]


def test_recorded_logprobs_equal_the_learners(ends_often: Policy) -> None:
    sampled = LocalSampler(ends_often).sample(requests(prompts(), 5, 1, 4, 3, 6, 2), SETTINGS, seed=1, step=2)
    lengths = {len(r.ids) for group in sampled for r in group}
    assert len(lengths) > 4
    assert [len(g) for g in sampled] == [5, 1, 4, 3, 6, 2]
    for group in sampled:
        for rollout, want in zip(group, learner_logprobs(ends_often, group, 0.8), strict=True):
            np.testing.assert_allclose(rollout.logprobs, want, atol=1e-4)


def test_a_rollout_does_not_depend_on_its_batch(ends_often: Policy) -> None:
    shown = prompts()
    together = LocalSampler(ends_often).sample(requests(shown, *[4] * 6), SETTINGS, seed=3, step=0)
    alone = LocalSampler(ends_often, rows=3).sample(requests(shown[2:3], 4), SETTINGS, seed=3, step=0)[0]
    for a, b in zip(together[2], alone, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
    other = LocalSampler(ends_often).sample(requests(shown[2:3], 4), SETTINGS, seed=4, step=0)[0]
    assert any(a.ids.tolist() != b.ids.tolist() for a, b in zip(alone, other, strict=True))


def test_greedy_equals_generate(policy: Policy) -> None:
    shown = prompts()[:2]
    ours = LocalSampler(policy).sample(
        requests(shown, 1, 1), SamplingSettings(temperature=0.0, max_new_tokens=12), seed=0, step=0
    )
    for p, group in zip(shown, ours, strict=True):
        encoded = policy.encode(p)
        ids = torch.from_numpy(encoded.ids)[None]
        visual = policy.pixels.batch([(image, 0) for image in encoded.images])
        policy.model.set_attn_implementation({"text_config": "sdpa"})
        out = policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=visual.pixels,
            image_grid_thw=visual.grids, mm_token_type_ids=(ids == policy.image_token).int(), do_sample=False,
            max_new_tokens=12, suppress_tokens=list(policy.banned),
        )  # fmt: skip
        policy.model.set_attn_implementation({"text_config": "sightline"})
        assert group[0].ids.tolist() == out[0, len(encoded.ids) :].tolist()


def test_finish_reason_and_end_token(ends_often: Policy) -> None:
    for group in LocalSampler(ends_often).sample(requests(prompts(), *[4] * 6), SETTINGS, seed=0, step=0):
        for rollout in group:
            ended = [i for i, token in enumerate(rollout.ids) if token in ends_often.eos]
            assert rollout.finish == ("stop" if ended else "length")
            assert ended in ([], [len(rollout.ids) - 1])
            assert rollout.sampled.all()
            assert len(rollout.ids) <= SETTINGS.max_new_tokens


def test_banned_ids_are_never_written(policy: Policy) -> None:
    hot = SamplingSettings(temperature=10.0, max_new_tokens=30)
    written = {
        int(i)
        for g in LocalSampler(policy).sample(requests(prompts(), *[20] * 6), hot, seed=0, step=0)
        for r in g
        for i in r.ids
    }
    assert len(written) > 500
    assert not written & set(policy.banned)
    assert policy.image_token in policy.banned
    assert max(written) < len(policy.tokenizer)


def test_top_p_keeps_the_nucleus(policy: Policy) -> None:
    narrow = SamplingSettings(temperature=1.0, top_p=1e-6, max_new_tokens=6)
    greedy = SamplingSettings(temperature=0.0, max_new_tokens=6)
    a = LocalSampler(policy).sample(requests(prompts()[:1], 2), narrow, seed=0, step=0)[0]
    b = LocalSampler(policy).sample(requests(prompts()[:1], 1), greedy, seed=0, step=0)[0]
    assert a[0].ids.tolist() == a[1].ids.tolist() == b[0].ids.tolist()


def test_sampling_frequencies_match_the_distribution(policy: Policy) -> None:
    shown = prompts()[:1]
    once = SamplingSettings(temperature=0.3, max_new_tokens=1)
    group = LocalSampler(policy, rows=4000).sample(requests(shown, 4000), once, seed=0, step=0)[0]
    tokens, counts = np.unique([r.ids[0] for r in group], return_counts=True)
    logprobs = {int(r.ids[0]): float(r.logprobs[0]) for r in group}
    expected = np.array([4000 * np.exp(logprobs[int(t)]) for t in tokens])
    frequent = expected >= 20
    assert frequent.sum() >= 5
    deviation = (counts - expected)[frequent] / np.sqrt(expected * (1 - expected / 4000))[frequent]
    assert np.abs(deviation).max() < 4.5


def test_forced_prefix_belongs_to_the_prompt(policy: Policy) -> None:
    shown = prompt(make_record("a"), "textual", "textual", "compact", forced_prefix="<think>")
    rollout = LocalSampler(policy).sample([Request(shown)], SETTINGS, seed=0, step=0)[0][0]
    assert rollout.text.startswith("<think>")
    assert policy.tokenizer.convert_tokens_to_ids("<think>") == rollout.prompt_ids[-1]
