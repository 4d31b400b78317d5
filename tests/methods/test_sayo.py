"""SAYO: presets, rows, gates, records without regions; and the same value as a replayed incremental decoding."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conftest import make_record, picture
from sightline.answers.judge import Judge
from sightline.archive import Archive
from sightline.language.parse import read
from sightline.language.prompts import prompt
from sightline.methods import load_method
from sightline.methods.base import Context
from sightline.methods.probes import Contrast, RegionAttention
from sightline.methods.sayo import SAYO
from sightline.train.scoring import credit, score
from sightline.types import Box, Group, Measurement, Region

GOOD, BAD = "<think>it is left</think><answer>green</answer>", "<think>it is left</think><answer>red</answer>"
BOX = (0, 0, 56, 28)  # two of the hundred cells of 28 px


def sayo(**keys: Any) -> SAYO:
    method = load_method({"name": "sayo", **keys})
    assert isinstance(method, SAYO)
    return method


def attended(group: Group, *ratios: float, entropies: np.ndarray | None = None) -> Group:
    """Rows of every token with the given ratio of region to average cell, at 60 % of the attention on the image."""
    seen = []
    for rollout, ratio in zip(group.rollouts, ratios, strict=True):
        n, region = len(rollout.ids), ratio * 0.6 * 2 / 100
        rows = np.tile([region, 0.6 - region, 0.0, 0.4], (n, 1))
        probes = {"attention": rows, "attention/top1": np.full(n, 0.3)}
        entropy = np.arange(n, dtype=float) if entropies is None else entropies
        seen.append(Measurement(logprobs=np.zeros(n), entropies=entropy, probes=probes))
    return replace(group, measurements=tuple(seen))


def terms(group: Group, name: str) -> list[float]:
    return [round(s.terms[name].value, 4) for s in group.scores]


def test_presets() -> None:
    parity, gated = sayo(), sayo(preset="gated")
    assert parity.config.weights.model_dump() == {"attention": 1.0, "format": 1.0, "accuracy": 0.0}
    assert gated.config.weights.model_dump() == {"attention": 0.3, "format": 1.0, "accuracy": 1.0}
    assert gated.config.attention.gate == "correct_only"
    assert (parity.config.window.shortest, parity.config.window.longest) == (60, 100)
    assert (parity.config.objective.kl, parity.config.streams.textual.n) == (0.001, 16)
    assert parity.probes() == (RegionAttention(layers=(-1,), align="consumer"),)


def test_it_warns_where_nothing_ties_the_policy_to_its_task() -> None:
    with pytest.warns(UserWarning, match="both 0"):
        sayo(objective={"kl": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sayo(preset="gated", objective={"kl": 0.0})


def test_parity_scores_attention_and_length_only(world) -> None:
    group = attended(world.group(world.record(BOX), textual=[GOOD, BAD, "no tags"]), 4.0, 2.0, 1.0)
    scored = score(sayo(window={"shortest": 2, "longest": 40}), [group], world.context())[0]
    assert terms(scored, "attention") == pytest.approx([15 / 17, 0.6, 0.0], abs=1e-4)
    assert terms(scored, "format") == [1.0, 1.0, 0.0]
    assert [round(s.total, 4) for s in scored.scores] == pytest.approx([1 + 15 / 17, 1.6, 0.0], abs=1e-4)
    assert terms(scored, "region_ratio") == pytest.approx([4, 2, 1], abs=1e-4)
    assert all(t.why for s in scored.scores for t in s.terms.values())


def test_gates(world) -> None:
    group = attended(world.group(world.record(BOX), textual=[GOOD, BAD]), 2.0, 2.0)
    gated = score(sayo(preset="gated"), [group], world.context())[0]
    assert terms(gated, "attention") == [0.6, 0.0]
    assert gated.scores[0].total - gated.scores[1].total == pytest.approx(1.18)
    scaled = score(sayo(attention={"gate": "scaled_if_wrong", "wrong_scale": 0.25}), [group], world.context())[0]
    assert terms(scaled, "attention") == [0.6, 0.15]


def test_a_group_without_regions_is_masked_as_a_whole_or_keeps_its_other_terms(world) -> None:
    group = attended(world.group(world.record(), textual=[GOOD, "x"]), 2.0, 2.0)
    masked = credit(sayo(), score(sayo(), [group], world.context()))[0]
    assert all(s.is_masked for s in masked.scores)
    assert not any(c.weight.any() for c in masked.credits)
    method = sayo(attention={"without_regions": "skip"})
    kept = credit(method, score(method, [group], world.context()))[0]
    assert not any(s.is_masked for s in kept.scores)
    assert kept.credits[0].advantage[0] > 0


def test_rollouts_that_were_not_measured_are_masked(world) -> None:
    scored = score(sayo(), [world.group(world.record(BOX), textual=[GOOD])], world.context())[0]
    assert scored.scores[0].is_masked
    assert "not measured" in scored.scores[0].terms["attention"].why


def test_only_sampled_tokens_are_selected(world) -> None:
    """The row after the end has the highest entropy and all its attention on the region; it must not count."""
    group = attended(world.group(world.record(BOX), textual=[GOOD]), 1.0)
    rollout, seen = group.rollouts[0], group.measurements[0]
    sampled = np.ones(len(rollout.ids), bool)
    sampled[-1] = False
    rows, entropies = seen.probes["attention"].copy(), np.zeros(len(sampled))
    rows[-1], entropies[-1] = [1.0, 0.0, 0.0, 0.0], 9.0
    seen = replace(seen, entropies=entropies, probes={**seen.probes, "attention": rows})
    group = replace(group, rollouts=(replace(rollout, sampled=sampled),), measurements=(seen,))
    for select in ("entropy_top", "all"):
        scored = score(sayo(attention={"row_select": select}), [group], world.context())[0]
        assert terms(scored, "attention") == [0.0]


def test_rows_of_the_highest_entropy_count(world) -> None:
    group = attended(world.group(world.record(BOX), textual=["a b c d e f g h i"]), 1.0)
    seen = group.measurements[0]
    rows, entropies = seen.probes["attention"].copy(), np.zeros(10)
    rows[[1, 4, 7]], entropies[[1, 4, 7]] = [0.024, 0.576, 0, 0.4], [1, 2, 3]
    group = replace(
        group, measurements=(replace(seen, entropies=entropies, probes={**seen.probes, "attention": rows}),)
    )
    scored = score(sayo(), [group], world.context())[0]
    assert terms(scored, "region_ratio") == pytest.approx([2.0], abs=1e-4)


def test_answers_can_be_left_out_and_causal_tokens_chosen(world) -> None:
    group = attended(world.group(world.record(BOX), textual=["a b"]), 1.0)
    rollout, seen = group.rollouts[0], group.measurements[0]
    pieces = ["<answer>", " red", "</answer>"]
    rows = seen.probes["attention"].copy()
    rows[1] = [1.0, 0.0, 0.0, 0.0]
    probes = {**seen.probes, "attention": rows, "contrast": np.array([0.0, 0.0, -3.0])}
    group = replace(group, measurements=(replace(seen, probes=probes),))
    context = replace(world.context(), pieces=lambda ids: [pieces[i] for i in ids])
    for select in ("answer_excluded", "causal_top"):
        method = sayo(attention={"row_select": select})
        assert terms(score(method, [group], context)[0], "region_ratio") == pytest.approx([1.0], abs=1e-4)
    assert any(isinstance(probe, Contrast) for probe in method.probes())
    assert rollout.sampled.all()


def test_sinks_can_be_left_out_of_the_denominator(world) -> None:
    group = attended(world.group(world.record(BOX), textual=["a b c"]), 1.0)
    seen = group.measurements[0]
    maps = np.full((4, 100), 0.001)
    maps[:, :2], maps[:, 50] = 0.005, 0.5
    rows = np.stack([maps[:, :2].sum(1), maps[:, 2:].sum(1), np.zeros(4), 1 - maps.sum(1)], axis=1)
    probes = {**seen.probes, "attention": rows}
    group = replace(group, measurements=(replace(seen, probes=probes, maps={"attention": maps}),))
    with_sink = score(sayo(), [group], world.context())[0]
    method = sayo(attention={"denominator": "image_mean_no_sink"})
    without = score(method, [group], world.context())[0]
    assert terms(with_sink, "region_ratio") == pytest.approx([0.005 / (0.607 / 100)], rel=1e-3)
    assert terms(without, "region_ratio") == pytest.approx([0.005 / (0.107 / 99)], rel=1e-3)


# ---------------------------------------------------------------- against a model


def measured_group(policy, record, count: int = 3, tokens: int = 9) -> Group:
    from sightline.sampling.base import Request, SamplingSettings
    from sightline.sampling.local import LocalSampler

    shown = prompt(record, "textual", "textual", "compact")
    settings = SamplingSettings(max_new_tokens=tokens)
    rollouts = LocalSampler(policy).sample([Request(shown, (count,))], settings, seed=3, step=0)[0]
    sizes = [image.size for image in record.images]
    return Group(
        record=record, rollouts=tuple(rollouts), readings=tuple(read(r.text, policy.frame, sizes) for r in rollouts)
    )


def context(policy) -> Context:
    from sightline.answers.offline import OfflineJudge

    judge: Judge = OfflineJudge()
    return Context(judge, Archive(), policy.frame, 0, policy.pieces)


def learner_of(policy):
    from sightline.config.sections import Optim
    from sightline.train.learner import Learner

    return Learner(policy, Optim(), steps=1)


@pytest.fixture
def two_images():
    record = make_record("m", ((96, 64), (64, 96)))
    return replace(record, regions=(Region(box=Box(0, 50, 30, 96), image=1), Region(box=Box(50, 0, 96, 20))))


def test_the_reward_does_not_depend_on_the_batch(policy, two_images) -> None:
    """Lengths, padding and neighbours change nothing, with one image or several."""
    method = sayo(weights={"accuracy": 0.5})
    groups = [measured_group(policy, make_record("a")), measured_group(policy, two_images, 2, 14)]
    groups.append(measured_group(policy, replace(make_record("b", ((32, 96),), 4)), 2, 5))
    learner = learner_of(policy)
    together = learner.measure(groups, method.probes(), 0)
    alone = [learner.measure([g], method.probes(), 0)[0] for g in groups]
    for a, b in zip(together, alone, strict=True):
        values = [[s.terms["attention"].value for s in method.score(g, context(policy))] for g in (a, b)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_parity_with_a_replayed_incremental_decoding(policy, two_images) -> None:
    """Slow reference: stock eager attention, one token more at a time, the last row of the last layer."""
    method = sayo()
    group = learner_of(policy).measure([measured_group(policy, two_images)], method.probes(), 0)[0]
    scores = method.score(group, context(policy))
    owned = np.zeros(sum(policy.frame.tokens(image.size) for image in two_images.images), bool)
    first = policy.frame.tokens(two_images.images[0].size)
    owned[:first] = touched(two_images, 0, policy)
    owned[first:] = touched(two_images, 1, policy)
    for rollout, seen, found in zip(group.rollouts, group.measurements, scores, strict=True):
        rows = replayed_rows(policy, rollout)
        count = max(1, int(0.3 * len(rollout.ids)))
        chosen = np.sort(np.argsort(-seen.entropies, kind="stable")[:count])
        visual = np.flatnonzero(rollout.prompt_ids == policy.image_token)
        a = rows[chosen][:, visual[owned]].mean()
        v = rows[chosen][:, visual].mean()
        assert found.terms["attention"].value == pytest.approx(np.tanh(np.log(a / v)), abs=1e-5)


def touched(record, image: int, policy) -> np.ndarray:
    from sightline.geometry.grid import touched as cells

    boxes = [r.box for r in record.regions if r.image == image]
    return cells(boxes, policy.frame, record.images[image].size)


def replayed_rows(policy, rollout) -> np.ndarray:
    """Attention of each reply token as the query, (tokens, keys of the prompt), head mean of the last layer."""
    import torch
    import transformers

    name = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
    kind = getattr(transformers, name[policy.family])
    model = kind.from_pretrained(policy.source, attn_implementation="eager").eval()
    shown = policy.pixels.batch([(image, 0) for image in rollout.prompt.images])
    prompt_length, rows = len(rollout.prompt_ids), []
    for step in range(len(rollout.ids)):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids[: step + 1]]))[None]
        with torch.no_grad():
            out = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown.pixels,
                image_grid_thw=shown.grids, mm_token_type_ids=(ids == policy.image_token).int(),
                output_attentions=True, use_cache=False,
            )  # fmt: skip
        rows.append(out.attentions[-1][0, :, -1, :prompt_length].mean(0).numpy())
    return np.stack(rows)


def test_a_second_image_changes_the_reward_only_through_its_own_cells(world) -> None:
    record = world.record(BOX)
    two = replace(record, images=(*record.images, picture(280, 280, 5)))
    group = attended(world.group(two, textual=[GOOD]), 2.0)
    scored = score(sayo(), [group], world.context())[0]
    assert terms(scored, "region_ratio") == pytest.approx([4.0], abs=1e-3)  # twice the cells, the same masses
