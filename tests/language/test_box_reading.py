"""Every form in which a model writes a box, what is noted about it, and where it stands."""

from __future__ import annotations

import time

import pytest

from sightline.geometry.frames import Frame
from sightline.language.boxes import BOX_PROBLEMS, find_boxes
from sightline.language.parse import read
from sightline.types import Box, Size

RELATIVE = Frame("relative_1000", 32, 65536, 16777216)
ABSOLUTE = Frame("absolute", 28, 3136, 200704)
SIZE = Size(640, 480)

ONE_BOX = [
    ("<box>[12,30,40,58]</box>", ()),
    ("<box>[12, 30, 40, 58]</box>", ("spaces",)),
    ("<box>[ 12,30,40,58 ]</box>", ("spaces",)),
    ("<box> [12,30,40,58] </box>", ()),
    ("<box>[12.0,30,40,58]</box>", ("floats",)),
    ("<box>(12,30,40,58)</box>", ("parentheses",)),
    ("<box>12,30,40,58</box>", ("no brackets",)),
    ("<box>12 30 40 58</box>", ("spaces", "no brackets")),
    ("<box>[12;30;40;58]</box>", ()),
    ("<box>[12，30，40，58]</box>", ()),
    ("<box>[12,30,40,58</box>", ()),
    ("<box>[[12,30,40,58]]</box>", ()),
    ("<box>[12,30,40,58] the cup</box>", ()),
    ("<box>the cup [12,30,40,58]</box>", ()),
    ("<box>[12,30,40,58", ("unclosed tag",)),
    ("<box>[12,30,40,58,7]</box>", ("extra numbers",)),
    ("<box>(12,30),(40,58)</box>", ("corners",)),
    ("<box>[[12,30],[40,58]]</box>", ("corners",)),
    ("<|box_start|>(12,30),(40,58)<|box_end|>", ("corners",)),
    ("<bbox>[12,30,40,58]</bbox>", ()),
    ("< BOX >[12,30,40,58]</ BOX >", ()),
    ('<box>{"x1": 12, "y1": 30, "x2": 40, "y2": 58}</box>', ("json",)),
    ("[12,30,40,58]", ("untagged",)),
    ("(12, 30, 40, 58)", ("spaces", "parentheses", "untagged")),
    ("12, 30, 40, 58", ("spaces", "bare")),
    ("12,30,40,58", ("bare",)),
    ('{"bbox_2d": [12,30,40,58]}', ("json",)),
    ('{"bbox_2d": [12, 30, 40, 58], "label": "cup"}', ("spaces", "json")),
    ("{'bbox': [12,30,40,58]}", ("json",)),
    ("bbox_2d_1: [12,30,40,58]", ("json",)),
    ('{"bbox_2d": [[12,30,40,58]]}', ("json",)),
    ('{"xmin": 12, "ymin": 30, "xmax": 40, "ymax": 58}', ("json",)),
    ("x1=12, y1=30, x2=40, y2=58", ("json",)),
]


@pytest.mark.parametrize(("text", "problems"), ONE_BOX)
def test_one_box_in_every_form(text: str, problems: tuple[str, ...]) -> None:
    for before, after in (("", ""), ("the cup ", " is red"), ("<think>é ", "</think>")):
        if not text.endswith(("</box>", "</bbox>", "<|box_end|>")) and "<box>" in text and after:
            after = after.replace(" is red", "\nis red")
        (found,) = find_boxes(before + text + after).boxes
        assert found.written == (12, 30, 40, 58)
        assert set(found.problems) == set(problems)
        held = (before + text + after)[slice(*found.span)]
        assert held.strip("{}'\" ") in text
        assert all(number in held for number in ("12", "30", "40", "58"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "no box",
            "<box></box>",
            "<box>[x1,y1,x2,y2]</box>",
            "[1,2,3]",
            "<box>[1,2,3]</box>",
            "1.2, 3.4, 5.6, 7.8",
        ),
        *(
            "[1][2][3][4]",
            "a1,2,3,4",
            "1,2,3,4px",
            "12:30:45:01",
            "1 2 3 4",
            "(1,2),(3,4)",
            "<box>",
            "</box>",
            "v1.2.3.4",
        ),
    ],
)
def test_what_is_no_box(text: str) -> None:
    assert find_boxes(text).boxes == ()


@pytest.mark.parametrize(
    "text",
    [
        "<box>[1,2,3,4]</box><box>[5,6,7,8]</box>",
        "<box>[1,2,3,4],[5,6,7,8]</box>",
        "<box>[[1,2,3,4],[5,6,7,8]]</box>",
        "<box>[1,2,3,4,5,6,7,8]</box>",
        "<box>[1,2,3,4]<box>[5,6,7,8]</box>",
        '[{"bbox_2d": [1,2,3,4], "label": "a"}, {"bbox_2d": [5,6,7,8]}]',
        '{"bboxes": [[1,2,3,4], [5,6,7,8]]}',
        "1,2,3,4,5,6,7,8",
        "1, 2, 3, 4 and 5, 6, 7, 8",
        "[1,2,3,4] or (5,6,7,8)",
        "<box>(1,2),(3,4)(5,6),(7,8)</box>",
        "<box>[1,2,3,4] and then [5,6,7,8]",
    ],
)
def test_two_boxes(text: str) -> None:
    boxes = find_boxes(text).boxes
    assert [b.written for b in boxes] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert boxes[0].span.end <= boxes[1].span.start
    assert all(str(int(n)) in text[slice(*b.span)] for b in boxes for n in b.written)


def test_several_in_one_tag_share_it_without_overlap() -> None:
    text = "a <box>[1,2,3,4],[5,6,7,8]</box> b"
    first, second = find_boxes(text).boxes
    assert text[slice(*first.span)] == "<box>[1,2,3,4]"
    assert text[slice(*second.span)] == "[5,6,7,8]</box>"
    assert "several" in first.problems
    assert "several" in second.problems


def test_tags_without_a_box_are_counted() -> None:
    reading = read("<box>here</box> <box>[1,2,30,40]</box> <box> <box></box>", RELATIVE, [SIZE])
    assert len(reading.boxes) == 1
    assert reading.problems.count("box tag without box") == 3


def test_a_siblings_list_ends_with_its_brackets() -> None:
    boxes = find_boxes('"bboxes": [[1,2,3,4],[5,6,7,8]] but [9,9,9,9]').boxes
    assert [b.problems for b in boxes] == [("json",), ("json",), ("untagged",)]


def read_one(text: str, frame: Frame = RELATIVE, size: Size = SIZE) -> tuple[Box, tuple[str, ...], bool]:
    (found,) = read(text, frame, [size]).boxes
    assert set(found.problems) <= set(BOX_PROBLEMS)
    return found.box, found.problems, found.is_valid


def test_both_conventions_end_in_original_pixels() -> None:
    assert read_one("<box>[250,500,500,1000]</box>")[0] == (160, 240, 320, 480)
    assert read_one("<box>[126,91,252,182]</box>", ABSOLUTE)[0] == (160, 120, 320, 240)
    # The published demo: a box in the 532x336 view of a 900x600 file.
    frame = Frame("absolute", 28, 3136, 336 * 532)
    assert frame.resized(Size(900, 600)) == (504, 336)
    assert read_one("<box>[252,168,504,336]</box>", frame, Size(900, 600))[0] == (450, 300, 900, 600)


def test_normalising_is_named() -> None:
    assert read_one("<box>[500,500,250,250]</box>") == (Box(160, 120, 320, 240), ("reversed",), True)
    assert read_one("<box>[-100,0,500,500]</box>") == (Box(0, 0, 320, 240), ("negative",), True)
    assert read_one("<box>[500,500,1200,900]</box>") == (Box(320, 240, 640, 432), ("outside",), True)
    assert read_one("<box>[1500,500,1800,900]</box>") == (Box(640, 240, 640, 432), ("outside", "empty"), False)
    assert read_one("<box>[5,5,5,9]</box>")[1:] == (("empty",), False)
    assert read_one("[0,0,0,0]")[1:] == (("untagged", "empty"), False)
    assert read_one(f"<box>[{'9' * 5000},1,2,3]</box>")[1] == ("huge", "reversed", "outside")
    assert read_one("<box>[−5,0,500,500]</box>")[1] == ("negative",)


def test_shares_of_the_image() -> None:
    for frame in (RELATIVE, ABSOLUTE):
        assert read_one("<box>[0.25,0.5,0.5,1.0]</box>", frame) == (
            Box(160, 240, 320, 480),
            ("floats", "fractions"),
            True,
        )
        assert read_one("<box>[.25,.5,.5,1]</box>", frame)[0] == (160, 240, 320, 480)
    assert "fractions" not in read_one("<box>[0,0,1,1]</box>")[1]
    assert "fractions" not in read_one("<box>[0.5,0.5,20.5,30]</box>")[1]


def test_boxes_name_their_image() -> None:
    sizes = [Size(100, 100), Size(1000, 500)]
    text = '{"image": 1, "bbox_2d": [0,0,500,500]} <box>[0,0,500,500]</box> <box image=1>[0,0,500,500]</box>'
    boxes = read(text, RELATIVE, sizes).boxes
    assert [b.image for b in boxes] == [1, 0, 1]
    assert [b.box.x2 for b in boxes] == [500, 50, 500]
    call = '<tool_call>{"name": "look", "arguments": {"bbox_2d": [0, 0, 500, 500], "img_idx": 1}}</tool_call>'
    assert read(call, RELATIVE, sizes).boxes[0].image == 1
    (lost,) = read('{"bbox_2d": [3,2,1,4], "image_index": 7}', RELATIVE, sizes).boxes
    assert (lost.is_valid, lost.image, lost.box) == (False, 7, (1, 2, 3, 4))
    assert "no image" in lost.problems


def test_without_images_boxes_are_kept_but_invalid() -> None:
    (found,) = read("<box>[30,20,10,40]</box>", ABSOLUTE, []).boxes
    assert (found.box, found.written) == ((10, 20, 30, 40), (30, 20, 10, 40))
    assert not found.is_valid
    assert found.problems == ("no image",)


@pytest.mark.parametrize(
    "text",
    [
        *("<" + " " * 60000, "<box>" * 12000, "[" * 60000, "1," * 30000, "1 " * 30000, "1" * 60000, "<box " * 12000),
        *(
            "[1,2,3,4]" * 6000,
            "(1,1)," * 10000,
            "x1:1," * 12000,
            "1" + " " * 60000,
            "<think>" * 9000,
            " " * 60000 + "x",
        ),
        *(
            "<answer>" * 8000,
            "</think>" * 8000,
            '"bbox": [1,2,3,' * 4000,
            "1,2,3" + " " * 60000,
            "<box>[1,2,3,4" * 5000,
        ),
    ],
    ids=range(18),
)
def test_time_grows_with_length_only(text: str) -> None:
    started = time.process_time()
    read(text, RELATIVE, [SIZE])
    assert time.process_time() - started < 3.0
