"""Normalisation against closed forms, and the promise that parts of a minibatch only add."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.credit import Totals, normalised_weights, totals_of
from sightline.types import Credit, Group, Message, Prompt, Reading, Record, Rollout

RECORD = Record(id="r", question="?", answer="a")


def group(weights: dict[str, list[list[float]]]) -> Group:
    """A group with credit; `weights[stream]` lists the credit weight of each token of each Rollout."""
    rollouts, credits = [], []
    for stream, rows in weights.items():
        prompt = Prompt(record=RECORD, stream=stream, messages=(Message("user", ("?",)),))
        for index, row in enumerate(rows):
            weight = np.array(row, float)
            ids = np.arange(len(row))
            rollouts.append(
                Rollout(
                    prompt=prompt,
                    branch=(index,),
                    prompt_ids=ids,
                    ids=ids,
                    sampled=weight > 0,
                    logprobs=weight * 0,
                    text="",
                    finish="stop",
                )
            )
            credits.append(Credit(advantage=weight * 0, weight=weight))
    readings = tuple(Reading(text="") for _ in rollouts)
    return Group(record=RECORD, rollouts=tuple(rollouts), readings=readings, credits=tuple(credits))


GROUPS = [
    group({"t": [[1, 1], [1, 1, 1, 1, 1]], "g": [[1, 0, 1], [0, 0]]}),
    group({"t": [[1]], "g": [[1, 1, 1, 1]]}),
]
TERMS = [
    [np.array([1.0, 2.0]), np.array([3.0, 1.0, 4.0, 1.0, 5.0]), np.array([9.0, 2.0, 6.0]), np.array([5.0, 3.0])],
    [np.array([5.0]), np.array([8.0, 9.0, 7.0, 9.0])],
]


def loss(weights) -> float:
    rows = zip(weights, TERMS, strict=True)
    return sum(float((w * t).sum()) for row, terms in rows for w, t in zip(row, terms, strict=True))


def test_token_mean() -> None:
    tokens = [1, 2, 3, 1, 4, 1, 5, 9, 6, 5, 8, 9, 7, 9]
    assert loss(normalised_weights(GROUPS, "token")) == pytest.approx(sum(tokens) / len(tokens))


def test_sequence_mean_counts_each_living_rollout_once() -> None:
    means = [1.5, 14 / 5, 7.5, 5.0, 33 / 4]
    assert loss(normalised_weights(GROUPS, "sequence")) == pytest.approx(sum(means) / len(means))


def test_stream_mean_balances_streams_whatever_their_length() -> None:
    textual, grounded = (3 + 14 + 5) / 8, (15 + 33) / 6
    assert loss(normalised_weights(GROUPS, "stream")) == pytest.approx((textual + grounded) / 2)


def test_stream_weights_make_weighted_means() -> None:
    given = {"g": 3.0}
    token = (22 + 3 * 48) / (8 + 3 * 6)
    sequence = (1.5 + 14 / 5 + 5 + 3 * (7.5 + 33 / 4)) / (3 + 3 * 2)
    stream = (22 / 8 + 3 * 48 / 6) / 4
    for how, expected in (("token", token), ("sequence", sequence), ("stream", stream)):
        assert loss(normalised_weights(GROUPS, how, given)) == pytest.approx(expected)


@pytest.mark.parametrize("how", ["token", "sequence", "stream"])
@pytest.mark.parametrize("given", [None, {"g": 0.25, "t": 2.0}, {"g": 0.0}])
def test_weights_add_up_to_one(how, given) -> None:
    rows = normalised_weights(GROUPS, how, given)
    assert sum(float(w.sum()) for row in rows for w in row) == pytest.approx(1.0)


@pytest.mark.parametrize("how", ["token", "sequence", "stream"])
def test_parts_with_shared_totals_add_to_the_whole(how) -> None:
    totals = totals_of(GROUPS[:1]) + totals_of(GROUPS[1:])
    assert totals == totals_of(GROUPS)
    parts = [normalised_weights([g], how, {"g": 2.0}, totals) for g in GROUPS]
    whole = normalised_weights(GROUPS, how, {"g": 2.0})
    for part, row in zip(parts, whole, strict=True):
        for a, b in zip(part[0], row, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("how", ["token", "sequence", "stream"])
def test_a_minibatch_without_loss_gives_zeros(how) -> None:
    rows = normalised_weights([group({"t": [[0, 0], [0]]})], how)
    assert [w.tolist() for w in rows[0]] == [[0, 0], [0]]
    assert normalised_weights([], how) == ()


def test_fractional_credit_weights_are_weighted_means() -> None:
    rows = normalised_weights([group({"t": [[0.5, 1.5], [1.0]]})], "sequence")
    np.testing.assert_allclose(rows[0][0], [0.125, 0.375])
    np.testing.assert_allclose(rows[0][1], [0.5])


def test_mistakes_are_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="mean"):
        normalised_weights(GROUPS, "mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="with credit"):
        totals_of([Group(record=RECORD, rollouts=GROUPS[0].rollouts, readings=GROUPS[0].readings)])
    assert Totals() + Totals() == Totals()
