from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.data import DataStream, open_source, read_records, write_records
from sightline.errors import UserError
from sightline.images import open_image


def test_scenes_are_a_source_without_end() -> None:
    train, validation = open_source("scenes:hard", seed=3), open_source("scenes:hard", split="validation", seed=3)
    assert train.size is None
    assert train.has_regions is None
    assert train.at(10_000).id == train.at(10_000).id
    assert train.at(5).images[0].digest == train.at(5).images[0].digest
    assert {train.at(i).id for i in range(20)}.isdisjoint(validation.at(i).id for i in range(20))
    stream = DataStream(train, 0, 8)
    ids = [record.id for _ in range(5) for record in stream.next()]
    assert len(set(ids)) == 40


def test_a_limited_source_is_dealt_in_epochs() -> None:
    source = open_source("scenes:easy", types=["count", "region"], limit=6)
    assert source.size == 6
    stream = DataStream(source, 0, 3)
    first = {record.id for _ in range(2) for record in stream.next()}
    assert first == {record.id for _ in range(2) for record in stream.next()}
    assert len(first) == 6
    assert {source.at(i).meta["type"] for i in range(6)} == {"count", "region"}


@pytest.mark.parametrize(
    ("name", "types", "part"),
    [
        ("scenes:hrad", None, "unknown level 'hrad'"),
        ("scenes:hard", ["marks"], "unknown question type 'marks'"),
        ("no.jsonl", None, "no.jsonl: no such data file"),
    ],
)
def test_a_bad_source_is_refused_when_opened(name: str, types: list[str] | None, part: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(name, types=types)
    assert part in str(caught.value)


def test_scenes_on_disk_are_anybodys_data(tmp_path: Path) -> None:
    source = open_source("scenes:hard", types=["mark", "count", "relation", "region"])
    records = [source.at(i) for i in range(12)]
    back = read_records(write_records(records, tmp_path / "scenes"))
    for old, new in zip(records, back, strict=True):
        assert (old.id, old.question, old.answer, old.answer_kind) == (
            new.id,
            new.question,
            new.answer,
            new.answer_kind,
        )
        assert old.regions == new.regions
        assert json.loads(json.dumps(dict(old.meta))) == new.meta
        assert np.array_equal(np.asarray(open_image(old.images[0])), np.asarray(open_image(new.images[0])))
    on_disk = open_source(str(tmp_path / "scenes" / "records.jsonl"), limit=4)
    assert on_disk.size == 4


def test_scenes_on_disk_pass_the_check(tmp_path: Path) -> None:
    from sightline.data.check import check

    source = open_source("scenes:easy", types=["mark", "count", "region"])
    report = check(write_records([source.at(i) for i in range(15)], tmp_path / "out"))
    assert report.findings == ()
