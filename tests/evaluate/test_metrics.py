from __future__ import annotations

import numpy as np
import pytest

from sightline.evaluate.metrics import METRICS, aggregate, measure
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.language.prompts import prompt
from sightline.sampling.modes import ModeResult
from sightline.types import Box, Record, Rollout

FRAME = Frame("relative_1000", 16, 64 * 64, 96 * 96)


def scene_record(level: str = "hard", index: int = 0) -> Record:
    from sightline.scenes import record_at

    return record_at(level, "test", 0, index)


def result(record: Record, mode: str, text: str, finish: str = "stop") -> ModeResult:
    count = len(text.split())
    rollout = Rollout(
        prompt=prompt(record, mode, "textual", "full"), branch=(0,), prompt_ids=np.zeros(0, int),
        ids=np.zeros(count, int), sampled=np.ones(count, bool), logprobs=np.zeros(count), text=text,
        finish=finish,  # type: ignore[arg-type]
    )  # fmt: skip
    reading = read(text, FRAME, [image.size for image in record.images], finish=rollout.finish)
    return ModeResult(record=record, mode=mode, rollouts=(rollout,), readings=(reading,))


def written(record: Record, style: str) -> str:
    """The reply a cold start teaches, which is right in every claim."""
    from sightline.scenes.texts import reply

    size = record.images[0].size
    return reply(record, style, lambda box: FRAME.write(box, size))[0]


@pytest.mark.parametrize("index", range(6))
def test_a_true_reply_is_right_in_every_metric(index):
    record = scene_record(index=index)
    textual = measure(result(record, "textual", written(record, "textual")))
    assert textual["accuracy"] == textual["region"] == textual["format"] == 1.0
    assert textual["unanswered"] == textual["truncated"] == 0.0
    grounded = measure(result(record, "grounded", written(record, "grounded")))
    assert grounded["iou"] > 0.9
    assert grounded["iou_union"] > 0.9
    assert grounded["iou_at_50"] == grounded["box_rate"] == 1.0
    assert "region" not in grounded
    assert "region" not in measure(result(record, "turns", "<think> The red square. </think><answer> red </answer>"))


def test_a_wrong_region_a_wrong_box_and_a_cut_reply():
    record = scene_record()
    right = written(record, "textual")
    row = record.meta["objects"][record.meta["targets"][0]]["region"][0]
    elsewhere = right.replace(f" {row} ", " bottom " if row != "bottom" else " top ")
    assert measure(result(record, "textual", elsewhere))["region"] == 0.0
    assert measure(result(record, "textual", "<think> I see it. </think>"))["region"] == 0.0
    far = measure(result(record, "grounded", "<think> <box>[0,0,1,1]</box> </think><answer> lime </answer>"))
    assert far["iou"] == far["iou_at_50"] == 0.0
    assert measure(result(record, "textual", right[:-20], finish="length"))["truncated"] == 1.0
    assert measure(result(record, "grounded", ""))["unanswered"] == 1.0


def test_meta_of_other_data_is_not_taken_for_scene_truth():
    record = Record(id="a", question="?", answer="b", meta={"objects": ["cat"], "targets": "cat"})
    assert "region" not in measure(result(record, "textual", "<think> a </think><answer> b </answer>"))


def test_aggregation_counts_each_metric_where_it_is():
    rows = [{"accuracy": 1.0, "iou": 0.5}, {"accuracy": 0.0}, {"accuracy": 1.0, "iou": 0.7}]
    found = aggregate(rows)
    assert list(found) == ["accuracy", "iou"]
    assert (found["accuracy"].n, found["iou"].n) == (3, 2)
    assert found["iou"].mean == pytest.approx(0.6)
    assert aggregate([]) == {}


def test_every_metric_is_described_and_shown_by_the_report():
    from sightline.report.metrics import measure as shown

    assert {name: shown(name).sentence for name in METRICS} == METRICS


def test_boxes_of_several_images_do_not_meet():
    from dataclasses import replace

    from sightline.types import Region

    record = scene_record()
    image = record.images[0]
    two = replace(record, images=(image, image), regions=(Region(box=Box(0, 0, 50, 50), image=1),))
    numbers = list(FRAME.write(Box(0, 0, 50, 50), image.size))
    on_first = measure(result(two, "grounded", f"<think> <box>{numbers}</box> </think><answer> b </answer>"))
    assert on_first["iou"] == 0.0
