"""What processes tell each other about a step, with threads in their place: any number of them knows what one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from conftest import make_record
from sightline.answers.offline import OfflineJudge
from sightline.archive import record_key
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.methods import load_method
from sightline.methods.base import Context, Method
from sightline.train.distributed import World
from sightline.train.exchange import Elsewhere, all_groups, brought
from sightline.train.rounds import Rounds
from sightline.train.scoring import archive_for, credit, score
from sightline.types import Group, Measurement, Prompt, Rollout, Score, Scores, Size

FRAME = Frame("absolute", 16, 32 * 32, 96 * 96)
ANSWER = "<answer> green</answer>"


@dataclass(frozen=True)
class Thread(World):
    """A process of a run that is a thread: what they exchange lies in a list that all of them hold."""

    meeting: Any = None
    held: Any = None

    def gather(self, value: Any) -> list[Any]:
        self.held[self.rank] = value
        self.meeting.wait(timeout=30)
        found = list(self.held)
        self.meeting.wait(timeout=30)
        return found


def together(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What each of so many processes returns."""
    meeting, held = Barrier(size), [None] * size
    with ThreadPoolExecutor(size) as pool:
        worlds = [Thread(rank=rank, size=size, meeting=meeting, held=held) for rank in range(size)]
        return [done.result(timeout=60) for done in [pool.submit(work, world) for world in worlds]]


def group(name: str, texts: Mapping[str, Sequence[str]], values: Sequence[float] = ()) -> Group:
    """Given replies, one token each word; scores where they are given."""
    record = make_record(name)
    rollouts = [
        Rollout(
            prompt=Prompt(record=record, stream=stream, messages=(), images=record.images), branch=(i,),
            prompt_ids=np.arange(3), ids=np.arange(len(text.split())), sampled=np.ones(len(text.split()), bool),
            logprobs=np.zeros(len(text.split())), text=text, finish="stop",
        )
        for stream, said in texts.items() for i, text in enumerate(said)
    ]  # fmt: skip
    readings = tuple(read(r.text, FRAME, [Size(96, 64)]) for r in rollouts)
    seen = tuple(Measurement(maps={"attention": np.ones((2, 2))}) for _ in rollouts)
    scores = tuple(Scores(terms={"r": Score(v)}) for v in values)
    return Group(record=record, rollouts=tuple(rollouts), readings=readings, scores=scores, measurements=seen)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_everybody_knows_all_groups_in_their_order_and_only_its_own_whole(size: int, count: int) -> None:
    given = [group(f"r{i}", {"textual": ["a b"]}) for i in range(count)]
    for rank, (found, shown) in enumerate(
        together(size, lambda w: ((known := all_groups(w, w.part(given))), brought(w, known, 2)))
    ):
        assert [g.record.id for g in found] == [g.record.id for g in given]
        for i, one in enumerate(found):
            is_own = i % size == rank
            assert isinstance(one, Elsewhere) != is_own
            assert (one.record.images[0].pixels is not None) == is_own
            assert bool(one.measurements[0].maps) == is_own
        assert all(g.measurements[0].maps for g in shown[:2])


def boxed(share: float) -> str:
    """A reply that asks for a box over this share of the image."""
    return f"<think>a</think><box>[0,0,{96 * share:.2f},64]</box>"


SHARES = ((0.1, 0.2, 0.9), (0.3, 0.35, 0.4), (0.7, 0.8, 0.95), (0.15, 0.5, 0.85))


@pytest.mark.parametrize("size", [2, 3])
def test_quantile_bins_are_those_of_the_whole_step(size: int) -> None:
    method = load_method({"name": "ground_r1", "preset": "v3", "bins": {"edges": "step_quantile"}})
    given = [
        group(f"r{i}", {"grounded": [boxed(s) for s in shares]}, [float((i + j) % 2) for j in range(3)])
        for i, shares in enumerate(SHARES)
    ]
    alone = credit(method, given)
    apart = [g for one in given for g in credit(method, [one])]
    assert not same(alone, apart), "the bins of a step are those of its groups, so nothing is tested"
    for found in together(size, lambda w: credit(method, w.part(given), world=w)):
        assert same(found, alone)


def same(some: Sequence[Group], others: Sequence[Group]) -> bool:
    return all(
        np.array_equal(a.advantage, b.advantage) and np.array_equal(a.weight, b.weight)
        for g, h in zip(some, others, strict=True) for a, b in zip(g.credits, h.credits, strict=True)
    )  # fmt: skip


def scored(method: Method, groups: Sequence[Group], world: World) -> tuple[list[Group], Any]:
    archive = archive_for(method)
    context = Context(judge=OfflineJudge(), archive=archive, frame=FRAME, step=0)
    bare = [replace(g, measurements=()) for g in groups]
    found = score(method, world.part(bare) if world.size > 1 else bare, context, world=world)
    return credit(method, found, world=world), {record_key(g.record): archive.read(record_key(g.record)) for g in found}


@pytest.mark.parametrize("size", [2, 3])
def test_every_process_has_the_same_archive_and_credit(size: int) -> None:
    method = load_method({"name": "ivgr"})
    right = f"<think> The red square<box>[8,10,40,44]</box>. The mark on it is green.</think>{ANSWER}"
    plain = f"<think> The red square is at the top left. The mark on it is green.</think>{ANSWER}"
    wrong = "<think> The red square. The mark on it is red.</think><answer> red</answer>"
    said = [{"grounded": [right, wrong], "textual": [plain, wrong]}, {"grounded": [wrong], "textual": [plain, wrong]}]
    given = [group(f"r{i}", said[i % 2]) for i in range(5)]
    alone, archive = scored(method, given, World())
    assert any(reference is not None for reference in archive.values())
    for rank, (found, known) in enumerate(together(size, lambda w: scored(method, given, w))):
        assert same(found, alone)
        assert [s.total for g in found for s in g.scores] == [s.total for g in alone for s in g.scores]
        assert known == {record_key(g.record): archive[record_key(g.record)] for g in given[rank::size]}


@pytest.mark.parametrize("size", [2, 3])
def test_all_processes_draw_the_same_further_records(size: int) -> None:
    """Dynamic sampling: groups of one process that are flat make room for records of all."""
    method = load_method({"name": "grpo"})

    def drawn(world: World) -> tuple[list[str], list[int]]:
        rounds, missing, at = Rounds(4, extra=3), [], 0
        while rounds.missing:
            missing.append(rounds.missing)
            records, at = range(at, at + rounds.missing), at + rounds.missing
            own = [group(f"r{i}", {"textual": ["a", "b"]}, [1.0, float(i % 3 == 0)]) for i in world.part(records)]
            rounds.add(credit(method, own, world=world))
        return [g.record.id for g in rounds.groups], missing

    expected = drawn(World())
    assert len(expected[1]) > 1
    assert together(size, drawn) == [expected] * size


def test_an_error_of_one_is_raised_in_all() -> None:
    def meets(world: World) -> None:
        with world.agreeing():
            if world.rank == 2:
                raise ValueError("the third one fails")

    def fails(world: World) -> str:
        with pytest.raises(Exception, match="the third one fails") as caught:
            meets(world)
        return type(caught.value).__name__

    assert together(3, fails) == ["SightlineError", "SightlineError", "ValueError"]
