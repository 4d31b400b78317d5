"""Region attention in the scoring pass against eager matrices of every Rollout by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from measured import Stock, crop_before_picture, pairs, plain_groups, segment_table
from sightline.errors import SightlineError, UserError
from sightline.geometry.grid import Membership, membership
from sightline.interventions import Intervention
from sightline.methods.probes import BoxChoice, Contrast, FocusAttention, GoldLikelihood, RegionAttention
from sightline.policy.load import Policy
from sightline.policy.packing import Packer
from sightline.probes.layout import own_columns
from sightline.probes.look import look
from sightline.probes.scoring import scoring_pass
from sightline.types import Group

EXACT = 1e-6


def chosen(matrices: list[np.ndarray], layers: tuple[int, ...], heads: Any = None) -> np.ndarray:
    """Mean over layers and heads, (tokens, tokens)."""
    if heads is not None:
        return np.mean([matrices[layer][head] for layer, head in heads], axis=0)
    return np.concatenate([matrices[layer] for layer in layers]).mean(0)


def rows_of(group: Group, place: int, matrix: np.ndarray, align: str) -> np.ndarray:
    """The rows that belong to the tokens of a reply: shifted by one for the producer."""
    start = len(group.rollouts[place].prompt_ids)
    return matrix[start - 1 : -1] if align == "producer" else matrix[start:]


@pytest.mark.parametrize("align", ["producer", "consumer"])
@pytest.mark.parametrize("shares", [True, False])
def test_masses_maps_and_sinks_equal_eager_attention(
    policy: Policy, align: Any, shares: bool, stock: Stock, talks: list[Group]
) -> None:
    """Conversations with crops, several images and none, shared turns: every Rollout as if it were alone."""
    probe = RegionAttention(layers=(-1, 1), align=align, keeps_maps=True)
    measured = scoring_pass(Packer(policy, shares=shares), talks, (probe,))
    seen_added = 0.0
    for group, place, rollout in pairs(measured):
        found = group.measurements[place]
        matrices, predicted, visual = stock(rollout)
        rows = rows_of(group, place, chosen(matrices, (1, -1)), align)
        table, shown = segment_table(policy, rollout, "overlap", False)
        on = rollout.sampled
        np.testing.assert_allclose(found.probes["attention"][on], (rows @ table)[on], atol=EXACT)
        np.testing.assert_allclose(found.maps["attention"][on], rows[on][:, visual[:shown]], atol=EXACT)
        top = rows[on][:, visual[:shown]].max(1) if shown else np.zeros(on.sum())
        np.testing.assert_allclose(found.probes["attention/top1"][on], top, atol=EXACT)
        np.testing.assert_allclose(found.probes["attention"][on].sum(1), 1, atol=EXACT)
        assert not found.probes["attention"][~on].any()
        assert not found.maps["attention"][~on].any()
        assert found.maps["attention"].shape == (len(rollout.ids), shown)
        own = predicted[np.arange(len(rollout.ids)), rollout.ids]
        assert found.logprobs is not None
        np.testing.assert_allclose(found.logprobs[on], own[on], atol=1e-5)
        entropies = -(np.exp(predicted) * predicted).sum(1)
        assert found.entropies is not None
        np.testing.assert_allclose(found.entropies[on], entropies[on], atol=1e-4)
        seen_added += float(found.probes["attention"][:, 2].sum())
        if not rollout.record.images:
            assert not found.probes["attention"][:, :2].any()
    assert seen_added > 0.1  # some conversations looked at crops


def test_regions_are_those_of_the_picture_behind_a_crop(policy: Policy, stock: Stock) -> None:
    probes = (RegionAttention(keeps_maps=True), Contrast(intervention=Intervention("region_mask")))
    group = scoring_pass(Packer(policy), [crop_before_picture(policy)], probes)[0]
    rollout, found = group.rollouts[0], group.measurements[0]
    matrices, _, visual = stock(rollout)
    rows = rows_of(group, 0, chosen(matrices, (-1,)), "producer")
    crop, image = (policy.frame.tokens(i.size) for i in rollout.prompt.images)
    assert crop != image
    assert own_columns(rollout, policy.frame) == slice(crop, crop + image)
    region = membership(group.record.regions, [group.record.images[0].size], policy.frame)
    on, seen = rollout.sampled, rows[:, visual[crop:]]
    expected = np.stack([seen @ region, seen @ (1 - region), rows[:, visual[:crop]].sum(1)], 1)
    np.testing.assert_allclose(found.probes["attention"][on, :3], expected[on], atol=EXACT)
    np.testing.assert_allclose(found.maps["attention"][on], rows[on][:, visual], atol=EXACT)
    changed = found.images["contrast"]
    assert changed[0] == rollout.prompt.images[0]
    assert (changed[1].size, changed[1].digest) != (group.record.images[0].size, group.record.images[0].digest)


def test_membership_and_boxes(policy: Policy, stock: Stock, talks: list[Group]) -> None:
    rules = [(rule, boxes) for rule in get_args(Membership) for boxes in get_args(BoxChoice)]
    probes = [RegionAttention(name=f"{r} {b}", membership=r, boxes=b, reads_top=False) for r, b in rules]
    for group, place, rollout in pairs(scoring_pass(Packer(policy), talks[:2], probes)):
        rows = rows_of(group, place, chosen(stock(rollout)[0], (-1,)), "producer")
        for rule, boxes in rules:
            table, _ = segment_table(policy, rollout, rule, boxes == "first")
            found = group.measurements[place].probes[f"{rule} {boxes}"]
            np.testing.assert_allclose(found[rollout.sampled], (rows @ table)[rollout.sampled], atol=EXACT)


def test_single_heads_replace_layers(policy: Policy, tmp_path: Any, stock: Stock) -> None:
    groups = plain_groups(policy, 1)
    heads = ((0, 1), (2, 0), (2, 3))
    file = tmp_path / "heads.json"
    file.write_text('{"heads": [[0, 1], [-1, 0], [2, 3]]}')
    probes = (
        RegionAttention(name="a", layers=(0,), heads=heads), RegionAttention(name="b", heads_file=str(file)),
        RegionAttention(name="c", layers="all"), RegionAttention(name="d", layers="last_third"),
    )  # fmt: skip
    for group, place, rollout in pairs(scoring_pass(Packer(policy), groups, probes)):
        matrices = stock(rollout)[0]
        table, _ = segment_table(policy, rollout, "overlap", False)
        for name, matrix in {
            "a": chosen(matrices, (), heads), "b": chosen(matrices, (), heads),
            "c": chosen(matrices, (0, 1, 2)), "d": chosen(matrices, (1,)),
        }.items():  # fmt: skip
            rows = rows_of(group, place, matrix, "producer")
            np.testing.assert_allclose(group.measurements[place].probes[name], rows @ table, atol=EXACT)


def test_neither_company_nor_layout_matters(policy: Policy) -> None:
    """The same values alone, in a large batch, in rows of other lengths, and with every Rollout by itself."""
    groups = plain_groups(policy, 3)
    probe = RegionAttention(keeps_maps=True)
    alone = [scoring_pass(Packer(policy), [group], (probe,))[0] for group in groups]
    for packer in (Packer(policy), Packer(policy, 64), Packer(policy, 10**6), Packer(policy, shares=False)):
        together = scoring_pass(packer, groups[::-1], (probe,))[::-1]
        for a, b in zip(alone, together, strict=True):
            for first, second in zip(a.measurements, b.measurements, strict=True):
                for name in first.probes:
                    np.testing.assert_allclose(first.probes[name], second.probes[name], atol=EXACT)
                np.testing.assert_allclose(first.maps["attention"], second.maps["attention"], atol=EXACT)


def test_shared_turns_are_measured_once_and_told_to_all(policy: Policy, talks: list[Group]) -> None:
    for group in scoring_pass(Packer(policy), talks, (RegionAttention(),)):
        for a, b in zip(group.rollouts[::2], group.rollouts[1::2], strict=True):
            fork = min(*a.forks, *b.forks) if a.forks and b.forks else 0
            first, second = (group.measurements[group.rollouts.index(r)].probes["attention"] for r in (a, b))
            assert np.array_equal(first[:fork], second[:fork])


def test_look_gives_the_rows_of_the_tokens(policy: Policy, stock: Stock, talks: list[Group]) -> None:
    rollout = talks[1].rollouts[0]
    matrices, _, visual = stock(rollout)
    shown = int((rollout.prompt_ids == policy.image_token).sum())
    start = len(rollout.prompt_ids)
    for align, first in (("producer", start - 1), ("consumer", start)):
        rows = chosen(matrices, (1,))[first : first + len(rollout.ids), visual[:shown]]
        found = look(policy, rollout, (1,), align=align)  # type: ignore[arg-type]
        np.testing.assert_allclose(found[rollout.sampled], rows[rollout.sampled], atol=EXACT)
    assert look(policy, rollout, heads=((0, 2),)).shape == (len(rollout.ids), shown)


def test_nothing_asked_leaves_the_pass_bit_identical(policy: Policy) -> None:
    groups = plain_groups(policy, 1)
    bare = scoring_pass(Packer(policy), groups)[0]
    asked = scoring_pass(Packer(policy), groups, (RegionAttention(keeps_maps=True),))[0]
    for a, b in zip(bare.measurements, asked.measurements, strict=True):
        assert np.array_equal(a.logprobs, b.logprobs)
        assert np.array_equal(a.entropies, b.entropies)
        assert not a.probes
        assert not a.maps


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (RegionAttention(layers=(9,)), "layer 9"),
        (RegionAttention(heads=((0, 44),)), "head 44"),
        (RegionAttention(heads=()), "no head"),
        (RegionAttention(layers=()), "no layer"),
        (RegionAttention(heads_file="/nowhere/heads.json"), "does not exist"),
    ],
)
def test_what_the_model_does_not_have(policy: Policy, probe: RegionAttention, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scoring_pass(Packer(policy), plain_groups(policy, 1), (probe,))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (RegionAttention, {"align": "comsumer"}),
        (RegionAttention, {"membership": "overlaps"}),
        (FocusAttention, {"boxes": "last"}),
        (FocusAttention, {"layers": "last-third"}),
        (FocusAttention, {"count": 0}),
        (Contrast, {"divergence": "kl"}),
        (Contrast, {"draws": 0}),
        (GoldLikelihood, {"cut": "end"}),
    ],
)
def test_a_word_that_is_no_choice_is_refused_at_once(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"none of its choices|at least one (draw|token)"):
        kind(**wrong)


def test_a_file_that_is_no_list_of_heads(policy: Policy, tmp_path: Any) -> None:
    for content in ("{", "[]", '{"heads": 3}', '{"heads": [[1]]}', '{"heads": [["a", 1]]}', '{"heads": [[0.5, 1]]}'):
        file = tmp_path / "heads.json"
        file.write_text(content)
        with pytest.raises(UserError, match="not a list of heads"):
            scoring_pass(Packer(policy), plain_groups(policy, 1), (RegionAttention(heads_file=str(file)),))


def test_names_are_told_apart(policy: Policy) -> None:
    groups = plain_groups(policy, 1)
    with pytest.raises(SightlineError, match="two probes are called 'attention'"):
        scoring_pass(Packer(policy), groups, (RegionAttention(), RegionAttention(layers=(0,))))

    class Other:
        name = "other"

    with pytest.raises(SightlineError, match="Other is no probe"):
        scoring_pass(Packer(policy), groups, (Other(),))


def test_earlier_measurements_stay(policy: Policy) -> None:
    groups = scoring_pass(Packer(policy), plain_groups(policy, 1), (RegionAttention(name="first"),))
    again = scoring_pass(Packer(policy), groups, (replace(RegionAttention(), name="second"),))
    assert set(again[0].measurements[0].probes) == {"first", "first/top1", "second", "second/top1"}
