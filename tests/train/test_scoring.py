# ruff: noqa: ARG002
"""Two phases around the archive, order, concurrency, masks, and checks of what methods return."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from sightline.archive import Archive, record_key
from sightline.geometry.frames import Frame
from sightline.methods.base import Context, Method, Stream, score_table
from sightline.train.scoring import credit, score
from sightline.types import Group, Message, Prompt, Reading, Record, Reference, Rollout, Score


class TwoPhase(Method):
    """`feed` rollouts score their own number and become references; `read` rollouts score what they see."""

    def __init__(self, meeting: threading.Barrier | None = None) -> None:
        super().__init__()
        self.meeting = meeting
        self.threads: set[str] = set()
        self.seen: list[str] = []

    def streams(self, record: Record) -> tuple[Stream, ...]:
        if record.question == "alone":
            return (Stream("feed", "textual", 2),)
        return (Stream("read", "textual", 2, reads_archive=True), Stream("feed", "grounded", 2, loss_weight=0.5))

    def score(self, group: Group, context: Context):
        self.threads.add(threading.current_thread().name)
        if self.meeting is not None:
            self.meeting.wait()
        self.seen.append(f"{group.record.id}:{'+'.join(group.streams)}")
        if "read" in group.streams:
            assert group.scored is not None
            assert group.scored.streams in (("feed",), ())
            known = 0.0 if group.reference is None else group.reference.rank[0]
            return score_table(known=[Score(known + i) for i in range(len(group))])
        return score_table(own=[_own(reading.text) for reading in group.readings])

    def references(self, group: Group):
        return [
            Reference(key=record_key(group.record), text=r.text, boxes=(), rank=(s.total,))
            for r, s in zip(group.readings, group.scores, strict=True)
            if not s.is_masked
        ]


def _own(text: str) -> Score:
    return Score(0.0, "judge failed", masked=True) if text == "?" else Score(float(text))


def group(name: str, feed: list[str], read: int = 2, *, question: str = "both", finish="stop") -> Group:
    """Streams alternate, so that order matters."""
    record = Record(id=name, question=question, answer="a")
    pairs = [("feed", text) for text in feed]
    for i in range(read):
        pairs.insert(2 * i, ("read", "0"))
    rollouts = tuple(
        Rollout(
            prompt=Prompt(record=record, stream=stream, messages=(Message("user", ("?",)),)),
            branch=(i,),
            prompt_ids=np.arange(2),
            ids=np.arange(3),
            sampled=np.full(3, True),
            logprobs=np.zeros(3),
            text=text,
            finish=finish,
        )
        for i, (stream, text) in enumerate(pairs)
    )
    return Group(record=record, rollouts=rollouts, readings=tuple(Reading(text=r.text) for r in rollouts))


def context(archive: Archive | None = None, step: int = 0) -> Context:
    frame = Frame("absolute", 28, 3136, 200704)
    return Context(cast(Any, None), archive if archive is not None else Archive(), frame, step)


def totals(groups: list[Group]) -> list[list[tuple[str, float]]]:
    return [[(r.stream, s.total) for r, s in zip(g.rollouts, g.scores, strict=True)] for g in groups]


@pytest.mark.parametrize("workers", [1, 4])
def test_readers_see_the_best_of_this_step_and_order_is_kept(workers) -> None:
    scored = score(TwoPhase(), [group("a", ["1", "5"]), group("b", ["2", "?"])], context(), workers=workers)
    assert totals(scored) == [
        [("read", 5), ("feed", 1), ("read", 6), ("feed", 5)],
        [("read", 2), ("feed", 2), ("read", 3), ("feed", 0)],
    ]
    assert [s.is_masked for s in scored[1].scores] == [False, False, False, True]
    assert [g.reference.text for g in scored if g.reference] == ["5", "2"]
    assert all(g.scored is None for g in scored)


def test_history_competes_with_the_present_step() -> None:
    archive = Archive()
    score(TwoPhase(), [group("a", ["7", "1"])], context(archive, step=3))
    again = score(TwoPhase(), [group("a", ["6", "2"])], context(archive, step=9))[0]
    assert again.reference is not None
    assert (again.reference.text, again.reference.step) == ("7", 3)
    assert archive.stats()["age"] == 6
    better = score(TwoPhase(), [group("a", ["8", "2"])], context(archive, step=10))[0]
    assert better.reference is not None
    assert (better.reference.text, better.reference.step) == ("8", 10)
    assert archive.stats()["replaced"] == 1


def test_without_any_reference_readers_see_none() -> None:
    scored = score(TwoPhase(), [group("a", ["?", "?"])], context())[0]
    assert scored.reference is None
    assert [s.total for s in scored.of("read").scores] == [0, 1]


def test_all_feeders_are_scored_before_any_reader() -> None:
    method = TwoPhase()
    score(method, [group("a", ["1"], read=1), group("b", ["1"], read=1)], context(), workers=1)
    assert method.seen == ["a:feed", "b:feed", "a:read", "b:read"]


def test_streams_may_be_missing_and_groups_empty() -> None:
    method = TwoPhase()
    only_feed, only_read = group("a", ["4"], read=0), group("b", [], read=1)
    scored = score(
        method, [only_feed, only_read, group("c", [], read=0), group("d", ["3"], 0, question="alone")], context()
    )
    assert totals(scored) == [[("feed", 4)], [("read", 0)], [], [("feed", 3)]]
    assert method.seen.count("c:") == 0
    assert score(method, [], context()) == []


def test_groups_are_scored_side_by_side() -> None:
    groups = [group(str(i), ["1", "2"]) for i in range(8)]
    # every call waits until eight are inside at once, so scoring one after the other would break the barrier
    method = TwoPhase(threading.Barrier(8, timeout=30))
    side_by_side = score(method, groups, context(), workers=8)
    assert len(method.threads) == 8
    assert totals(side_by_side) == totals(score(TwoPhase(), groups, context(), workers=1))


def test_mistakes_of_a_method_are_named() -> None:
    class Short(TwoPhase):
        def score(self, group: Group, context: Context):
            return score_table(own=[Score(1.0)])

        def credit(self, group: Group):
            return super().credit(group)[:1]

    class Long(TwoPhase):
        def credit(self, group: Group):
            return tuple(replace(c, weight=np.ones(9)) for c in super().credit(group))

    with pytest.raises(ValueError, match=r"Short.score returned 1 scores for 2 rollouts"):
        score(Short(), [group("a", ["1", "2"])], context())
    scored = score(TwoPhase(), [group("a", ["1", "2"])], context())
    with pytest.raises(ValueError, match=r"Short.credit returned 1 credits for 4 rollouts"):
        credit(Short(), scored)
    with pytest.raises(ValueError, match="one advantage and one weight per token"):
        credit(Long(), scored)


def test_an_error_in_a_method_is_not_swallowed() -> None:
    class Broken(TwoPhase):
        def score(self, group: Group, context: Context):
            raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError):
        score(Broken(), [group("a", ["1"])], context())


def test_credit_is_per_stream_and_masks_failed_judgements() -> None:
    scored = score(TwoPhase(), [group("a", ["1", "3", "?"])], context())
    credited = credit(TwoPhase(), scored)[0]
    pairs = zip(credited.rollouts, credited.credits, strict=True)
    signs = [(rollout.stream, float(np.sign(c.advantage[0])), c.weight[0]) for rollout, c in pairs]
    assert signs == [("read", -1, 1), ("feed", -1, 1), ("read", 1, 1), ("feed", 1, 1), ("feed", 0, 0)]
    assert TwoPhase().stream_weights([credited]) == {"read": 1.0, "feed": 0.5}


def test_truncated_rollouts_are_masked_on_request_and_say_why() -> None:
    g = group("a", ["1", "3", "9"], read=0, question="alone")
    g = replace(g, rollouts=(*g.rollouts[:2], replace(g.rollouts[2], finish="length")))
    scored = score(TwoPhase(), [g], context())
    kept, masked = credit(TwoPhase(), scored)[0], credit(TwoPhase(), scored, mask_truncated=True)[0]
    assert [c.weight.sum() for c in kept.credits] == [3, 3, 3]
    assert [c.weight.sum() for c in masked.credits] == [3, 3, 0]
    assert [c.parts["baseline"] for c in masked.credits] == [2, 2, 2]
    assert masked.scores[2].terms["truncated"].why == "cut by the token limit"
    assert "truncated" not in masked.scores[0].terms
