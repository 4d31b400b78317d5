from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data import DataStream, paired_batch
from sightline.errors import UserError
from sightline.types import Box, Record, Region


@dataclass
class Numbers:
    """A source of plain records; `with_regions` of them, spread over the file, carry a region."""

    size: int | None
    with_regions: int = 0
    seen: list[int] = field(default_factory=list)

    @property
    def has_regions(self) -> np.ndarray | None:
        if self.size is None:
            return None
        flags = np.zeros(self.size, dtype=bool)
        flags[np.linspace(0, self.size - 1, self.with_regions).astype(int)] = True
        return flags

    def at(self, index: int) -> Record:
        self.seen.append(index)
        flags = self.has_regions
        regions = (Region(box=Box(0, 0, 1, 1)),) if flags is not None and flags[index] else ()
        return Record(id=str(index), question="q", answer="a", regions=regions, images=())


def ids(records: list[Record]) -> list[int]:
    return [int(record.id) for record in records]


@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 12), st.data())
def test_steps_hold_no_record_twice_and_epochs_hold_each_once(
    size: int, seed: int, steps: int, data: st.DataObject
) -> None:
    per_step = data.draw(st.integers(1, size))
    stream = DataStream(Numbers(size), seed, per_step)
    drawn: list[int] = []
    for _ in range(steps):
        step = ids(stream.next())
        assert len(set(step)) == per_step
        drawn += step
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))


@given(st.integers(2, 30), st.integers(0, 3), st.integers(0, 8), st.integers(1, 6), st.data())
def test_a_resumed_stream_continues_exactly(size: int, seed: int, before: int, after: int, data: st.DataObject) -> None:
    per_step = data.draw(st.integers(1, size))
    whole = DataStream(Numbers(size), seed, per_step)
    expected = [ids(whole.next()) for _ in range(before + after)]
    first = DataStream(Numbers(size), seed, per_step)
    for _ in range(before):
        first.next()
    saved = json.loads(json.dumps(first.state()))
    second = DataStream(Numbers(size), seed, per_step)
    second.load_state(saved)
    assert [ids(second.next()) for _ in range(after)] == expected[before:]


@given(st.integers(2, 30), st.integers(0, 8), st.integers(1, 6), st.data())
def test_looking_ahead_changes_nothing_and_reads_once(size: int, before: int, after: int, data: st.DataObject) -> None:
    per_step = data.draw(st.integers(1, size))
    source = Numbers(size, with_regions=size // 2)
    plain, looking = DataStream(Numbers(size), 1, per_step), DataStream(source, 1, per_step)
    for _ in range(before):
        assert ids(looking.next()) == ids(plain.next())
    for step in range(after):
        source.seen.clear()
        ahead, state = ids(looking.peek()), looking.state()
        assert state == plain.state()
        resumed = DataStream(Numbers(size), 1, per_step)
        resumed.load_state(state)
        if step % 2:
            looking.peek()
            source.seen = source.seen[:per_step]
        fewer = data.draw(st.integers(1, per_step)) if step == 1 else per_step  # the second round of a step
        wanted = ids(plain.next(fewer))
        assert ids(looking.next(fewer)) == wanted == ids(resumed.next(fewer))
        assert fewer < per_step or ahead == wanted
        assert sorted(source.seen) == sorted(ahead) or fewer < per_step
        assert looking.state() == plain.state()


def test_epochs_and_seeds_differ_in_order() -> None:
    stream = DataStream(Numbers(50), 0, 50)
    first, second = ids(stream.next()), ids(stream.next())
    assert first != second
    assert sorted(first) == sorted(second)
    assert ids(DataStream(Numbers(50), 1, 50).next()) != first
    assert ids(DataStream(Numbers(50), 0, 50).next()) == first
    assert stream.epoch == 1


def test_without_shuffling_the_order_is_the_file() -> None:
    stream = DataStream(Numbers(5), 3, 3, shuffle=False)
    assert [ids(stream.next()) for _ in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_a_record_of_the_old_epoch_is_delayed_in_the_new_one() -> None:
    stream = DataStream(Numbers(3), 0, 2)
    drawn = [ids(stream.next()) for _ in range(30)]
    assert all(a != b for a, b in drawn)
    assert set(Counter(i for step in drawn for i in step).values()) == {20}


def test_a_source_without_end_counts_up_and_resumes() -> None:
    stream = DataStream(Numbers(None), 0, 4)
    assert ids(stream.next()) == [0, 1, 2, 3]
    assert ids(stream.next(2)) == [4, 5]
    other = DataStream(Numbers(None), 0, 4)
    other.load_state(stream.state())
    assert ids(other.next()) == [6, 7, 8, 9]
    with pytest.raises(UserError, match=r"data\.strata"):
        DataStream(Numbers(None), 0, 4, {"regions": 0.5})


def test_the_arithmetic_of_ivgr() -> None:
    batch = paired_batch(512, 0.9)
    assert (batch.pairs, batch.singles, batch.records) == (230, 52, 282)
    assert 2 * batch.pairs + batch.singles == 512
    stream = DataStream(Numbers(1000, 700), 0, batch.records, {"regions": batch.share})
    for _ in range(12):
        step = stream.next()
        assert sum(bool(record.regions) for record in step) == 230
        assert sum(not record.regions for record in step) == 52
        assert len(set(ids(step))) == 282


def test_the_recipe_of_ivgr_has_this_arithmetic() -> None:
    from importlib import resources

    import yaml

    data = yaml.safe_load((resources.files("sightline") / "recipes/ivgr.yaml").read_text())["data"]
    stream = DataStream(Numbers(1000, 700), 0, data["records_per_step"], data["strata"])
    assert stream.counts(data["records_per_step"]) == {"regions": 230, "plain": 52}


@given(st.integers(2, 2000), st.floats(0, 1))
def test_pairs_and_singles_fill_the_batch(prompts: int, ratio: float) -> None:
    batch = paired_batch(prompts, ratio)
    assert 2 * batch.pairs + batch.singles == prompts
    assert 2 * batch.pairs <= prompts * ratio
    assert batch.pairs >= 0 <= batch.singles


def test_singles_recycle_while_pairs_go_on() -> None:
    stream = DataStream(Numbers(40, 36), 0, 10, {"regions": 0.8})
    plain: list[int] = []
    paired: list[int] = []
    for _ in range(9):
        step = stream.next()
        plain += [i for i, r in zip(ids(step), step, strict=True) if not r.regions]
        paired += [i for i, r in zip(ids(step), step, strict=True) if r.regions]
    assert set(Counter(paired).values()) == {2}
    assert len(plain) == 18
    assert max(Counter(plain).values()) - min(Counter(plain).values()) <= 1


@pytest.mark.parametrize(
    ("source", "per_step", "strata", "part"),
    [
        (Numbers(3), 4, None, "needs 4 records but the data hold 3"),
        (Numbers(10, 2), 6, {"regions": 0.5}, "needs 3 records with regions but the data hold 2"),
        (Numbers(10, 9), 6, {"regions": 0.5}, "needs 3 records without regions but the data hold 1"),
    ],
)
def test_a_step_larger_than_the_data_is_an_error(source: Numbers, per_step: int, strata: dict, part: str) -> None:
    with pytest.raises(UserError) as caught:
        DataStream(source, 0, per_step, strata)
    assert part in str(caught.value)
    assert not source.seen


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (DataStream(Numbers(9), 0, 2), "size of the data was 10"),
        (DataStream(Numbers(10), 1, 2), "seed of the data was 0"),
        (DataStream(Numbers(10, 5), 0, 2, {"regions": 0.5}), "strata differ"),
    ],
)
def test_a_state_of_other_data_is_refused(other: DataStream, part: str) -> None:
    state = DataStream(Numbers(10), 0, 2).state()
    with pytest.raises(UserError) as caught:
        other.load_state(state)
    assert part in str(caught.value)
