"""Replies of the cold start against the truth, and the truth against wrong and reworded texts."""

from __future__ import annotations

import pytest

from sightline.answers.extract import final_answer
from sightline.geometry.boxes import iou
from sightline.geometry.frames import Frame
from sightline.language.parse import read, strict_read
from sightline.scenes import claims, record_at, right_region
from sightline.scenes.model import lattice
from sightline.scenes.questions import TYPES
from sightline.scenes.texts import FORMATS, reply
from sightline.scenes.truth import true_share

FRAME = Frame("relative_1000", 16, 64 * 64, 96 * 96)


def written(record, style: str) -> tuple[str, ...]:
    return reply(record, style, lambda box: FRAME.write(box, record.images[0].size))


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize("kind", TYPES)
def test_every_reply_is_true(style: str, kind: str) -> None:
    if style in ("ground_r1", "deepeyes", "crops") and kind != "mark":
        pytest.skip("crops are shown for marks only")
    for index in range(40):
        record = record_at("hard", "test", 0, index, (kind,))
        *_, last = turns = written(record, style)
        reading = read(last, FRAME, [i.size for i in record.images])
        assert final_answer(reading) == record.answer
        assert set(reading.problems) <= ({"no think block"} if style == "direct" else set())
        assert all(claim.holds for turn in turns for claim in claims(turn, record))
        if style in ("textual", "crops") and record.regions:
            assert right_region(last, record) is True
        if style in ("grounded", "grit", "ground_r1", "deepeyes") and record.regions:
            found = [b for turn in turns for b in read(turn, FRAME, [i.size for i in record.images]).boxes]
            assert len(found) == len(record.regions)
            assert all(max(iou(b.box, r.box) for r in record.regions) > 0.85 for b in found)


def test_the_release_reads_a_grounded_reply() -> None:
    record = record_at("hard", "test", 0, 1)
    (text,) = written(record, "grounded")
    strict = strict_read(text)
    assert strict.is_formatted
    exact = FRAME.write(record.regions[0].box, record.images[0].size)
    assert all(abs(a - b) <= 6 for a, b in zip(strict.boxes[0], exact, strict=True))


@pytest.mark.parametrize("style", ["grounded", "grit", "ground_r1", "deepeyes"])
def test_boxes_are_written_in_the_numbers_the_policy_knows(style: str) -> None:
    """One number per pixel of the view; others have never been a target and would cost most of the loss."""
    known = set(lattice("qwen3_vl"))
    for index in range(40):
        record = record_at("zoom", "test", 0, index)
        turns = written(record, style)
        boxes = [b for turn in turns for b in read(turn, FRAME, [i.size for i in record.images]).boxes]
        assert boxes
        assert all(set(b.written) <= known for b in boxes)


def target(record) -> dict:
    return record.meta["objects"][record.meta["targets"][0]]


@pytest.mark.parametrize(
    "wording",
    [
        "I see the {color} {shape} in the {row} {column} of the picture.",
        "Look for the {color} {shape}; the {color} {shape} sits {row} {column}.",
        "<think> The {color} {shape} <box>[1,2,3,4]</box> is at the {row} {column}.</think><answer> x</answer>",
    ],
)
def test_a_right_region_in_other_words(wording: str) -> None:
    record = record_at("hard", "test", 0, 2)
    t = target(record)
    row, column = t["region"]
    assert right_region(wording.format(color=t["color"], shape=t["shape"], row=row, column=column), record) is True
    wrong = "left" if column != "left" else "right"
    assert right_region(wording.format(color=t["color"], shape=t["shape"], row=row, column=wrong), record) is False


def test_regions_that_do_not_count() -> None:
    record = record_at("hard", "test", 0, 2)
    t = target(record)
    name, (row, column) = f"{t['color']} {t['shape']}", t["region"]
    other = next(o for o in record.meta["objects"] if o is not t)
    assert right_region(f"The mark on the {name} is {t['mark']}.", record) is False
    assert right_region(f"The {other['color']} {other['shape']} is at the {row} {column}.", record) is False
    everywhere = (
        f"The {name} is at the top left. The {name} is at the bottom right. The {name} is at the {row} {column}."
    )
    assert right_region(everywhere, record) is False, "naming every region is no evidence"
    assert right_region("", record) is False


def test_false_claims_are_found() -> None:
    record = record_at("hard", "test", 0, 2)
    t = target(record)
    wrong = next(o["mark"] for o in record.meta["objects"] if o["mark"] != t["mark"])
    text = f"The {t['color']} {t['shape']} is at the {' '.join(t['region'])}. The mark on it is {wrong}."
    assert true_share(text, record) == 0.5
    assert true_share("nothing", record) is None
