"""Conversations: every token accounted for, whatever the rule says and however the tree branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import make_record, picture
from conversations import SETTINGS, Crops, converse, ends_often, prompts
from sightline.language.parse import read_turns
from sightline.language.prompts import prompt
from sightline.policy.batch import collate
from sightline.policy.encode import Encoded
from sightline.policy.load import Policy
from sightline.policy.tree import build_tree, rollout_path
from sightline.sampling.base import Request, SamplingSettings, uniforms
from sightline.sampling.local import LocalSampler
from sightline.sampling.turns import Conversation
from sightline.train.run import gather
from sightline.types import NextTurn, Prompt, Reading, Rollout
from stock import reference_logprobs


def learner_logprobs(policy: Policy, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    tree = build_tree([rollout_path(r, policy.image_token) for r in rollouts], policy.rules)
    batch = collate([[tree]], policy.pixels, pad=policy.pad)
    with torch.no_grad():
        return batch.scatter(policy.module(batch, temperature=SETTINGS.temperature).logprobs)[0]


@pytest.mark.parametrize("branches", [(5,), (2, 4), (4, 2), (2, 2, 2)])
def test_recorded_logprobs_equal_the_learners(policy: Policy, branches: tuple[int, ...]) -> None:
    policy = ends_often(policy)
    sampled = converse(policy, [Request(p, branches, Crops()) for p in prompts()])
    everyone = [r for group in sampled for r in group]
    assert {len(r.turns) for r in everyone} == {1, 3, 5}
    assert any(len(t.images) for r in everyone for t in r.turns)
    assert any(t.role == "user" and not t.images for r in everyone for t in r.turns)
    for group in sampled:
        assert [r.branch for r in group] == list(np.ndindex(*branches))
        for rollout, want in zip(group, learner_logprobs(policy, group), strict=True):
            np.testing.assert_allclose(rollout.logprobs, want, atol=1e-5)


def test_recorded_logprobs_equal_a_stock_forward(policy: Policy) -> None:
    policy = ends_often(policy)
    (group,) = LocalSampler(policy).sample(
        [Request(prompts()[2], (2, 3), Crops())], SamplingSettings(max_new_tokens=24), seed=0, step=0
    )
    assert max(len(r.images) for r in group) > 1
    with torch.no_grad():
        for rollout, want in zip(group, reference_logprobs(policy, group), strict=True):
            np.testing.assert_allclose(rollout.logprobs, np.where(rollout.sampled, want, 0), atol=1e-5)


def test_kept_keys_equal_reading_the_conversation_anew(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy: each later turn as the reply to a prompt that holds everything before it."""
    policy = ends_often(policy, 600)
    greedy = SamplingSettings(temperature=0.0, max_new_tokens=24)
    found = LocalSampler(policy).sample([Request(p, turns=Crops(4)) for p in prompts()], greedy, seed=0, step=0)
    compared = 0
    for (rollout,) in found:
        for number, turn in enumerate(rollout.turns):
            if turn.role == "user" or not number:
                continue
            before = np.concatenate([rollout.prompt_ids, rollout.ids[: turn.span.start]])
            added = sum(len(t.images) for t in rollout.turns[:number])
            whole = Encoded(before, (*rollout.prompt.images, *rollout.images[:added]))
            monkeypatch.setattr(policy, "encode", lambda _, whole=whole: whole)
            ((anew,),) = LocalSampler(policy).sample([Request(rollout.prompt)], greedy, seed=0, step=0)
            own = slice(*turn.span)
            np.testing.assert_array_equal(anew.ids, rollout.ids[own])
            np.testing.assert_allclose(anew.logprobs, rollout.logprobs[own], atol=1e-5)
            compared += 1
    assert compared >= 6


def test_a_conversation_does_not_depend_on_its_batch(policy: Policy) -> None:
    policy = ends_often(policy)
    shape = [(3,), (2, 4), (4, 2), (1,), (2, 2), (5,)]
    requests = [Request(p, b, Crops()) for p, b in zip(prompts(), shape, strict=True)]
    single = Request(prompts()[0], (2,))
    together = converse(policy, [*requests, single], seed=3)
    for i in (1, 2, 4):
        (alone,) = converse(policy, [requests[i]], seed=3, rows=1)
        for a, b in zip(together[i], alone, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            assert a.turns == b.turns
            assert a.branch == b.branch
    assert all(len(r.turns) == 1 for r in together[-1])


def test_the_first_level_is_that_of_a_single_turn(policy: Policy) -> None:
    """Its draws are those of Rollouts without branching, and it is sampled once for all that continue it."""
    policy = ends_often(policy)
    (tree,) = converse(policy, [Request(prompts()[1], (3, 2), Crops())])
    (flat,) = converse(policy, [Request(prompts()[1], (3,))])
    for rollout in tree:
        np.testing.assert_array_equal(rollout.ids[slice(*rollout.turns[0].span)], flat[rollout.branch[0]].ids)
    continued = [r for r in tree if len(r.turns) > 1]
    pairs = [(a, b) for a in continued for b in continued if a.branch[0] == b.branch[0] and a.branch < b.branch]
    assert pairs
    for a, b in pairs:
        (fork,) = a.forks
        assert a.forks == b.forks
        assert fork == a.turns[2].span.start
        np.testing.assert_array_equal(a.ids[:fork], b.ids[:fork])
        assert a.ids[fork:].tolist() != b.ids[fork:].tolist()


class Silent:
    """Asks nothing further."""

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:  # noqa: ARG002
        return None


@pytest.mark.parametrize("turns", [Silent(), None])
def test_direct_answers_keep_their_multiplicity(policy: Policy, turns: Silent | None) -> None:
    policy = ends_often(policy)
    (group,) = converse(policy, [Request(prompts()[0], (2, 4), turns)])
    assert [r.branch for r in group] == list(np.ndindex(2, 4))
    for rollout in group:
        np.testing.assert_array_equal(rollout.ids, group[4 * rollout.branch[0]].ids)
        assert rollout.forks == (len(rollout.ids),)
    tree = build_tree([rollout_path(r, policy.image_token) for r in group], policy.rules)
    assert len(tree) == len(group[0].prompt_ids) + len(group[0].ids) + len(group[4].ids)
    np.testing.assert_array_equal(tree.where[0], tree.where[3])


def test_a_cut_turn_ends_the_conversation(policy: Policy) -> None:
    rule = Crops(turns=5)
    short = SamplingSettings(temperature=1.0, max_new_tokens=8)
    policy = ends_often(policy)
    sampled = LocalSampler(policy).sample([Request(p, (6,), rule) for p in prompts()], short, seed=0, step=0)
    everyone = [r for group in sampled for r in group]
    assert {r.finish for r in everyone} == {"stop", "length"}
    assert any(r.finish == "length" and len(r.turns) > 1 for r in everyone)
    for rollout in everyone:
        said = [t for t in rollout.turns if t.role == "assistant"]
        assert rollout.finish == said[-1].finish
        assert rollout.turns[-1] is said[-1]
        assert all(t.finish == "stop" for t in said[:-1])
        for turn in said:
            ends = np.isin(rollout.ids[slice(*turn.span)], policy.eos)
            assert ends[-1] == (turn.finish == "stop")
            assert not ends[:-1].any()
            assert turn.span.end - turn.span.start <= 8
    heard = {said for texts in rule.asked for said in texts}
    assert not heard & {r.turns[-1].text for r in everyone if r.finish == "length"}


def test_a_forced_prefix_begins_the_first_turn_only(policy: Policy) -> None:
    policy = ends_often(policy)
    shown = prompt(make_record("a"), "grounded", "grounded", "compact", forced_prefix="<think>")
    (group,) = converse(policy, [Request(shown, (6,), Crops())])
    rollout = max(group, key=lambda r: len(r.turns))
    texts = [t.text for t in rollout.turns if t.role == "assistant"]
    assert len(texts) > 1
    assert [t.startswith("<think>") for t in texts] == [True, *[False] * (len(texts) - 1)]
    assert rollout.text == "\n".join(texts)
    (read,) = (g.readings for g in gather([shown.record], [rollout], policy.frame))
    assert read[0] == read_turns(texts, policy.frame, [shown.record.images[0].size], finish=rollout.finish)
    assert [turn.text for turn in read[0].turns] == texts


@dataclass(frozen=True)
class Drawn:
    """Says what was drawn for it, by the number of the turn."""

    said: tuple[NextTurn | None, ...]

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:  # noqa: ARG002
        return self.said[len(readings) - 1] if len(readings) <= len(self.said) else None


added = st.builds(
    NextTurn,
    st.sampled_from(["", " look", "an error\n"]),
    st.lists(st.sampled_from([picture(20, 33), picture(64, 5), picture(1, 1)]), max_size=2).map(tuple),
)
replied = st.tuples(st.lists(st.integers(256, 1100), max_size=5), st.sampled_from(["stop", "stop", "stop", "length"]))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    branches=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    rule=st.none() | st.lists(st.none() | added, max_size=4).map(lambda said: Drawn(tuple(said))),
    replies=st.lists(replied, min_size=1, max_size=20),
)
def test_whatever_is_said_every_token_is_accounted_for(
    policy: Policy, branches: tuple[int, ...], rule: Drawn | None, replies: list
) -> None:
    request = Request(SHOWN, branches, rule)
    waiting, over, keys, number = [Conversation.begin(policy, request)], [], [], 0
    while waiting:
        rows = [row for c in waiting for row in c.forked()]
        keys += [row.key for row in rows]
        waiting = []
        for row in rows:
            ids, finish = replies[number % len(replies)]
            number += 1
            ids = [*ids, policy.eos[0]] if finish == "stop" else [*ids, 999]
            after = row.replied(policy, ids, [-0.5] * len(ids), finish).continued(policy)
            (over if after.is_over else waiting).append(after)
    rollouts = sorted((r for c in over for r in c.rollouts()), key=lambda r: r.branch)
    assert [r.branch for r in rollouts] == list(np.ndindex(*branches))
    assert len(set(keys)) == len(keys)
    for rollout in rollouts:
        check_accounts(policy, rollout, rule)
    tree = build_tree([rollout_path(r, policy.image_token) for r in rollouts], policy.rules)
    for rollout, where in zip(rollouts, tree.where, strict=True):
        np.testing.assert_array_equal(tree.ids[where], rollout.ids)
    assert int(tree.sampled.sum()) == sum(
        turn.span.end - turn.span.start
        for owner in {(r.branch[: number + 1], number): turn for r in rollouts for number, turn in said_by(r)}.values()
        for turn in (owner,)
    )


SHOWN = prompt(make_record("s", ((50, 40),)), "grounded", "grounded", "compact")


def said_by(rollout: Rollout) -> list:
    return list(enumerate(t for t in rollout.turns if t.role == "assistant"))


def check_accounts(policy: Policy, rollout: Rollout, rule: Drawn | None) -> None:
    spans = [turn.span for turn in rollout.turns]
    assert [s.start for s in spans] == [0, *[s.end for s in spans[:-1]]]
    assert spans[-1].end == len(rollout.ids) == len(rollout.sampled) == len(rollout.logprobs)
    assert [t.role for t in rollout.turns] == (["assistant", "user"] * len(spans))[: len(spans)]
    assert len(spans) % 2
    assert len(rollout.forks) == len(rollout.branch) - 1
    starts = [t.span.start for _, t in said_by(rollout)][1:]
    assert rollout.forks == tuple([*starts, *[len(rollout.ids)] * 9][: len(rollout.forks)])
    image = len(rollout.prompt.images)
    for i, turn in enumerate(rollout.turns):
        own = slice(*turn.span)
        assert rollout.sampled[own].all() == (turn.role == "assistant")
        assert (rollout.logprobs[own] == (-0.5 if turn.role == "assistant" else 0.0)).all()
        if turn.role == "user":
            assert rule is not None
            said = rule.said[i // 2]
            assert said is not None
            assert turn.text == said.text
            assert turn.images == tuple(range(image, image + len(said.images)))
            image += len(said.images)
            pads = int((rollout.ids[own] == policy.image_token).sum())
            assert pads == sum(math.prod(policy.pixels.grid(picture)) for picture in said.images)
    assert image == len(rollout.prompt.images) + len(rollout.images)


def test_random_numbers_of_a_turn_belong_to_its_place(policy: Policy) -> None:
    """From the second turn on they are keyed by the branch so far and the number of the turn."""
    policy = ends_often(policy)
    hot = replace(SETTINGS, temperature=1e6)
    (group,) = LocalSampler(policy).sample([Request(prompts()[0], (1, 2), Crops(2))], hot, seed=7, step=5)
    rollout = group[1]
    assert len(rollout.turns) == 3
    writable = np.flatnonzero(policy.module.bias.numpy() == 0)
    for turn, key in ((rollout.turns[0], (0,)), (rollout.turns[2], (0, 1, 1))):
        drawn = uniforms(7, 5, "a", "textual", key, hot.max_new_tokens)[: turn.span.end - turn.span.start]
        place = np.searchsorted(writable, rollout.ids[slice(*turn.span)])
        np.testing.assert_allclose(place / len(writable), drawn, atol=0.01)
