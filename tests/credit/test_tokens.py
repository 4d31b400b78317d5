"""Credit by token: estimators in closed form and in expectation, VPPO's filter and factors, the decoupled advantage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.credit.group import group_advantages
from sightline.credit.tokens import (
    causal_effect,
    content_tokens,
    decoupled_advantages,
    most_affected,
    rollout_scales,
    section_tokens,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "faithful_mr1.json").read_text())


@pytest.mark.parametrize(("difference", "effect"), GOLDEN["k3"])
def test_k3_is_asymmetric_and_clamped(difference: float, effect: float) -> None:
    assert causal_effect(np.zeros(1), np.array([difference]))[0] == pytest.approx(effect, abs=0.005)


def test_only_supported_tokens_count_for_the_positive_log_ratio() -> None:
    found = causal_effect(np.zeros(4), np.array([-2.0, 2.0, 0.0, -50.0]), "logratio_pos")
    assert found.tolist() == [2.0, 0.0, 0.0, 10.0]


def test_several_draws_are_averaged() -> None:
    one, two = np.array([-1.0, 0.5]), np.array([0.3, 0.0])
    both = causal_effect(np.zeros(2), np.stack([one, two], axis=1))
    assert both == pytest.approx((causal_effect(np.zeros(2), one) + causal_effect(np.zeros(2), two)) / 2)


def test_estimators_agree_with_the_full_divergence_in_expectation() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.full(6, 4.0))
    full = float((p * np.log(p / q)).sum())
    tokens = rng.choice(6, 400_000, p=p)
    k3 = causal_effect(np.log(p)[tokens], np.log(q)[tokens], value_clamp=1e9)
    assert k3.mean() == pytest.approx(full, abs=0.01)
    signed = (np.log(p) - np.log(q))[tokens]
    positive = causal_effect(np.log(p)[tokens], np.log(q)[tokens], "logratio_pos", value_clamp=1e9)
    assert (positive - np.maximum(-signed, 0)).mean() == pytest.approx(full, abs=0.01)


def test_the_filter_keeps_the_largest_valid_ones() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 10, 33):
        effect, valid = rng.uniform(size=n), np.ones(n, bool)
        kept = most_affected(effect, valid, 0.4)
        assert kept.sum() == -(-4 * n // 10)
        assert effect[kept].min() >= effect[~kept].max(initial=-1)
    assert not most_affected(np.ones(3), np.zeros(3, bool)).any()


def test_factors_have_mean_one_and_the_least_value() -> None:
    values = np.random.default_rng(2).uniform(size=64)
    factors = rollout_scales(values, 0.9)
    assert factors.mean() == pytest.approx(1.0, abs=1e-6)
    assert factors.min() == pytest.approx(0.9)
    assert (np.argsort(factors) == np.argsort(values)).all()
    assert rollout_scales([0.3, 0.3]).tolist() == [1.0, 1.0]
    assert rollout_scales([]).tolist() == []


def test_summed_advantages_blow_small_differences_up() -> None:
    g = GOLDEN["summed_all_correct_three"]
    rewards = [1 + 0.3 * s for s in g["scores"]]
    assert group_advantages(rewards, ddof=0).round(2).tolist() == pytest.approx(g["biased"])
    two = GOLDEN["summed_all_correct"]
    assert two["scores"][1] - two["scores"][0] == pytest.approx(two["difference"])
    found = group_advantages([1 + 0.3 * s for s in two["scores"]])
    assert found == pytest.approx(two["advantages"], abs=1e-4)


class TestDecoupled:
    def test_zero_mean_over_the_correct(self) -> None:
        rng = np.random.default_rng(3)
        for _ in range(50):
            correct = rng.random(8) < 0.6
            rewards, scores = correct + 0.1 * (rng.random(8) < 0.9), rng.random(8)
            added = decoupled_advantages(rewards, scores, correct, 0.3) - group_advantages(rewards)
            assert added[~correct].tolist() == [0] * int((~correct).sum())
            assert added[correct].sum() == pytest.approx(0, abs=1e-9)

    def test_a_single_correct_one_gets_nothing_for_its_attention(self) -> None:
        rewards = [1.0, 0.0, 0.0]
        found = decoupled_advantages(rewards, [0.9, 0.1, 0.2], [True, False, False], 0.3)
        assert found.tolist() == group_advantages(rewards).tolist()

    def test_scores_that_hardly_differ_are_not_standardised(self) -> None:
        assert decoupled_advantages([1, 1], [0.5, 0.5005], [True, True], 0.3).tolist() == [0, 0]

    def test_the_weight_bounds_what_attention_moves(self) -> None:
        g = GOLDEN["summed_all_correct_three"]
        found = decoupled_advantages([1.0] * 4, g["scores"], [True] * 4, 0.3, ddof=0)
        assert found == pytest.approx(0.3 * np.array(g["biased"]), abs=0.01)

    def test_masked_rollouts_take_no_part(self) -> None:
        found = decoupled_advantages([1, 1, 1], [0.4, 0.6, 9.0], [True] * 3, 0.3, [False, False, True])
        assert found[2] == 0
        assert found[:2] == pytest.approx([-0.3 * 2**-0.5, 0.3 * 2**-0.5])


PIECES = ["<Focus>", "\n", "<think>", " The", " cup", "</think>", "<ans", "wer>", " red", "</answer>", ""]


def test_content_is_what_lies_between_the_tags() -> None:
    kept = content_tokens(PIECES, np.ones(11, bool))
    assert [p for p, k in zip(PIECES, kept, strict=True) if k] == ["\n", " The", " cup", " red"]
    sampled = np.ones(11, bool)
    sampled[3] = False
    assert not content_tokens(PIECES, sampled)[3]


def test_sections_in_tokens() -> None:
    assert section_tokens(PIECES, "answer").nonzero()[0].tolist() == [8]
    assert section_tokens(PIECES, "think").nonzero()[0].tolist() == [3, 4]
    assert not section_tokens(PIECES[:-2], "answer").any()
    two = ["<answer>", "a", "</answer>", "<answer>", "b", "</answer>"]
    assert section_tokens(two, "answer").nonzero()[0].tolist() == [4]
    assert section_tokens([b"<answer>", b"\xc3", b"\xa9", b"</answer>"], "answer").tolist() == [
        False,
        True,
        True,
        False,
    ]
