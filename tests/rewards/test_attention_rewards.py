"""Attention as a reward: golden values of SAYO, closed form, bounds and invariances; the concentration score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.rewards.attention import (
    concentration,
    focus_overlap,
    length_factor,
    ratio_score,
    region_ratio,
    sinks,
    top_rows,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sayo.json").read_text())


def masses(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.01, 0.3, rows), rng.uniform(0.05, 0.6, rows)


@pytest.mark.parametrize(("ratio", "reward"), GOLDEN["ratio_to_reward"])
def test_golden_ratios(ratio: float, reward: float) -> None:
    assert ratio_score(ratio) == pytest.approx(reward, abs=0.005)
    assert ratio_score(ratio, "half_shifted") == pytest.approx(0.5 * (1 + ratio_score(ratio)))


def test_closed_form() -> None:
    for x in np.random.default_rng(1).uniform(0.01, 30, 200):
        assert ratio_score(x) == pytest.approx(np.tanh(np.log(x)), abs=1e-12)
        assert -1 < ratio_score(x) < 1
        assert ratio_score(x, "log") == pytest.approx(np.log(x))


def test_a_region_that_is_the_whole_image_earns_exactly_nothing() -> None:
    region, _ = masses(7)
    ratio = region_ratio(region, np.zeros(7), cells=100, visual=100)
    assert ratio_score(ratio) == 0.0


@pytest.mark.parametrize("case", GOLDEN["all_mass_inside"], ids=lambda case: case["case"])
def test_upper_bound(case: dict) -> None:
    region, _ = masses(5)
    ratio = region_ratio(region, np.zeros(5), case["cells"], case["visual"])
    assert ratio == pytest.approx(case["visual"] / case["cells"], rel=1e-5)
    assert ratio_score(ratio) == pytest.approx(case["reward"], abs=0.005)


def test_a_sink_hides_the_region_unless_it_is_left_out() -> None:
    g = GOLDEN["sink"]
    background = g["non_sink_mass"] / (g["times_background"] * g["cells"] + g["visual"] - g["cells"] - 1)
    attention = np.full((1, g["visual"]), background)
    owned = np.zeros(g["visual"], bool)
    owned[:18] = True
    attention[0, owned] *= g["times_background"]
    attention[0, -1] = g["sink_mass"]
    region, image = attention[:, owned].sum(1), attention[:, ~owned].sum(1)
    assert region_ratio(region, image, 18, 256) == pytest.approx(g["ratio"], abs=0.01)
    dropped = sinks(attention, owned)
    assert dropped.nonzero()[0].tolist() == [255]
    clean = region_ratio(
        region, image, 18, 256, denominator="image_mean_no_sink", sink=attention[:, dropped].sum(1), sink_cells=1
    )
    assert clean == pytest.approx(g["ratio_without_sink"], abs=0.05)


def test_a_sink_inside_the_region_stays() -> None:
    attention = np.full((3, 50), 0.01)
    attention[:, 7] = 0.6
    assert not sinks(attention, np.arange(50) == 7).any()


@pytest.mark.parametrize(("tokens", "factor"), GOLDEN["length_window"])
def test_length_window(tokens: int, factor: float) -> None:
    assert length_factor(tokens) == pytest.approx(factor)


def test_length_window_of_another_size() -> None:
    assert [length_factor(n, 12, 40) for n in (12, 40)] == [1.0, 1.0]
    assert length_factor(11, 12, 40) == pytest.approx(0.55)
    assert length_factor(80, 12, 40) == pytest.approx(0.3)


@pytest.mark.parametrize("pooling", ["ratio_of_means", "mean_of_ratios"])
@pytest.mark.parametrize("denominator", ["image_mean", "outside_mean", "image_mass"])
def test_scaling_all_visual_attention_changes_nothing(pooling, denominator) -> None:
    region, image = masses(9)
    rules = {"pooling": pooling, "denominator": denominator}
    whole = region_ratio(region, image, 6, 36, **rules)
    assert region_ratio(region * 0.1, image * 0.1, 6, 36, **rules) == pytest.approx(whole, rel=1e-4)


def test_pooling_weighs_rows_by_their_visual_attention() -> None:
    region, image = np.array([0.4, 0.0]), np.array([0.4, 0.1])
    assert region_ratio(region, image, 1, 4) == pytest.approx(0.2 / (0.45 / 4), rel=1e-5)
    assert region_ratio(region, image, 1, 4, pooling="mean_of_ratios") == pytest.approx(1.0, rel=1e-5)


def test_denominators() -> None:
    region, image = np.array([0.2]), np.array([0.3])
    assert region_ratio(region, image, 2, 10) == pytest.approx(2.0, rel=1e-6)
    assert region_ratio(region, image, 2, 10, denominator="outside_mean") == pytest.approx(0.1 / (0.3 / 8), rel=1e-5)
    assert region_ratio(region, image, 2, 10, denominator="image_mass") == pytest.approx(0.4, rel=1e-6)
    assert region_ratio(region, np.zeros(1), 10, 10, denominator="outside_mean") == pytest.approx(1.0)
    assert ratio_score(3.0, "share", share=0.4) == 0.4


def test_top_rows_never_leave_the_valid_tokens_and_are_at_least_one() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        values, valid = rng.normal(size=20), rng.random(20) < 0.6
        chosen = top_rows(values, valid, 0.3)
        assert not (chosen & ~valid).any()
        assert chosen.sum() == (max(1, int(0.3 * valid.sum())) if valid.any() else 0)
        if valid.any():
            assert values[chosen].min() >= np.sort(values[valid])[::-1][chosen.sum() - 1]


EFFECT = np.array([0.1, 3.0, 0.2, 2.0, 0.0, 0.1, 0.0, 0.1, 0.0, 0.1])
ATTENTION = np.array([0.1, 0.6, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_constant_attention_is_worth_one_half() -> None:
    for form in ("ratio_tanh", "rank_corr"):
        for weights in ("topk", "soft"):
            assert concentration(np.full(10, 0.3), EFFECT, form=form, weights=weights) == pytest.approx(0.5)
    assert concentration(np.full(10, 0.3), EFFECT, form="share") == pytest.approx(0.4)


@pytest.mark.parametrize("form", ["ratio_tanh", "share", "rank_corr"])
@pytest.mark.parametrize("weights", ["topk", "soft"])
def test_the_level_of_attention_does_not_pay(form, weights) -> None:
    score = concentration(ATTENTION, EFFECT, form=form, weights=weights)
    assert concentration(ATTENTION * 0.1, EFFECT, form=form, weights=weights) == pytest.approx(score, rel=1e-5)
    assert score > concentration(ATTENTION[::-1], EFFECT, form=form, weights=weights)


def test_a_weighted_mean_can_be_gamed_by_attending_everywhere() -> None:
    assert concentration(ATTENTION * 2, EFFECT, form="weighted_mean") == pytest.approx(
        2 * concentration(ATTENTION, EFFECT, form="weighted_mean")
    )


def test_ratio_by_hand() -> None:
    ratio = (0.6 + 0.5 + 0.1 + 0.1) / 4 / ATTENTION.mean()
    assert concentration(ATTENTION, EFFECT) == pytest.approx(ratio**2 / (1 + ratio**2), rel=1e-6)
    soft = EFFECT @ ATTENTION / EFFECT.sum() / ATTENTION.mean()
    assert concentration(ATTENTION, EFFECT, weights="soft") == pytest.approx(soft**2 / (1 + soft**2), rel=1e-6)


def test_short_replies_get_what_constant_attention_would() -> None:
    for form, neutral in (("ratio_tanh", 0.5), ("rank_corr", 0.5), ("weighted_mean", 0.35)):
        assert concentration(np.array([0.6, 0.1]), np.array([1.0, 0.0]), form=form) == pytest.approx(neutral)
    assert concentration(np.empty(0), np.empty(0)) == 0.5


def test_scores_stay_within_bounds() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(1, 30))
        a, c = rng.uniform(0, 1, n), rng.uniform(0, 10, n)
        for form in ("ratio_tanh", "share", "weighted_mean", "rank_corr"):
            assert 0 <= concentration(a, c, form=form, least=1) <= 1


def test_rank_correlation_agrees_with_scipy() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(4)
    for _ in range(20):
        a, c = rng.integers(0, 5, 12).astype(float), rng.normal(size=12)
        assert concentration(a, c, form="rank_corr") == pytest.approx(0.5 * (1 + spearmanr(a, c).statistic))


def test_focus_overlap_is_a_weighted_mean_over_cells() -> None:
    attention = np.array([[0.1, 0.3], [0.2, 0.0]])
    assert focus_overlap(attention, np.array([0.1, 0.3])).tolist() == pytest.approx([0.25, 0.05])
    assert focus_overlap(attention, np.zeros(2)).tolist() == pytest.approx([0.2, 0.1])
