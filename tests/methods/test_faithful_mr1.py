"""Faithful-MR1-style: terms, gates, advantages, axes, the form behind the token, and what the config refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from losses import LossReads, contrast_batch
from sightline.errors import UserError
from sightline.methods import load_method
from sightline.methods.faithful_mr1 import FaithfulMR1, FaithfulMR1Config
from sightline.methods.probes import Contrast, FocusAttention, RegionAttention
from sightline.train.scoring import credit, score
from sightline.types import Group, Measurement, Region

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "faithful_mr1.json").read_text())
BOX = (0, 0, 56, 28)
PIECES = ["<think>", " The", " cup", " is", " left", " red", "</think>", "<answer>", " green", "</answer>", ""]
RIGHT = "<Focus>\n<think> The cup is left red</think><answer> green</answer>"
WRONG = RIGHT.replace("> green", "> red")
EFFECT = [0.0, 0.0, -3.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
FLAT = [0.2] * 11
CAUSAL = [0.2, 0.1, 0.5, 0.1, 0.4, 0.1, 0.2, 0.2, 0.1, 0.2, 0.2]


def faithful(**keys: Any) -> FaithfulMR1:
    method = load_method({"name": "faithful_mr1", **keys})
    assert isinstance(method, FaithfulMR1)
    return method


def group_of(world, texts: list[str], attention: list[list[float]], record=None, **more: Any) -> Group:
    """One token per piece; `attention` is each token's mass on the image, a tenth of it on the region."""
    group = world.group(record or world.record(BOX), textual=texts)
    rollouts, seen = [], []
    for rollout, mass in zip(group.rollouts, attention, strict=True):
        ids, a = np.arange(len(PIECES)), np.array(mass)
        rows = np.stack([0.1 * a, 0.9 * a, 0 * a, 1 - a], axis=1)
        probes = {"attention": rows, "contrast": np.array(EFFECT), **more.get("probes", {})}
        rollouts.append(replace(rollout, ids=ids, sampled=np.ones(len(ids), bool), logprobs=np.zeros(len(ids))))
        seen.append(Measurement(logprobs=np.zeros(len(ids)), probes=probes, maps=more.get("maps", {})))
    return replace(group, rollouts=tuple(rollouts), measurements=tuple(seen))


def context(world):
    return replace(world.context(), pieces=lambda ids: [PIECES[i] for i in ids])


def attention(method: FaithfulMR1, group: Group, world) -> list[float]:
    return [s.terms["attention"].value for s in method.score(group, context(world))]


def expected(values: list[float], counted: list[int], chosen: list[int]) -> float:
    ratio = np.mean([values[i] for i in chosen]) / np.mean([values[i] for i in counted])
    return ratio**2 / (1 + ratio**2)


CONTENT = [1, 2, 3, 4, 5, 8]


def test_constant_attention_is_worth_one_half(world) -> None:
    group = group_of(world, [RIGHT], [FLAT])
    assert attention(faithful(), group, world) == pytest.approx([GOLDEN["constant_attention"]])


def test_attention_where_the_image_decides(world) -> None:
    """Tags, answer tags and the end do not count; of six tokens ceil(.4 x 6) = 3 are chosen, ties in order."""
    found = attention(faithful(), group_of(world, [RIGHT], [CAUSAL]), world)
    assert found == pytest.approx([expected(CAUSAL, CONTENT, [2, 4, 1])], rel=1e-5)
    assert found[0] > 0.5


def test_the_answer_can_be_left_out(world) -> None:
    found = attention(faithful(causal={"mask_answer": True}), group_of(world, [RIGHT], [CAUSAL]), world)
    assert found == pytest.approx([expected(CAUSAL, CONTENT[:-1], [2, 4])], rel=1e-5)


def test_wrong_rollouts_get_no_reward_for_attention(world) -> None:
    method = faithful()
    group = group_of(world, [RIGHT, WRONG], [CAUSAL, CAUSAL])
    scores = method.score(group, context(world))
    assert scores[1].terms["attention"].value == 0
    assert "does not count" in scores[1].terms["attention"].why
    s = scores[0].terms["attention"].value
    assert scores[0].total == pytest.approx(1 + 0.1 + 0.3 * s)
    assert scores[1].total == pytest.approx(0.1)


@pytest.mark.parametrize(("gate", "counts"), [("none", [1, 1]), ("multiplicative", [1, 0]), ("group_window", [1, 0])])
def test_gates(world, gate, counts) -> None:
    found = attention(faithful(reward={"gate": gate}), group_of(world, [RIGHT, WRONG], [FLAT, FLAT]), world)
    assert found == pytest.approx([0.5 * c for c in counts])


def test_a_group_that_is_all_correct_is_outside_the_window(world) -> None:
    method = faithful(reward={"gate": "group_window"})
    assert attention(method, group_of(world, [RIGHT, RIGHT], [FLAT, CAUSAL]), world) == [0, 0]


def test_decoupled_advantages(world) -> None:
    group = group_of(world, [RIGHT, RIGHT, WRONG], [CAUSAL, FLAT, CAUSAL])
    decoupled, summed = faithful(), faithful(reward={"advantage_mix": "summed"})
    found = {}
    for name, method in (("decoupled", decoupled), ("summed", summed)):
        scored = score(method, [group], context(world))
        found[name] = [c.parts["advantage"] for c in credit(method, scored)[0].credits]
    base = np.array([1.1, 1.1, 0.1])
    z = (base - base.mean()) / base.std(ddof=1)
    assert found["decoupled"] == pytest.approx([z[0] + 0.3 * 2**-0.5, z[1] - 0.3 * 2**-0.5, z[2]], abs=1e-4)
    assert sum(found["decoupled"][:2]) == pytest.approx(2 * z[0], abs=1e-4)
    assert found["summed"][0] - found["summed"][1] < 0.3


def test_the_rewards_keep_the_baseline_of_the_recipe(world) -> None:
    group = group_of(world, [RIGHT, WRONG], [CAUSAL, FLAT])
    method = faithful(credit={"how": "dr_grpo"})
    credits = credit(method, score(method, [group], context(world)))[0].credits
    assert [c.parts["advantage"] for c in credits] == pytest.approx([0.5, -0.5])


def test_all_correct_groups_move_by_the_weight_or_by_everything(world) -> None:
    group = group_of(world, [RIGHT, RIGHT], [CAUSAL, FLAT])
    for mix, size in (("decoupled", 0.3 * 2**-0.5), ("summed", 2**-0.5)):
        method = faithful(reward={"advantage_mix": mix})
        credits = credit(method, score(method, [group], context(world)))[0].credits
        assert credits[0].advantage[0] == pytest.approx(size, abs=1e-4)


def test_a_single_correct_rollout_gets_nothing_for_attention(world) -> None:
    group = group_of(world, [RIGHT, WRONG], [CAUSAL, FLAT])
    method = faithful()
    credits = credit(method, score(method, [group], context(world)))[0].credits
    assert [c.parts["advantage"] for c in credits] == pytest.approx([2**-0.5, -(2**-0.5)], abs=1e-4)


def test_truncated_rollouts_have_no_attention_score(world) -> None:
    group = group_of(world, [RIGHT], [CAUSAL])
    group = replace(group, rollouts=(replace(group.rollouts[0], finish="length"),))
    assert attention(faithful(reward={"gate": "none"}), group, world) == [0]


def test_what_attention_is_read_on(world) -> None:
    maps = np.zeros((11, 100))
    maps[:, :2] = 0.05 * np.array(CAUSAL)[:, None]
    given = {"maps": {"attention": maps, "focus": np.eye(1, 100)}}
    group = group_of(world, [RIGHT], [CAUSAL], **given)
    token = expected(CAUSAL, CONTENT, [2, 4, 1])
    for attend_to, wanted in (("image", token), ("boxes", token), ("boxes_given_image", 0.5), ("focus_map", token)):
        found = attention(faithful(score={"attend_to": attend_to}), group, world)
        assert found == pytest.approx([wanted], rel=1e-4), attend_to


def test_the_region_axis_needs_the_region_to_matter(world) -> None:
    """Region mass .1 on 2 of 100 cells: x = .1 / .02 = 5."""
    matters = {"region_mask": np.full(11, -2.0), "random_region": np.full(11, -0.5)}
    idle = {"region_mask": np.full(11, -0.5), "random_region": np.full(11, -0.5)}
    ratio = 25 / 26
    for axis, factor in (("region", 1.0), ("both", expected(CAUSAL, CONTENT, [2, 4, 1]))):
        method = faithful(score={"axis": axis})
        assert attention(method, group_of(world, [RIGHT], [CAUSAL], probes=matters), world) == pytest.approx(
            [ratio * factor], rel=1e-4
        )
        assert attention(method, group_of(world, [RIGHT], [CAUSAL], probes=idle), world) == [0]
    strict = faithful(score={"axis": "region", "tau": 2.0})
    assert attention(strict, group_of(world, [RIGHT], [CAUSAL], probes=matters), world) == [0]


def test_records_without_regions_keep_their_other_terms_on_the_region_axis(world) -> None:
    method = faithful(score={"axis": "region"})
    group = group_of(world, [RIGHT, WRONG], [FLAT, FLAT], world.record())
    scored = score(method, [group], context(world))
    assert not any(s.is_masked for s in scored[0].scores)
    assert credit(method, scored)[0].credits[0].advantage[0] > 0


def test_a_regional_counterfactual_does_not_apply_without_regions(world) -> None:
    """Such a contrast is not measured; the other terms still teach."""
    method = faithful(cf={"kind": "region_mask"})
    group = group_of(world, [RIGHT, WRONG], [FLAT, FLAT], world.record())
    bare = [replace(m, probes={"attention": m.probes["attention"]}) for m in group.measurements]
    scored = score(method, [replace(group, measurements=tuple(bare))], context(world))
    assert not any(s.is_masked for s in scored[0].scores)
    assert credit(method, scored)[0].credits[0].advantage[0] > 0


@pytest.mark.parametrize(
    ("estimator", "name"), [("full_kl", "full_kl"), ("topk_kl", "topk_kl"), ("jsd", "jsd"), ("tv", "tv")]
)
def test_exact_divergences_come_from_the_probe(world, estimator, name) -> None:
    method = faithful(causal={"estimator": estimator})
    assert [p.divergence for p in method.probes() if isinstance(p, Contrast)] == [name]
    exact = np.array([0.0, 0, 9, 0, 8, 0, 0, 0, 0, 0, 0])
    group = group_of(world, [RIGHT], [CAUSAL], probes={f"contrast/{name}": exact})
    assert attention(method, group, world) == pytest.approx([expected(CAUSAL, CONTENT, [2, 4, 1])], rel=1e-5)


def test_probes_follow_the_config() -> None:
    assert [type(p) for p in faithful().probes()] == [RegionAttention, Contrast, FocusAttention]
    both = faithful(score={"axis": "both", "attend_to": "focus_map"}, reward={"anchor_coef_rl": 0.1})
    assert [p.name for p in both.probes()] == ["attention", "contrast", "region_mask", "random_region", "focus"]
    region = faithful(score={"axis": "region"}, focus={"mode": "generated"})
    assert [p.name for p in region.probes()] == ["attention", "region_mask", "random_region"]
    assert both.probes()[0].keeps_maps  # type: ignore[attr-defined]
    assert both.probes()[-1].in_update  # type: ignore[attr-defined]


def test_stages_and_streams() -> None:
    anchoring, reinforcing = faithful(anchor={"steps": 7, "lr": 5e-6}).stages()
    assert (anchoring.kind, anchoring.steps, anchoring.lr, anchoring.restarts) == ("supervised", 7, 5e-6, True)
    assert anchoring.anchor is not None
    assert (reinforcing.kind, reinforcing.anchor, reinforcing.restarts) == ("reinforcement", None, True)
    (stream,) = faithful(focus={"count": 2, "lead": "Look: "}).streams(None)  # type: ignore[arg-type]
    assert stream.forced_prefix == "Look: <Focus><Focus>\n"
    assert faithful(focus={"mode": "generated"}).streams(None)[0].forced_prefix == ""  # type: ignore[arg-type]
    assert faithful(focus={"reuse": "<|fim_pad|>"}).streams(None)[0].forced_prefix == "<|fim_pad|>\n"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (RIGHT, 1.0),
        (RIGHT.removeprefix("<Focus>\n"), 0.0),
        (RIGHT.replace("The", "The<Focus>"), 0.0),
        ("<Focus>\nno tags", 0.0),
    ],
)
def test_the_form_behind_the_token(world, text, value) -> None:
    scores = faithful().score(group_of(world, [text], [FLAT]), context(world))
    assert scores[0].terms["format"].value == value


def test_the_map_of_the_token_is_shown_against_the_region(world) -> None:
    row = np.full((1, 100), 0.001)
    row[0, :2] = 0.2
    scores = faithful().score(group_of(world, [RIGHT], [FLAT], maps={"focus": row}), context(world))
    term = scores[0].terms["focus_region"]
    assert term.value == pytest.approx(0.4 / 0.498)
    assert scores[0].weight("focus_region") == 0


def test_unmeasured_rollouts_are_masked(world) -> None:
    group = replace(group_of(world, [RIGHT], [FLAT]), measurements=())
    assert faithful().score(group, context(world))[0].is_masked


@pytest.mark.parametrize(
    "keys",
    [
        {"focus": {"mode": "generated"}, "score": {"attend_to": "focus_map"}},
        {"focus": {"mode": "generated"}, "reward": {"anchor_coef_rl": 0.1}},
        {"reward": {"anchor_coef_rl": 0.1}, "anchor": {"target": "blur"}},
        {"reward": {"anchor_coef_rl": 0.1}, "anchor": {"sink_exclude": True}},
        {"anchor": {"layers": []}},
    ],
)
def test_what_does_not_fit_is_refused(keys) -> None:
    with pytest.raises((ValidationError, UserError)):
        FaithfulMR1Config.model_validate({"name": "faithful_mr1", **keys})


def test_the_anchor_loss_joins_reinforcement() -> None:
    import torch

    class Map:
        values = torch.full((2, 1, 4), 0.1)
        region = torch.tensor([[1.0, 0, 0, 0]])
        is_visual = torch.ones(1, 4, dtype=torch.bool)
        weight = torch.ones(1)

    method = faithful(reward={"anchor_coef_rl": 0.5}, anchor={"smooth": 0.0})
    given, outputs = contrast_batch([0.0] * 4), LossReads(torch.zeros(4), maps={"focus": Map()})
    loss = method.loss(given, outputs)  # type: ignore[arg-type]
    assert float(loss.terms["loss/anchor"]) == pytest.approx(0.5 * np.log(4), rel=1e-5)
    without = method.loss(given, LossReads(torch.zeros(4)))  # type: ignore[arg-type]
    assert "loss/anchor" not in without.terms


def test_regions_of_several_images_are_one_region(world) -> None:
    record = world.record(BOX)
    two = replace(
        record, images=record.images * 2, regions=(*record.regions, Region(box=record.regions[0].box, image=1))
    )
    scores = {"region_mask": np.full(11, -2.0), "random_region": np.zeros(11)}
    method = faithful(score={"axis": "region"})
    found = attention(method, group_of(world, [RIGHT], [CAUSAL], two, probes=scores), world)
    assert found == pytest.approx([25 / 26], rel=1e-4)  # 4 of 200 cells
