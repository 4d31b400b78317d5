"""Evaluation in GRIT's language: form, counts, validity, region words, and means by data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sightline.evaluate.correlation import Correlation, with_correlation
from sightline.evaluate.metrics import METRICS, measure
from sightline.evaluate.runner import Evaluation, EvaluationRow, evaluate, read_table, write_table
from sightline.evaluate.sets import set_means
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.language.prompts import prompt
from sightline.policy.load import Policy
from sightline.sampling.modes import ModeResult
from sightline.scenes import record_at
from sightline.scenes.texts import reply
from sightline.types import Record, Rollout

FRAME = Frame("relative_1000", 16, 64 * 64, 96 * 96)
COUNTS = [record_at("hard", "test", 0, i, types=("count",)) for i in range(12)]


def result(record: Record, text: str, mode: str = "grit") -> ModeResult:
    count = len(text.split())
    rollout = Rollout(
        prompt=prompt(record, mode, mode, "compact"), branch=(0,), prompt_ids=np.zeros(0, int),
        ids=np.zeros(count, int), sampled=np.ones(count, bool), logprobs=np.zeros(count), text=text, finish="stop",
    )  # fmt: skip
    reading = read(text, FRAME, [image.size for image in record.images])
    return ModeResult(record=record, mode=mode, rollouts=(rollout,), readings=(reading,))


def true_reply(record: Record) -> str:
    return reply(record, "grit", lambda box: FRAME.write(box, record.images[0].size))[0]


class TestMetrics:
    @pytest.mark.parametrize("record", COUNTS, ids=lambda r: r.answer)
    def test_a_true_reply_is_right_in_every_metric(self, record: Record) -> None:
        found = measure(result(record, true_reply(record)))
        assert found["accuracy"] == found["counts_match"] == found["format"] == 1
        if record.answer != "0":
            assert found["iou_union"] > 0.9
            assert found["box_validity"] == found["region"] == 1
        else:
            assert "iou_union" not in found
            assert "box_validity" not in found

    def test_grounding_iou_is_of_unions(self) -> None:
        """Two boxes that overlap and cover the gold box together are as good as one; none are worth 0."""
        record = record_at("hard", "test", 0, 0)
        size, gold = record.images[0].size, record.regions[0].box
        third = gold.width / 3
        parts = (gold._replace(x2=gold.x2 - third), gold._replace(x1=gold.x1 + third))
        texts = [f"<think> [{','.join(map(str, FRAME.write(box, size)))}] " for box in parts]
        whole = ",".join(map(str, FRAME.write(gold, size)))
        both, one = (measure(result(record, text))["iou_union"] for text in ("".join(texts), f"<think> [{whole}] "))
        assert both == pytest.approx(one, abs=0.02)
        assert one > 0.95
        assert measure(result(record, "<think> none "))["iou_union"] == 0

    def test_a_box_too_many(self) -> None:
        record = next(r for r in COUNTS if r.answer == "2")
        text = true_reply(record).replace("</think>", ' {"bbox_2d": [5, 5, 5, 5]}.</think>')
        found = measure(result(record, text))
        assert found["accuracy"] == 1
        assert found["counts_match"] == 0
        assert found["box_validity"] == pytest.approx(2 / 3)

    def test_a_box_written_again_in_the_rethink_is_counted_once(self) -> None:
        record = next(r for r in COUNTS if r.answer == "2")
        text = true_reply(record)
        first = text[text.index("{") : text.index("}") + 1]
        again = text.replace("</rethink>", f" {first}</rethink>")
        assert again != text
        assert measure(result(record, again))["counts_match"] == 1

    def test_a_question_that_counts_nothing_has_no_counts_match(self) -> None:
        record = record_at("hard", "test", 0, 0)
        assert "counts_match" not in measure(result(record, true_reply(record)))

    def test_without_rethinking_the_form_is_missed(self) -> None:
        text = "<think> The red circle is at the top left.</think><answer>1</answer>"
        assert measure(result(COUNTS[0], text))["format"] == 0
        assert measure(result(COUNTS[0], text, "textual"))["format"] == 1

    def test_region_words_are_sought_in_the_rethink(self) -> None:
        record = record_at("hard", "test", 0, 0)
        text = true_reply(record)
        wrong = text.replace(" top ", " bottom ") if " top " in text else text.replace(" bottom ", " top ")
        wrong = wrong if wrong != text else text.replace(" middle ", " top ")
        assert measure(result(record, text))["region"] == 1
        assert measure(result(record, wrong))["region"] == 0


def rows_of(*sets: tuple[str, list[float]]) -> list[EvaluationRow]:
    return [
        EvaluationRow(
            record=f"{kind}-{i}", mode="grit", question="?", reference="1", answer="1", text="", kind=kind,
            metrics={"accuracy": value, **({"iou_union": value} if kind == "vsr" else {})},
        )
        for kind, values in sets
        for i, value in enumerate(values)
    ]  # fmt: skip


class TestSets:
    def test_both_sums(self) -> None:
        """The paper's in-domain figure: (288 * .495 + 491 * .324) / 779 = .387."""
        found = set_means(rows_of(("vsr", [0.495] * 288), ("tallyqa", [0.324] * 491)), "grit")
        assert found.weighted["accuracy"] == pytest.approx(0.387, abs=5e-4)
        assert found.plain["accuracy"] == pytest.approx((0.495 + 0.324) / 2)
        assert dict(found.counts) == {"vsr": 288, "tallyqa": 491}

    def test_a_metric_that_a_set_lacks(self) -> None:
        found = set_means(rows_of(("vsr", [1.0, 0.0]), ("mme", [1.0])), "grit")
        assert found.sets["iou_union"] == {"vsr": 0.5}
        assert found.weighted["iou_union"] == found.plain["iou_union"] == 0.5

    def test_events_tell_them_where_there_are_several(self) -> None:
        for sets, is_told in (((("vsr", [1.0]), ("mme", [0.0])), True), ((("vsr", [1.0]),), False)):
            event = next(Evaluation(rows=tuple(rows_of(*sets)), estimates={"grit": {}}).events())
            assert ("sets" in event) == is_told
            json.dumps(event)


def test_rows_with_the_correlation_can_be_compared(tmp_path: Path) -> None:
    rows = tuple(rows_of(("vsr", [1.0, 0.0])))
    found = Correlation(mean=0.75, deviation=0.0, repetitions=(0.75,), chains=1, by_record={"vsr-1": 0.75})
    judged = with_correlation(Evaluation(rows=rows, estimates={"grit": {}}), {"grit": found})
    assert judged.estimates["grit"]["correlation"].mean == 0.75
    again = read_table(write_table(judged, tmp_path / "table.jsonl"))
    assert [row.metrics.get("correlation") for row in again] == [None, 0.75]
    assert "correlation" in METRICS


def test_the_mode_asks_in_grits_words(policy: Policy) -> None:
    records = [replace(record, id=f"r{i}") for i, record in enumerate(COUNTS[:2])]
    found = evaluate(policy, records, ["grit"], batch=2, is_shown=False, draws=10)
    assert [row.mode for row in found.rows] == ["grit", "grit"]
    assert found.rows[0].kind == "count"
    assert {"counts_match", "format"} <= found.rows[0].metrics.keys()
