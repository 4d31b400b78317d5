"""Advantages against the textbook, masks, flat groups, and credit by stream."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.credit import credit_for, group_advantages
from sightline.credit.group import is_flat
from sightline.types import Group, Message, Prompt, Reading, Record, Rollout, Score, Scores

RECORD = Record(id="r", question="?", answer="a")


def rollout(stream: str, index: int, tokens: int = 3, sampled: list[bool] | None = None) -> Rollout:
    prompt = Prompt(record=RECORD, stream=stream, messages=(Message("user", ("?",)),))
    mask = np.array(sampled if sampled is not None else [True] * tokens)
    ids = np.arange(len(mask))
    return Rollout(
        prompt=prompt,
        branch=(index,),
        prompt_ids=np.array([1]),
        ids=ids,
        sampled=mask,
        logprobs=np.zeros(len(mask)),
        text="",
        finish="stop",
    )


def group(rewards: dict[str, list[float | None]]) -> Group:
    """A group with one stream per key; None is a masked Rollout."""
    rollouts, scores = [], []
    for stream, values in rewards.items():
        for index, value in enumerate(values):
            rollouts.append(rollout(stream, index))
            scores.append(Scores(terms={"r": Score(value or 0.0, masked=value is None)}))
    readings = tuple(Reading(text="") for _ in rollouts)
    return Group(record=RECORD, rollouts=tuple(rollouts), readings=readings, scores=tuple(scores))


def test_grpo_is_the_standard_score_with_the_unbiased_deviation() -> None:
    rewards = [4.0, 2.0, 1.0, 1.0, 0.0]
    mean = sum(rewards) / 5
    deviation = (sum((r - mean) ** 2 for r in rewards) / 4) ** 0.5
    expected = [(r - mean) / (deviation + 1e-6) for r in rewards]
    np.testing.assert_allclose(group_advantages(rewards), expected, rtol=1e-12)


def test_biased_deviation_and_eps_are_used() -> None:
    np.testing.assert_allclose(group_advantages([1.0, 0.0], ddof=0, eps=0.5), [0.5, -0.5])


def test_dr_grpo_does_not_divide_and_rloo_leaves_one_out() -> None:
    rewards = [3.0, 1.0, 2.0, 0.0]
    np.testing.assert_allclose(group_advantages(rewards, how="dr_grpo"), [1.5, -0.5, 0.5, -1.5])
    others = [r - (sum(rewards) - r) / 3 for r in rewards]
    np.testing.assert_allclose(group_advantages(rewards, how="rloo"), others)


@pytest.mark.parametrize("how", ["grpo", "dr_grpo", "rloo"])
def test_masked_rollouts_change_nothing_for_the_others(how) -> None:
    with_mask = group_advantages([1.0, 100.0, 0.0, 0.5], [False, True, False, False], how=how)
    without = group_advantages([1.0, 0.0, 0.5], how=how)
    assert with_mask[1] == 0
    np.testing.assert_allclose(with_mask[[0, 2, 3]], without)


@pytest.mark.parametrize("how", ["grpo", "dr_grpo", "rloo"])
def test_fewer_than_two_left_or_equal_rewards_give_zero(how) -> None:
    assert not group_advantages([1.0, 5.0], [False, True], how=how).any()
    assert not group_advantages([], how=how).any()
    assert not group_advantages([0.1 + 0.2, 0.3, 0.3], how=how).any()


def test_flat_is_not_said_of_a_group_that_is_too_small() -> None:
    assert is_flat([2.0, 2.0])
    assert not is_flat([2.0])
    assert not is_flat([2.0, 2.0], [True, False])


def test_unknown_baseline_and_wrong_mask_are_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="median"):
        group_advantages([1.0, 0.0], how="median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="2 rewards but 1 masks"):
        group_advantages([1.0, 0.0], [True])


def test_streams_do_not_share_a_baseline() -> None:
    credits = credit_for(group({"a": [1.0, 0.0], "b": [5.0, 5.0]}), how="dr_grpo")
    assert [c.parts["advantage"] for c in credits] == [0.5, -0.5, 0.0, 0.0]
    assert [c.parts["baseline"] for c in credits] == [0.5, 0.5, 5.0, 5.0]
    assert [c.parts["flat"] for c in credits] == [0, 0, 1, 1]
    assert all(c.weight.tolist() == [1, 1, 1] for c in credits)


def test_advantage_stands_on_sampled_tokens_only() -> None:
    g = group({"a": [1.0, 0.0]})
    mixed = rollout("a", 0, sampled=[True, False, True])
    g = Group(record=RECORD, rollouts=(mixed, g.rollouts[1]), readings=g.readings, scores=g.scores)
    first = credit_for(g, how="dr_grpo")[0]
    assert first.advantage.tolist() == [0.5, 0, 0.5]
    assert first.weight.tolist() == [1, 0, 1]


def test_masked_rollout_carries_no_loss() -> None:
    credits = credit_for(group({"a": [1.0, None, 0.0]}), how="dr_grpo")
    assert [c.weight.sum() for c in credits] == [3, 0, 3]
    assert [c.parts["masked"] for c in credits] == [0, 1, 0]
    assert [c.parts["advantage"] for c in credits] == [0.5, 0, -0.5]


def test_a_single_survivor_masks_the_whole_stream_but_not_the_other_stream() -> None:
    credits = credit_for(group({"a": [1.0, None], "b": [1.0, 0.0]}))
    assert [c.weight.sum() for c in credits] == [0, 0, 3, 3]
    assert [c.parts["masked"] for c in credits] == [1, 1, 0, 0]


def test_flat_groups_leave_the_loss_only_on_request() -> None:
    g = group({"a": [2.0, 2.0], "b": [1.0, 0.0]})
    assert [c.weight.sum() for c in credit_for(g)] == [3, 3, 3, 3]
    assert [c.weight.sum() for c in credit_for(g, mask_flat=True)] == [0, 0, 3, 3]


def test_order_of_rollouts_is_kept_when_streams_alternate() -> None:
    g = group({"a": [1.0, 0.0], "b": [0.0, 1.0]}).at([2, 0, 3, 1])
    assert [c.parts["advantage"] for c in credit_for(g, how="dr_grpo")] == [-0.5, 0.5, 0.5, -0.5]


def test_unscored_groups_are_refused() -> None:
    g = group({"a": [1.0, 0.0]})
    with pytest.raises(ValueError, match="scored group"):
        credit_for(Group(record=RECORD, rollouts=g.rollouts, readings=g.readings))
