"""Scale-relative credit: the golden vectors, every open case of the definition, and Groups of conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sightline.credit.bin_credit import bin_credit, box_area, evidence_box, with_bins
from sightline.credit.bins import BinConfig, BinTerms, bin_advantages, bin_edges, bins_of
from sightline.credit.group import credit_for, group_advantages
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.types import (
    Group,
    ImageRef,
    Message,
    Prompt,
    Reading,
    Record,
    Rollout,
    Score,
    Scores,
    Size,
)  # fmt: skip

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ground_r1.json").read_text())["srpo"]
SIZE = Size(1000, 1000)
FRAME = Frame("relative_1000", 16, 64 * 64, 96 * 96)
RECORD = Record(id="r", question="?", answer="a", images=(ImageRef(size=SIZE, digest="d"),))
ANSWER = read("<think>x</think><answer>red</answer>", FRAME, [SIZE])


def asks(box: tuple[int, int, int, int]) -> Reading:
    return read(f"<think>x</think><box>[{','.join(map(str, box))}]</box>", FRAME, [SIZE])


def conversation(*boxes: tuple[int, int, int, int]) -> Reading:
    turns = (*(asks(box) for box in boxes), ANSWER)
    return replace(ANSWER, turns=turns)


def square(area: float) -> tuple[int, int, int, int]:
    return (0, 0, round(1000 * area), 1000)


def group(areas: Sequence[float | None], rewards: Sequence[float | None], stream: str = "grounded") -> Group:
    """One Rollout per area (None: a direct answer) and reward (None: masked)."""
    prompt = Prompt(record=RECORD, stream=stream, messages=(Message("user", ("?",)),))
    readings = tuple(conversation(*([] if a is None else [square(a)])) for a in areas)
    rollouts = tuple(
        Rollout(
            prompt=prompt, branch=(i,), prompt_ids=np.arange(2), ids=np.arange(4),
            sampled=np.array([True, False, True, True]), logprobs=np.zeros(4), text="", finish="stop",
        )
        for i in range(len(areas))
    )  # fmt: skip
    scores = tuple(Scores(terms={"r": Score(r or 0.0, masked=r is None)}) for r in rewards)
    return Group(record=RECORD, rollouts=rollouts, readings=readings, scores=scores)


def advantages(rewards: Sequence[float], bins: Sequence[int], **config) -> BinTerms:
    return bin_advantages([float(r) for r in rewards], bins, config=BinConfig.model_validate(config))


def both(terms: BinTerms) -> list[float]:
    return (terms.intra + terms.inter).round(3).tolist()


class TestGolden:
    rewards = np.array(GOLDEN["intra"], float).ravel().tolist()
    areas = np.repeat(GOLDEN["areas"], 2).tolist()

    def test_srpo(self) -> None:
        places = bins_of(self.areas, bin_edges(BinConfig(), []))
        terms = bin_advantages(self.rewards, places, config=BinConfig(eps=GOLDEN["eps"], bins=GOLDEN["bins"]))
        # the vectors are rounded to three places
        np.testing.assert_allclose(terms.intra + terms.inter, np.ravel(GOLDEN["advantages"]), atol=1.01e-3)

    def test_grpo_on_the_same_data(self) -> None:
        # the vectors are those of the population deviation
        found = group_advantages(self.rewards, eps=1e-4, ddof=0)
        np.testing.assert_allclose(found, np.ravel(GOLDEN["grpo"]), atol=1e-3)

    def test_the_credit_of_a_group(self) -> None:
        credits = bin_credit(group(self.areas, self.rewards))
        expected = np.ravel(GOLDEN["advantages"])
        np.testing.assert_allclose([c.parts["advantage"] for c in credits], expected, atol=1.01e-3)
        assert [c.parts["bin"] for c in credits] == [1, 1, 1, 1, 2, 2, 3, 3]
        np.testing.assert_allclose([c.parts["box_area"] for c in credits], self.areas)
        for credit in credits:
            assert credit.parts["intra"] + credit.parts["inter"] == pytest.approx(credit.parts["advantage"])
            np.testing.assert_array_equal(credit.advantage, credit.parts["advantage"] * np.array([1, 0, 1, 1]))
            assert credit.weight.tolist() == [1, 0, 1, 1]


class TestOpenCases:
    """One test per row of the table of cases that the paper leaves open."""

    def test_a_bin_without_spread_has_no_intra_term(self) -> None:
        assert advantages([1, 1, 0, 1], [1, 1, 2, 2]).intra.tolist()[:2] == [0, 0]

    def test_a_lone_rollout_has_none_or_is_compared_with_the_group(self) -> None:
        rewards, bins = [3, 0, 1], [1, 2, 2]
        assert advantages(rewards, bins).intra[0] == 0
        found = advantages(rewards, bins, lone="group").intra[0]
        assert found == pytest.approx((3 - np.mean(rewards)) / (np.std(rewards) + 1e-4))

    def test_one_occupied_bin_is_grpo_or_skipped(self) -> None:
        rewards = [1.0, 0.0, 1.0, 1.0]
        terms = advantages(rewards, [2] * 4)
        assert terms.inter.tolist() == [0] * 4
        np.testing.assert_allclose(terms.intra, group_advantages(rewards, eps=1e-4, ddof=0))
        skipped = advantages(rewards, [2] * 4, single="skip")
        assert not skipped.counts.any()
        assert not skipped.intra.any()

    def test_one_occupied_bin_beside_direct_answers_has_no_inter_term(self) -> None:
        terms = advantages([1, 0, 0, 1], [1, 1, 0, 0])
        assert terms.inter.tolist() == [0] * 4
        assert terms.intra.any()

    def test_tied_bins_all_win_or_the_smallest_boxes_do(self) -> None:
        rewards, bins = [1, 1, 1, 1, 0, 0], [1, 1, 3, 3, 2, 2]
        tied = advantages(rewards, bins).inter
        assert (tied[:4] > 0).all()
        assert (tied[4:] < 0).all()
        smallest = advantages(rewards, bins, ties="smallest").inter
        assert (smallest[:2] > 0).all()
        assert (smallest[2:] < 0).all()

    def test_empty_bins_take_no_part_or_count_as_zero(self) -> None:
        rewards, bins = [-1, -2, -3, -3], [1, 1, 3, 3]
        assert (advantages(rewards, bins).inter[:2] > 0).all()
        assert advantages(rewards, bins, empty="zero").inter.tolist() == [0] * 4  # the empty bin 2 wins alone

    def test_direct_answers_are_a_bin_that_cannot_win(self) -> None:
        rewards, bins = [9, 9, 1, 0, 0, 0], [0, 0, 1, 1, 2, 2]
        terms = advantages(rewards, bins)
        assert terms.inter.argmax() in (2, 3)
        assert terms.inter[0] < 0
        assert terms.intra[:2].tolist() == [0, 0]

    def test_direct_answers_may_count_as_the_whole_image(self) -> None:
        found = group([0.1, 0.1, None, None], [0, 1, 2, 2])
        assert [c.parts["bin"] for c in bin_credit(found)] == [1, 1, 0, 0]
        mapped = bin_credit(found, BinConfig(no_box="whole_image"))
        assert [c.parts["bin"] for c in mapped] == [1, 1, 3, 3]
        assert mapped[2].parts["inter"] > 0
        assert "box_area" not in mapped[2].parts

    @pytest.mark.parametrize(("which", "area"), [("last", 0.5), ("first", 0.2), ("smallest", 0.1)])
    def test_of_several_boxes_one_counts(self, which, area) -> None:
        asked = conversation(square(0.2), square(0.1), square(0.5))
        assert box_area(asked, RECORD, BinConfig(refined=which)) == pytest.approx(area)

    def test_the_last_valid_box_counts(self) -> None:
        empty = read("<think>x</think><box>[5,5,5,5]</box>", FRAME, [SIZE])
        asked = replace(ANSWER, turns=(asks(square(0.3)), empty, ANSWER))
        assert box_area(asked, RECORD) == pytest.approx(0.3)

    def test_a_clipped_box_counts_with_its_part_inside_or_not_at_all(self) -> None:
        asked = conversation((500, 0, 1500, 1000))
        assert box_area(asked, RECORD) == pytest.approx(0.5)
        assert box_area(asked, RECORD, BinConfig(clipped="no_box")) is None


def test_boxes_of_an_answering_turn_and_of_the_reasoning_are_no_evidence() -> None:
    answering = read("<think>x</think><box>[0,0,9,9]</box><answer>red</answer>", FRAME, [SIZE])
    assert evidence_box(answering) is None
    quoting = read("<think>not [0,0,9,9]</think><box>[0,0,500,1000]</box>", FRAME, [SIZE])
    assert box_area(quoting, RECORD) == pytest.approx(0.5)


def test_edges_equal_given_and_quantiles() -> None:
    areas = [0.01, 0.02, 0.03, 0.5]
    assert bin_edges(BinConfig(), areas) == pytest.approx((1 / 3, 2 / 3))
    assert bin_edges(BinConfig(edges=(0.1, 0.3)), areas) == (0.1, 0.3)
    assert bins_of(areas, bin_edges(BinConfig(edges="quantile", bins=2), areas)).tolist() == [1, 1, 2, 2]
    assert BinConfig(edges=(0.1, 0.3, 0.5)).count == 4
    assert BinConfig.model_validate({"edges": [0.1, 0.3]}).edges == (0.1, 0.3)
    for bad in ([0.3, 0.1], [0.1, 0.1], [0.0, 0.5], [0.5, 1.0]):
        with pytest.raises(ValidationError):
            BinConfig.model_validate({"edges": bad})


def test_an_area_on_a_border_belongs_to_the_upper_bin() -> None:
    shares = [0.0, 1 / 3, 0.5, 2 / 3, 1.0]
    expected = [min(int(3 * a) + 1, 3) for a in shares]
    assert bins_of(shares, bin_edges(BinConfig(), [])).tolist() == expected == [1, 2, 2, 3, 3]


def test_quantiles_of_the_step_see_the_other_groups() -> None:
    small, large = group([0.1, 0.12], [0, 1]), group([0.7, 0.8], [1, 0])
    config = BinConfig(edges="step_quantile", bins=2)
    peers = (small, large)
    found = [[c.parts["bin"] for c in bin_credit(replace(g, peers=peers), config)] for g in peers]
    assert found == [[1, 1], [2, 2]]
    alone = [c.parts["bin"] for c in bin_credit(small, BinConfig(edges="quantile", bins=2))]
    assert alone == [1, 2]


def test_masked_rollouts_leave_every_mean() -> None:
    found = bin_credit(group([0.1, 0.1, 0.1, 0.9], [1, 0, None, 3]))
    without = bin_credit(group([0.1, 0.1, 0.9], [1, 0, 3]))
    assert [found[i].parts["advantage"] for i in (0, 1, 3)] == [c.parts["advantage"] for c in without]
    assert found[2].weight.sum() == 0
    assert found[2].parts["masked"] == 1
    assert not any(c.weight.any() for c in bin_credit(group([0.1, 0.9], [1, None])))


def test_equal_rewards_teach_nothing_whatever_the_bins() -> None:
    credits = bin_credit(group([0.1, 0.9, None, None], [1, 1, 1, 1]))
    assert [c.parts["advantage"] for c in credits] == [0] * 4
    assert all(c.weight.any() and c.parts["flat"] == 1 for c in credits)


def test_streams_are_groups_of_their_own() -> None:
    a, b = group([0.1, 0.9], [1, 0]), group([0.1, 0.1], [5, 4], stream="other")
    mixed = Group(
        record=RECORD, rollouts=(*a.rollouts, *b.rollouts), readings=(*a.readings, *b.readings),
        scores=(*a.scores, *b.scores),
    )  # fmt: skip
    apart = [c.parts["advantage"] for g in (a, b) for c in bin_credit(g)]
    assert [c.parts["advantage"] for c in bin_credit(mixed)] == apart


def test_parts_average_to_occupancy_and_reward_of_each_bin() -> None:
    credits = bin_credit(group([0.1, 0.1, 0.9, None], [1, 0, 3, 2]))
    names = {name for c in credits for name in c.parts}
    mean = {n: np.mean([c.parts[n] for c in credits if n in c.parts]) for n in names}
    assert [mean[f"bin_{k}_share"] for k in (1, 2, 3)] == [0.5, 0, 0.25]
    assert mean["no_box_share"] == 0.25
    assert (mean["bin_1_reward"], mean["bin_3_reward"], mean["no_box_reward"]) == (0.5, 3, 2)
    assert "bin_2_reward" not in names
    assert mean["box_area"] == pytest.approx((0.1 + 0.1 + 0.9) / 3)


def test_bins_can_be_shown_beside_another_credit() -> None:
    scored = group([0.1, 0.9, None], [1, 0, 2])
    plain = credit_for(scored)
    shown = with_bins(scored, plain)
    assert [c.parts["bin"] for c in shown] == [1, 3, 0]
    assert [c.parts["advantage"] for c in shown] == [c.parts["advantage"] for c in plain]
    assert all(a.advantage is b.advantage for a, b in zip(shown, plain, strict=True))
    assert "inter" not in shown[0].parts


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        bin_advantages([1.0], [1, 2])
    with pytest.raises(ValueError, match="scored group"):
        bin_credit(replace(group([0.1], [1]), scores=()))
    assert bin_credit(Group(record=RECORD, rollouts=(), readings=())) == ()


CONFIGS = st.builds(
    BinConfig,
    edges=st.sampled_from(["equal", "quantile", "step_quantile", (0.1, 0.3)]),
    bins=st.integers(1, 5),
    lone=st.sampled_from(["zero", "group"]),
    single=st.sampled_from(["grpo", "skip"]),
    ties=st.sampled_from(["all", "smallest"]),
    empty=st.sampled_from(["excluded", "zero"]),
    no_box=st.sampled_from(["own_bin", "whole_image"]),
    ddof=st.integers(0, 1),
)


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.floats(0.001, 1)), st.one_of(st.none(), st.floats(0, 3))), max_size=8),
    CONFIGS,
)
def test_any_areas_and_rewards(rows, config) -> None:
    credits = bin_credit(group([a for a, _ in rows], [r for _, r in rows]), config)
    assert len(credits) == len(rows)
    for credit, (_, reward) in zip(credits, rows, strict=True):
        assert np.isfinite(credit.advantage).all()
        assert all(np.isfinite(v) for v in credit.parts.values())
        assert 0 <= credit.parts["bin"] <= config.count
        assert reward is not None or not credit.weight.any()
    counted = [c for c in credits if c.weight.any()]
    if config.ddof == 0 and config.lone == "zero":  # both terms are centred
        assert sum(c.parts["advantage"] for c in counted) == pytest.approx(0, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0, 3)), min_size=2, max_size=8))
def test_intra_is_unmoved_by_a_shift_of_a_bin(rows) -> None:
    bins, rewards = [k for k, _ in rows], [r for _, r in rows]
    shifted = [r + 5 * (k == 1) for k, r in rows]
    a, b = advantages(rewards, bins), advantages(shifted, bins)
    if not (np.ptp(rewards) <= 1e-6 or np.ptp(shifted) <= 1e-6):
        np.testing.assert_allclose(a.intra, b.intra, atol=1e-5)


def test_with_one_bin_srpo_is_grpo_of_the_same_deviation() -> None:
    found = group([0.1, 0.2, 0.5, 0.9], [0, 1, 2, 2])
    ours = bin_credit(found, BinConfig(bins=1))
    theirs = credit_for(found, eps=1e-4, ddof=0)
    np.testing.assert_allclose([c.parts["advantage"] for c in ours], [c.parts["advantage"] for c in theirs])


def test_metrics_of_a_step_show_occupancy_and_both_terms() -> None:
    from sightline.report.metrics import sentence
    from sightline.train.health import group_metrics

    scored = group([0.1, 0.1, 0.9, None], [1, 0, 3, 2])
    found = group_metrics([replace(scored, credits=bin_credit(scored))])
    assert found["credit/grounded/bin_1_share"] == 0.5
    assert found["credit/grounded/bin_3_reward"] == 3
    assert found["credit/grounded/no_box_share"] == 0.25
    assert found["credit/grounded/inter"] > 0
    assert found["credit/grounded/intra"] > 0
    assert sentence("credit/grounded/bin_2_share").endswith("whose box lies in bin 2 (1: smallest).")
    assert "credit/grounded/baseline" not in found
