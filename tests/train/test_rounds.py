"""Dynamic sampling: what is kept, what is counted, when it stops."""

from __future__ import annotations

import numpy as np

from sightline.train.rounds import Rounds, carries_signal
from sightline.types import Credit, Group, Prompt, Reading, Record, Rollout


def group(name: str, advantage: float) -> Group:
    record = Record(id=name, question="q", answer="a")
    rollout = Rollout(
        prompt=Prompt(record=record, stream="textual", messages=()), branch=(0,), prompt_ids=np.zeros(2, int),
        ids=np.zeros(3, int), sampled=np.ones(3, bool), logprobs=np.zeros(3), text="", finish="stop",
    )  # fmt: skip
    credit = Credit(advantage=np.full(3, advantage), weight=np.ones(3))
    return Group(record=record, rollouts=(rollout,), readings=(Reading(text=""),), credits=(credit,))


def names(rounds: Rounds) -> list[str]:
    return [g.record.id for g in rounds.groups]


def test_without_extra_rounds_everything_is_kept() -> None:
    rounds = Rounds(2)
    rounds.add([group("a", 0.0), group("b", 1.0)])
    assert (rounds.missing, names(rounds)) == (0, ["a", "b"])
    assert rounds.metrics()["sample/discarded"] == 0


def test_flat_groups_make_room_and_are_counted() -> None:
    rounds = Rounds(2, extra=3)
    rounds.add([group("a", 0.0), group("b", 1.0)])
    assert rounds.missing == 1
    rounds.add([group("c", -1.0)])
    assert (rounds.missing, names(rounds)) == (0, ["b", "c"])
    metrics = rounds.metrics()
    assert (metrics["sample/rollouts"], metrics["sample/rounds"], metrics["sample/discarded"]) == (3, 2, 1)


def test_rounds_have_a_cap_and_the_batch_keeps_its_size() -> None:
    rounds = Rounds(2, extra=1)
    rounds.add([group("a", 0.0), group("b", 0.0)])
    rounds.add([group("c", 0.0), group("d", 2.0)])
    assert (rounds.missing, names(rounds)) == (0, ["d", "a"])


def test_a_record_occurs_once_in_a_step() -> None:
    rounds = Rounds(2, extra=1)
    rounds.add([group("a", 1.0), group("b", 0.0)])
    rounds.add([group("a", 1.0)])
    assert names(rounds) == ["a", "b"]


def test_signal_needs_weight() -> None:
    silent = group("a", 1.0)
    credit = Credit(advantage=np.ones(3), weight=np.zeros(3))
    assert carries_signal(silent)
    assert not carries_signal(Group(record=silent.record, rollouts=silent.rollouts, readings=(), credits=(credit,)))
