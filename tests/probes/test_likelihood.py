"""The likelihood of the gold answer at cuts, against one stock forward per cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conftest import make_record
from measured import Stock, pairs
from sightline.errors import UserError
from sightline.interventions import Intervention
from sightline.language.prompts import prompt
from sightline.methods.probes import GoldLikelihood
from sightline.policy.load import Policy
from sightline.policy.packing import Packer
from sightline.probes.contrast import changed_rollouts, without_images
from sightline.probes.likelihood import cuts
from sightline.probes.scoring import scoring_pass
from sightline.train.supervised import demonstration
from sightline.types import Group, Rollout

KEY = (1, 2)


def spoken(policy: Policy, text: str) -> Rollout:
    record = make_record("r0")
    return demonstration(policy, prompt(record, "textual", "textual", policy.style), [text])


def expected(policy: Policy, stock: Stock, rollout: Rollout, cut: int, lead: str, answer: str) -> float:
    """Mean log-prob of the answer's tokens behind the first `cut` tokens and the lead, in a stock forward."""
    words = [policy.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (lead, answer)]
    ids = np.concatenate([rollout.ids[:cut], *(np.array(w, np.int64) for w in words)])
    first = len(rollout.prompt.images)
    images = tuple(rollout.images[i - first] for t in rollout.turns if t.span.start < cut for i in t.images)
    rows = stock(replace(rollout, ids=ids, images=images))[1]
    own = rows[np.arange(len(ids)), ids]
    return float(own[-len(words[1]) :].mean())


@pytest.mark.parametrize("shares", [True, False])
def test_every_turn_of_conversations(policy: Policy, stock: Stock, talks: list[Group], shares: bool) -> None:
    probe = GoldLikelihood(cut="turns", lead=" so")
    counted = 0
    for group, place, rollout in pairs(scoring_pass(Packer(policy, shares=shares), talks, (probe,))):
        found = group.measurements[place].probes["gold"]
        at = np.flatnonzero(~np.isnan(found))
        assert at.tolist() == cuts(rollout, probe, policy)
        assert len(at) <= 1 + sum(t.role == "assistant" for t in rollout.turns[:-1])
        for cut in at:
            want = expected(policy, stock, rollout, int(cut), " so", group.record.answer)
            assert found[cut] == pytest.approx(want, abs=1e-5)
            counted += cut > 0
    assert counted > 5


def test_the_end_of_the_think_block(policy: Policy, stock: Stock) -> None:
    rollout = spoken(policy, "<think> the mark is</think><answer>green</answer>")
    group = Group(record=rollout.record, rollouts=(rollout,), readings=())
    probe = GoldLikelihood()
    found = scoring_pass(Packer(policy), [group], (probe,))[0].measurements[0].probes["gold"]
    at = np.flatnonzero(~np.isnan(found))
    assert policy.decode(rollout.ids[: at[1]]) == "<think> the mark is"
    assert at[0] == 0
    for cut in at:
        want = expected(policy, stock, rollout, int(cut), probe.lead, "green")
        assert found[cut] == pytest.approx(want, abs=1e-5)


def test_cuts_around_sections(policy: Policy) -> None:
    text = "a<reflection>é b</reflection> c<reflection>d</reflection>e<reflection>open"
    rollout = spoken(policy, text)
    places = cuts(rollout, GoldLikelihood(cut="section"), policy)
    assert [policy.decode(rollout.ids[:cut]) for cut in places] == [
        "", "a", "a<reflection>é b</reflection>", "a<reflection>é b</reflection> c",
        "a<reflection>é b</reflection> c<reflection>d</reflection>",
    ]  # fmt: skip
    assert cuts(rollout, GoldLikelihood(cut="start"), policy) == [0]
    assert cuts(rollout, GoldLikelihood(cut="think"), policy) == [0]


def test_under_changed_images(policy: Policy, stock: Stock, talks: list[Group]) -> None:
    for what in (Intervention("region_mask"), Intervention("text_only")):
        probe = GoldLikelihood(cut="turns", intervention=what)
        for group, place, rollout in pairs(scoring_pass(Packer(policy), talks, (probe,), key=KEY)):
            found = group.measurements[place].probes["gold"]
            if what.is_regional and not group.record.regions:
                assert np.isnan(found).all()
                continue
            for cut in cuts(rollout, probe, policy):
                if what.kind == "text_only":
                    changed, kept = without_images(rollout, policy)
                    at = int(kept[:cut].sum())
                else:
                    changed = rollout
                    at = cut
                    if rollout.record.images:
                        key = (*KEY, rollout.record.id, 0)
                        changed = changed_rollouts([rollout], policy.frame, what, key)[0]
                want = expected(policy, stock, changed, at, probe.lead, group.record.answer)
                assert found[cut] == pytest.approx(want, abs=1e-5)


def test_blocked_attention_is_refused(policy: Policy, talks: list[Group]) -> None:
    probe = GoldLikelihood(intervention=Intervention("attn_block"))
    with pytest.raises(UserError, match="attn_block"):
        scoring_pass(Packer(policy), talks[:1], (probe,))
