"""The same tokens under changed images: against stock forwards of every Rollout, and one draw for all of a group."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from conftest import make_record, picture
from eager import rollouts
from measured import Stock, pairs, plain_groups
from sightline.credit.tokens import causal_effect
from sightline.interventions import Intervention, Kind, intervene, resized_pixels
from sightline.methods.probes import Contrast, Divergence
from sightline.policy.attention import dense_mask
from sightline.policy.divergence import divergence
from sightline.policy.load import Policy
from sightline.policy.packing import Packer
from sightline.probes.contrast import ContrastPass, changed_rollouts, crop_regions, without_images
from sightline.probes.scoring import scoring_pass
from sightline.types import Box, Group, Region, Rollout, Size

KEY = (0, 3)


def own_logprobs(rows: np.ndarray, rollout: Rollout) -> np.ndarray:
    return rows[np.arange(len(rollout.ids)), rollout.ids]


@pytest.mark.parametrize("shares", [True, False])
def test_the_same_image_changes_nothing(policy: Policy, shares: bool, talks: list[Group]) -> None:
    probe = Contrast(intervention=Intervention(probability=0.0), divergence="full_kl")
    for group, place, rollout in pairs(scoring_pass(Packer(policy, shares=shares), talks, (probe,))):
        seen = group.measurements[place]
        assert seen.logprobs is not None
        d = seen.probes["contrast"] - seen.logprobs
        assert np.abs(d[rollout.sampled]).max() < 1e-6
        assert np.abs(seen.probes["contrast/full_kl"]).max() < 1e-6


@pytest.mark.parametrize("kind", ["patch_blacken", "swap", "region_mask", "random_region", "region_keep"])
def test_equals_a_stock_forward_with_the_changed_images(
    policy: Policy, kind: Kind, stock: Stock, talks: list[Group]
) -> None:
    what = Intervention(kind)
    others = [image for group in talks for image in group.record.images]
    for group, place, rollout in pairs(scoring_pass(Packer(policy), talks, (Contrast(intervention=what),), key=KEY)):
        seen = group.measurements[place]
        if what.is_regional and not rollout.record.regions:
            assert not seen.probes
            continue
        changed = changed_rollouts([rollout], policy.frame, what, (*KEY, rollout.record.id, 0), others)[0]
        expected = own_logprobs(stock(changed)[1], rollout)
        on = rollout.sampled
        np.testing.assert_allclose(seen.probes["contrast"][on], expected[on], atol=1e-5)
        assert not seen.probes["contrast"][~on].any()
        assert [i.digest for i in seen.images["contrast"]] == [i.digest for i in changed.prompt.images]
        assert seen.logprobs is not None
        has_images = bool(rollout.prompt.images or rollout.images)
        assert (np.abs(seen.probes["contrast"] - seen.logprobs)[on].max() > 1e-3) == has_images


@pytest.mark.parametrize("shares", [True, False])
def test_text_only_is_the_prompt_without_images(policy: Policy, shares: bool, stock: Stock, talks: list[Group]) -> None:
    probe = Contrast(intervention=Intervention("text_only"))
    for group, place, rollout in pairs(scoring_pass(Packer(policy, shares=shares), talks, (probe,))):
        bare, kept = without_images(rollout, policy)
        assert policy.image_token not in bare.prompt_ids
        assert policy.image_token not in bare.ids
        assert np.array_equal(rollout.ids[kept][bare.sampled], rollout.ids[rollout.sampled])
        expected = own_logprobs(stock(bare)[1], bare)
        found = group.measurements[place].probes["contrast"]
        np.testing.assert_allclose(found[kept][bare.sampled], expected[bare.sampled], atol=1e-5)
        assert not found[~rollout.sampled].any()


@pytest.mark.parametrize("shares", [True, False])
def test_blocked_attention_hides_images_and_crops_from_what_is_said_after_them(
    policy: Policy, shares: bool, talks: list[Group]
) -> None:
    """Against one dense mask per Rollout, written down cell by cell."""
    packer, crops = Packer(policy, shares=shares), 0
    for group, place, rollout in pairs(
        scoring_pass(packer, talks[:2], (Contrast(intervention=Intervention("attn_block")),))
    ):
        alone = next(iter(Packer(policy).packed([packer.of(0, [0], [rollout])])))
        batch, start = alone.batch, len(rollout.prompt_ids)
        mask = dense_mask(batch.end, torch.float32)
        visual = np.flatnonzero(rollout.prompt_ids == policy.image_token)
        mask[0, 0, start:, visual] = torch.finfo(torch.float32).min
        for turn in rollout.turns:
            if turn.role == "user":
                crop = turn.span.start + np.flatnonzero(
                    rollout.ids[turn.span.start : turn.span.end] == policy.image_token
                )
                mask[0, 0, start + turn.span.end :, start + crop] = torch.finfo(torch.float32).min
                crops += len(crop)
        assert batch.pixels is not None
        assert batch.grids is not None
        with torch.no_grad():
            vision = policy.adapter.vision(batch.pixels, batch.grids)
            shown = (vision, batch.visual_at, batch.visual_from)
            hidden = policy.adapter.text(batch.ids, batch.positions, mask, shown)[0, start - 1 : -1]
            rows = torch.log_softmax(policy.module.scores(hidden), -1).numpy()
        found, on = group.measurements[place].probes["contrast"], rollout.sampled
        np.testing.assert_allclose(found[on], own_logprobs(rows, rollout)[on], atol=1e-5)
        seen = group.measurements[place].logprobs
        assert seen is not None
        # the last token of the prompt still sees the images
        assert found[0] == pytest.approx(seen[0], abs=1e-5)
    assert crops > 0


@pytest.mark.parametrize("kind", get_args(Divergence))
@pytest.mark.parametrize("what", ["patch_blacken", "text_only", "attn_block"])
def test_divergence_between_the_two_passes(policy: Policy, kind: Divergence, what: Kind, stock: Stock) -> None:
    """From whole rows of log-probs that two stock forwards gave."""
    groups = plain_groups(policy, 1)
    probe = Contrast(intervention=Intervention(what), divergence=kind, top=5)
    measured = scoring_pass(Packer(policy), groups, (probe,), key=KEY)
    for group, place, rollout in pairs(measured):
        found = group.measurements[place].probes[f"contrast/{kind}"]
        assert found.shape == rollout.ids.shape
        assert (found >= -1e-6).all()
        if what == "attn_block":
            continue
        if what == "text_only":
            changed = without_images(rollout, policy)[0]
        else:
            changed = changed_rollouts([rollout], policy.frame, probe.intervention, (*KEY, rollout.record.id, 0))[0]
        p, q = (np.exp(stock(r)[1].astype(np.float64)) for r in (rollout, changed))
        np.testing.assert_allclose(found, by_hand(p, q, kind, 5), atol=2e-5)


def by_hand(p: np.ndarray, q: np.ndarray, kind: str, top: int) -> np.ndarray:
    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(a > 0, a * np.log(np.maximum(a, 1e-300) / np.maximum(b, 1e-300)), 0).sum(1)

    if kind == "tv":
        return np.abs(p - q).sum(1) / 2
    if kind == "jsd":
        return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    if kind == "topk_kl":
        best = np.argsort(-p, axis=1)[:, :top]
        a, b = (np.take_along_axis(x, best, 1) for x in (p, q))
        p, q = (np.concatenate([x, 1 - x.sum(1, keepdims=True)], 1) for x in (a, b))
    return kl(p, q)


def test_divergence_bounds_and_order() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = 3 * torch.randn(2, 200, 40, generator=generator)
    full, some, jsd, tv = (divergence(p, q, kind, 8) for kind in ("full_kl", "topk_kl", "jsd", "tv"))
    assert (some <= full + 1e-5).all()
    assert (some >= -1e-6).all()
    assert (jsd <= math.log(2) + 1e-6).all()
    assert (tv <= 1).all()
    torch.testing.assert_close(divergence(p, q, "topk_kl", 40), full)
    assert divergence(p, p, "full_kl").abs().max() == 0


def test_estimators_agree_in_expectation() -> None:
    """Over a categorical, the means of k3 and of -d under p are KL(p, p'), which `full_kl` computes."""
    rng = np.random.default_rng(0)
    p, q = torch.from_numpy(rng.normal(size=(2, 1, 6)))
    log_p, log_q = (torch.log_softmax(x, -1)[0].numpy() for x in (p, q))
    exact = float(divergence(p, q, "full_kl"))
    effect = causal_effect(log_p, log_q, "k3")
    assert float((np.exp(log_p) * effect).sum()) == pytest.approx(exact, rel=1e-9)
    assert float((np.exp(log_p) * (log_p - log_q)).sum()) == pytest.approx(exact, rel=1e-9)
    drawn = rng.choice(6, size=40000, p=np.exp(log_p))
    assert causal_effect(log_p, log_q, "k3")[drawn].mean() == pytest.approx(exact, abs=0.02)
    positive = causal_effect(log_p, log_q, "logratio_pos")
    assert (positive >= 0).all()
    assert float((np.exp(log_p) * positive).sum()) >= exact


def test_one_draw_for_all_rollouts_of_a_group(policy: Policy) -> None:
    groups = plain_groups(policy, 2)
    probe = (Contrast(),)
    first = scoring_pass(Packer(policy), groups, probe, key=(0, 3))
    for group in first:
        assert len({m.images["contrast"] for m in group.measurements}) == 1
    assert first[0].measurements[0].images["contrast"] != first[1].measurements[0].images["contrast"]
    again = scoring_pass(Packer(policy), groups[::-1], probe, key=(0, 3))[::-1]
    later = scoring_pass(Packer(policy), groups, probe, key=(0, 4))
    for a, b, c in zip(first, again, later, strict=True):
        assert a.measurements[0].images == b.measurements[0].images != c.measurements[0].images
        for x, y in zip(a.measurements, b.measurements, strict=True):
            np.testing.assert_allclose(x.probes["contrast"], y.probes["contrast"], atol=1e-6)


def test_several_draws_stand_side_by_side(policy: Policy) -> None:
    groups = plain_groups(policy, 1)
    three = scoring_pass(Packer(policy), groups, (Contrast(draws=3, divergence="full_kl"),), key=KEY)[0]
    one = scoring_pass(Packer(policy), groups, (Contrast(divergence="full_kl"),), key=KEY)[0]
    for a, b in zip(three.measurements, one.measurements, strict=True):
        assert a.probes["contrast"].shape == (len(b.probes["contrast"]), 3)
        np.testing.assert_allclose(a.probes["contrast"][:, 0], b.probes["contrast"], atol=1e-6)
        assert np.abs(a.probes["contrast"][:, 1] - b.probes["contrast"]).max() > 1e-4
        assert a.probes["contrast/full_kl"].shape == b.probes["contrast/full_kl"].shape
        assert a.images == b.images


def test_what_does_not_apply_is_left_out(policy: Policy) -> None:
    group = plain_groups(policy, 1)[0]
    bare = replace(group.record, regions=())
    shown = tuple(replace(r, prompt=replace(r.prompt, record=bare)) for r in group.rollouts)
    probes = [Contrast(name=k, intervention=Intervention(k)) for k in ("region_mask", "random_region", "gray")]
    measured = scoring_pass(Packer(policy), [replace(group, record=bare, rollouts=shown)], probes)[0]
    for seen in measured.measurements:
        assert set(seen.probes) == set(seen.images) == {"gray"}


def test_a_crop_carries_the_change_of_its_region(policy: Policy) -> None:
    """A region masked in the picture is masked in a crop of it; the control is one and the same in both."""
    image = picture(96, 96, 1)
    crop = Box(20.0, 20.0, 84.0, 84.0)
    base = rollouts(policy)[0]
    record = replace(base.record, images=(image,), regions=(Region(box=Box(10.0, 10.0, 36.0, 36.0)),))
    shown = replace(base.prompt, record=record, images=(image, picture(64, 64, 2)))
    from sightline.types import Span, Turn

    turn = Turn(role="user", span=Span(0, 0), images=(1,), boxes=(crop,))
    rollout = replace(base, prompt=shown, turns=(turn,))
    for kind in ("region_mask", "region_keep", "random_region"):
        what = Intervention(kind)  # type: ignore[arg-type]
        done = changed_rollouts([rollout], policy.frame, what, KEY)[0].prompt.images
        where = intervene([image], record.regions, policy.frame, what, KEY).provenance[0].where
        assert done[0] == intervene([image], record.regions, policy.frame, what, KEY).images[0]
        inside = crop_regions([Region(box=b) for b in where], crop, Size(64, 64))
        before = resized_pixels(shown.images[1], Size(64, 64))
        after = resized_pixels(done[1], Size(64, 64))
        black = np.zeros((64, 64), bool)
        for region in inside:
            x1, y1, x2, y2 = (round(v) for v in region.box)
            black[y1:y2, x1:x2] = True
        black = ~black if kind == "region_keep" else black
        assert np.array_equal((after == 0).all(-1), black | (before == 0).all(-1))
    unknown = replace(rollout, turns=())
    kept = changed_rollouts([unknown], policy.frame, Intervention("region_mask"), KEY)[0].prompt.images
    assert kept[1] == shown.images[1]
    assert changed_rollouts([unknown], policy.frame, Intervention("gray"), KEY)[0].prompt.images[1] != shown.images[1]


def test_another_grid_is_refused(policy: Policy) -> None:
    packer = Packer(policy)
    a = packer.of(0, [0], rollouts(policy)[:1])
    other = make_record("r0", ((64, 96),))
    shown = [replace(r, prompt=replace(r.prompt, images=other.images)) for r in rollouts(policy)[:1]]
    b = packer.of(0, [0], shown)
    with pytest.raises(ValueError, match="other grids"):
        ContrastPass(Contrast(), packer, ())._same_grids(a, b)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_evidence_matters_to_the_shipped_policy(family: str) -> None:
    """Hiding the gold region costs the right answer more than hiding as much elsewhere."""
    from sightline.data.sources import open_source
    from sightline.language.prompts import prompt
    from sightline.policy.load import load_policy
    from sightline.train.supervised import demonstration

    policy = load_policy(f"embedded:{family}")
    source: Any = open_source("scenes:easy", split="test", seed=0)
    groups = []
    for record in (source.at(i) for i in range(12)):
        reply = f"<think></think><answer>{record.answer}</answer>"
        rollout = demonstration(policy, prompt(record, "textual", "textual", policy.style), [reply])
        groups.append(Group(record=record, rollouts=(rollout,), readings=()))
    probes = [Contrast(name=k, intervention=Intervention(k)) for k in ("region_mask", "random_region")]
    lost = {"region_mask": 0.0, "random_region": 0.0}
    for group in scoring_pass(Packer(policy), groups, probes):
        seen = group.measurements[0]
        assert seen.logprobs is not None
        for name in lost:
            lost[name] += float((seen.logprobs - seen.probes[name]).sum()) / len(groups)
    assert lost["region_mask"] > lost["random_region"] + 0.3
