"""Scenes: what is drawn is what the truth says; splits never meet; positions resume."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from sightline.data.write import write_records
from sightline.errors import UserError
from sightline.images import image_ref, open_image
from sightline.scenes import record_at, stream
from sightline.scenes.questions import TYPES, ask
from sightline.scenes.world import COLORS, LEVELS, MARKS, VIEW, draw, scene_at


def mark_of(thing) -> tuple[int, int]:
    down = 0.64 if thing.shape == "triangle" else 0.5
    return int((thing.box.x1 + thing.box.x2 - 1) / 2), int(thing.box.y1 + (thing.box.height - 1) * down)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("background", ["plain", "gradient"])
def test_what_is_drawn_is_what_is_said(level: str, background) -> None:
    for index in range(20):
        scene = scene_at(level, "test", 0, index, background)
        pixels = draw(scene)
        assert pixels.shape == (scene.side, scene.side, 3)
        for thing in scene.things:
            x, y = mark_of(thing)
            assert tuple(pixels[y, x]) == MARKS[thing.mark]
            inside = pixels[int(thing.box.y1) : int(thing.box.y2), int(thing.box.x1) : int(thing.box.x2)]
            at = np.argwhere((inside == COLORS[thing.color]).all(-1))
            assert at.min() == 0, "the box is tight"
            assert tuple(at.max(0)) == (thing.box.height - 1, thing.box.width - 1)
        assert len({t.name for t in scene.things}) == len(scene.things)
        knobs = LEVELS[level]
        assert knobs.objects[0] <= len(scene.things) <= knobs.objects[1]
        assert all(knobs.sides[0] <= t.box.width / knobs.scale <= knobs.sides[1] for t in scene.things)


def test_objects_do_not_touch() -> None:
    for index in range(50):
        boxes = [t.box for t in scene_at("hard", "train", 3, index).things]
        for a, b in itertools.combinations(boxes, 2):
            assert a.x2 < b.x1 or b.x2 < a.x1 or a.y2 < b.y1 or b.y2 < a.y1


def test_splits_and_seeds_do_not_meet() -> None:
    names = [(split, seed) for split in ("train", "validation", "test") for seed in (0, 1)]
    seen = [{scene_at("easy", split, seed, i).things for i in range(200)} for split, seed in names]
    for a, b in itertools.combinations(seen, 2):
        assert not a & b


def test_a_position_resumes() -> None:
    whole = [r.id for r in itertools.islice(stream("hard", "train", 5, TYPES), 9)]
    assert [r.id for r in itertools.islice(stream("hard", "train", 5, TYPES, start=4), 5)] == whole[4:]
    a, b = record_at("hard", "train", 5, 7), record_at("hard", "train", 5, 7)
    assert a.meta == b.meta
    assert a.images[0].digest == b.images[0].digest == image_ref(a.images[0].pixels).digest


def test_the_mark_of_zoom_is_lost_in_the_view() -> None:
    """No pixel of the view takes even half of the mark's colour; on hard scenes one takes nearly all of it."""

    def strongest(level: str) -> list[float]:
        found = []
        for index in range(20):
            scene = scene_at(level, "test", 0, index)
            small = np.asarray(open_image(image_ref(draw(scene))).resize((VIEW, VIEW), 3)).astype(float)
            for thing in scene.things:
                x, y = (v * VIEW // scene.side for v in mark_of(thing))
                near = small[y - 1 : y + 2, x - 1 : x + 2] - COLORS[thing.color]
                step = np.subtract(MARKS[thing.mark], COLORS[thing.color]).astype(float)
                found.append((near @ step / (step @ step)).max())
        return found

    assert max(strongest("zoom")) < 0.5
    assert min(strongest("hard")) > 0.9


def test_answers_follow_from_the_scene() -> None:
    for index in range(100):
        scene = scene_at("hard", "test", 1, index)
        for kind in TYPES:
            record = ask(scene, kind, index)
            objects = record.meta["objects"]
            targets = [objects[i] for i in record.meta["targets"]]
            assert [list(r.box) for r in record.regions] == [objects[i]["box"] for i in sorted(record.meta["targets"])]
            if kind == "mark":
                assert record.answer == targets[0]["mark"]
                assert record.question.endswith(f"{targets[0]['color']} {targets[0]['shape']}?")
            elif kind == "count":
                word = record.question.split()[2].removesuffix("s")
                assert int(record.answer) == sum(word in (t["color"], t["shape"]) for t in objects) == len(targets)
            elif kind == "region":
                row, column = record.answer.split()
                x, y = (
                    (targets[0]["box"][0] + targets[0]["box"][2]) / 2,
                    (targets[0]["box"][1] + targets[0]["box"][3]) / 2,
                )
                assert ("top", "middle", "bottom")[int(3 * y / scene.side)] == row
                assert ("left", "center", "right")[int(3 * x / scene.side)] == column
            else:
                assert record.answer == ("yes" if holds(record.question, *targets) else "no")


def holds(question: str, a: dict, b: dict) -> bool:
    ax, ay = a["box"][0] + a["box"][2], a["box"][1] + a["box"][3]
    bx, by = b["box"][0] + b["box"][2], b["box"][1] + b["box"][3]
    if "left of" in question:
        return ax < bx
    if "right of" in question:
        return ax > bx
    return ay < by if "above" in question else ay > by


def test_written_scenes_equal_streamed_ones(tmp_path) -> None:
    path = write_records((record_at("hard", "train", 2, i, TYPES) for i in range(6)), tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6
    for index, row in enumerate(rows):
        record = record_at("hard", "train", 2, index, TYPES)
        assert (row["id"], row["question"], row["answer"]) == (record.id, record.question, record.answer)
        assert row.get("regions", []) == [{"box": list(r.box), "label": r.label} for r in record.regions]
        written = open_image(image_ref(path.parent / row["images"][0]))
        assert (np.asarray(written) == record.images[0].pixels).all()


@pytest.mark.parametrize(
    ("level", "types", "said"),
    [("simple", None, "easy, hard, zoom"), ("easy-dark", None, "easy-gradient"), ("easy", ("color",), "mark, count")],
)
def test_wrong_names_are_explained(level: str, types, said: str) -> None:
    with pytest.raises(UserError, match=said):
        record_at(level, "test", 0, 0, types)
