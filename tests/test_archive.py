"""What stays, what expires, and that a resumed archive is the same archive."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from sightline.archive import Archive, ArchiveConfig, read_archive, record_key
from sightline.errors import UserError
from sightline.types import Box, ImageRef, Record, Reference, Size

COUNTED = (
    '{"schema": 1, "step": 0, "references": [%s], '
    '"counts": {"offered": 0, "added": 0, "replaced": 0, "reads": 0, "hits": 0, "age": 0}}'
)


def reference(key: str = "k", *rank: float, text: str = "t", step: int = 0) -> Reference:
    return Reference(
        key=key, text=text, boxes=(Box(1, 2, 30.5, 40),), rank=rank or (1.0, 0.5), scores={"box": 0.5}, step=step
    )


def record(question: str = "?", digest: str = "d") -> Record:
    image = ImageRef(size=Size(8, 8), digest=digest, pixels=np.zeros((8, 8, 3), np.uint8))
    return Record(id="1", question=question, answer="a", images=(image,))


def test_keys_follow_content_not_position() -> None:
    assert record_key(record()) == record_key(record())
    assert len({record_key(record()), record_key(record("!")), record_key(record(digest="e"))}) == 3


def test_best_so_far_is_lexicographic_and_ties_keep_the_older() -> None:
    archive = Archive()
    assert archive.offer(reference("k", 1.0, 0.4, text="first"))
    assert not archive.offer(reference("k", 1.0, 0.4, text="tie"))
    assert not archive.offer(reference("k", 0.9, 0.9, text="worse first entry"))
    kept = archive.get("k")
    assert kept is not None
    assert kept.text == "first"
    assert archive.offer(reference("k", 1.0, 0.41, text="better"))
    archive.advance(500)
    better = archive.get("k")
    assert better is not None
    assert better.text == "better"
    assert archive.get("other") is None


def test_current_step_forgets() -> None:
    archive = Archive(ArchiveConfig(policy="current_step"))
    archive.offer(reference("k", 1.0, 0.9))
    assert archive.get("k")
    archive.advance(1)
    assert archive.get("k") is None
    assert len(archive) == 0
    assert archive.offer(reference("k", 1.0, 0.3, text="new", step=1))
    new = archive.get("k")
    assert new is not None
    assert new.text == "new"


def test_max_age_expires_and_lets_worse_ones_in() -> None:
    archive = Archive(ArchiveConfig(policy="max_age", max_age=2))
    archive.offer(reference("k", 1.0, 0.9))
    archive.advance(2)
    assert not archive.offer(reference("k", 1.0, 0.5, step=2))
    archive.advance(3)
    assert archive.get("k") is None
    assert archive.offer(reference("k", 1.0, 0.5, step=3))


def test_policies_are_checked() -> None:
    with pytest.raises(ValidationError):
        ArchiveConfig(policy="max_age")
    with pytest.raises(ValidationError):
        ArchiveConfig(max_age=3)


def test_stats_count_the_present_step() -> None:
    archive = Archive()
    archive.offer(reference("a"))
    archive.advance(4)
    archive.offer(reference("b", 1.0, 0.3, step=4))
    archive.offer(reference("b", 1.0, 0.9, step=4))
    archive.offer(reference("b", 1.0, 0.8, step=4))
    assert [archive.read(key) is not None for key in "abxy"] == [True, True, False, False]
    held = {"size": 2, "mean_age": 2.0, "mean_box": 0.5}
    counted = {"offered": 3, "added": 1, "replaced": 1, "hits": 0.5, "age": 2.0, **held}
    assert archive.stats() == counted
    assert [r.key for r in archive.of_step(4)] == ["b"]
    archive.advance(4)
    assert archive.stats() == counted
    archive.advance(5)
    assert archive.stats() == {"offered": 0, "added": 0, "replaced": 0, **held, "mean_age": 3.0}


def test_resumed_archive_equals_the_uninterrupted_one(tmp_path) -> None:
    rng = np.random.default_rng(0)
    offers = [reference(str(rng.integers(5)), 1.0, float(rng.random()), text=f"é {i}", step=i // 4) for i in range(40)]
    whole, part = Archive(), Archive()
    for archive, upto in ((whole, 40), (part, 22)):
        for offer in offers[:upto]:
            archive.advance(offer.step)
            archive.offer(offer)
    part.save(tmp_path / "archive.json")
    resumed = read_archive(tmp_path / "archive.json")
    assert resumed.state() == part.state()
    for offer in offers[22:]:
        resumed.advance(offer.step)
        resumed.offer(offer)
    assert resumed.state() == whole.state()
    assert resumed.references() == whole.references()
    assert [p.name for p in tmp_path.iterdir()] == ["archive.json"]


def test_state_survives_json_with_string_keys() -> None:
    archive = Archive()
    archive.offer(reference("17"))
    other = Archive()
    other.load_state(json.loads(json.dumps(archive.state())))
    assert other.get("17") == archive.get("17")


def test_export_writes_one_line_per_reference(tmp_path) -> None:
    archive = Archive()
    archive.offer(reference("a"))
    archive.offer(reference("b", text="two\nlines"))
    assert archive.export(tmp_path / "out.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["a", "b"]
    assert rows[0]["boxes"] == [[1, 2, 30.5, 40]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "schema version 'list'"),
        ('{"schema": 9}', "schema version 9"),
        ('{"schema": 1}', "broken archive"),
        (COUNTED % '{"key": 3}', "broken archive"),
        (COUNTED % '{"key": 3, "text": "t"}', "must be strings"),
        (COUNTED % '{"key": "a"}', "'text'"),
        (
            COUNTED % '{"key": "a", "text": "t", "boxes": [[1, 2]], "rank": [], "scores": {}, "step": 0}',
            "broken archive",
        ),
    ],
)
def test_broken_files_say_where(tmp_path, content, said) -> None:
    path = tmp_path / "archive.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        read_archive(path)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_archive(tmp_path / "none.json")


def test_what_has_expired_leaves_the_saved_state() -> None:
    archive = Archive(ArchiveConfig(policy="max_age", max_age=2))
    for step in range(20):
        archive.advance(step)
        archive.offer(reference(f"k{step}", step=step))
    assert [row["key"] for row in archive.state()["references"]] == ["k17", "k18", "k19"]
