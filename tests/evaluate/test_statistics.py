from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sightline.evaluate.statistics import Estimate, mcnemar, mean_interval, paired_difference, wilson


def test_the_interval_is_seeded_and_holds_the_mean():
    values = np.random.default_rng(1).random(200).tolist()
    first, again = mean_interval(values, seed=3), mean_interval(values, seed=3)
    assert first == again
    assert first != mean_interval(values, seed=4)
    assert first.low < first.mean < first.high
    assert first.mean == pytest.approx(np.mean(values))


def test_the_interval_agrees_with_the_normal_one_for_many_values():
    values = np.random.default_rng(0).normal(size=2000)
    estimate = mean_interval(values.tolist(), draws=4000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        estimate = mean_interval((random.random(80) < 0.3).astype(float).tolist(), seed=trial, draws=400)
        hits += estimate.low <= 0.3 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.99


def test_chunks_of_draws_change_nothing(monkeypatch):
    values = np.random.default_rng(2).random(50).tolist()
    whole = mean_interval(values, draws=100)
    monkeypatch.setattr("sightline.evaluate.statistics._CHUNK", 70)
    again = mean_interval(values, draws=100)
    assert (again.low, again.high) == (pytest.approx(whole.low), pytest.approx(whole.high))


def test_constant_values_have_a_closed_interval():
    assert mean_interval([0.5] * 9) == Estimate(0.5, 0.5, 0.5, 9)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_interval_of_nothing(values):
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval(values)


def test_pairing_removes_what_both_share():
    random = np.random.default_rng(5)
    base = random.random(300) * 10
    after = base + 0.1 + 0.01 * random.normal(size=300)
    paired = paired_difference(base.tolist(), after.tolist())
    assert paired.low > 0.09
    assert paired.high < 0.11
    with pytest.raises(ValueError, match="parallel"):
        paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (6, 0), (10, 3), (3, 10), (5, 5), (40, 22)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    before = [0] * gained + [1] * lost + [1] * 7
    after = [1] * gained + [0] * lost + [1] * 7
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(before, after) == pytest.approx(expected)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 10), (430, 500)])
def test_wilson_against_scipy(hits, n):
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    ours = wilson(hits, n)
    assert (ours.low, ours.high) == (pytest.approx(interval.low, abs=1e-9), pytest.approx(interval.high, abs=1e-9))
    with pytest.raises(ValueError, match="trial"):
        wilson(0, 0)
