"""Faithfulness: closed forms on hand-made attention, records that keep their grid, and the shipped policy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conftest import make_record
from sightline.cli import main
from sightline.data.sources import open_source
from sightline.errors import UserError
from sightline.evaluate.faithfulness import ATTENTION, BINS, Reader, _read, changed_record, faithfulness
from sightline.evaluate.metrics import measure
from sightline.geometry.frames import Frame
from sightline.geometry.grid import membership
from sightline.interventions import Intervention
from sightline.policy.load import Policy, load_policy
from sightline.sampling.base import SamplingSettings
from sightline.types import Box, Measurement, Record, Region, Rollout

GREEDY = SamplingSettings(temperature=0.0, max_new_tokens=64)


@pytest.fixture(scope="module")
def shipped() -> Policy:
    return load_policy("embedded:qwen3_vl")


@pytest.fixture(scope="module")
def scenes() -> list[Record]:
    source: Any = open_source("scenes:easy", split="test", seed=0)
    return [source.at(i) for i in range(16)]


def measured(rows: np.ndarray, region: np.ndarray, effect: np.ndarray) -> tuple[Rollout, Measurement]:
    """A reply of the given attention rows over four cells, its last token not sampled."""
    count = len(rows)
    sampled = np.arange(count) < count - 1
    masses = np.stack([rows @ region, rows @ (1 - region), 0 * rows[:, 0], 1 - rows.sum(1)], 1)
    from sightline.types import Prompt

    prompt = Prompt(record=make_record(), stream="textual", messages=())
    rollout = Rollout(
        prompt=prompt, branch=(0,), prompt_ids=np.zeros(1, int), ids=np.arange(count), sampled=sampled,
        logprobs=np.zeros(count, np.float32), text="", finish="stop",
    )  # fmt: skip
    seen = Measurement(
        logprobs=-np.ones(count), probes={"attention": masses, "contrast": -1 - effect}, maps={"attention": rows}
    )
    return rollout, seen


def test_figures_of_one_reply_by_hand() -> None:
    rows = np.array([[0.4, 0.1, 0.0, 0.0], [0.1, 0.0, 0.1, 0.0], [9.0, 9.0, 9.0, 9.0]])
    region = np.array([1.0, 0.0, 0.0, 1.0])
    found = _read(*measured(rows, region, np.array([2.0, 4.0, 100.0])), region, slice(0, 4))
    assert found.attention == pytest.approx(
        {
            "region_mass": 0.25, "image_mass": 0.35, "region_share": 0.25 / 0.35, "area_share": 0.5, "pointing": 1.0,
            "top1_share": (0.4 / 0.5 + 0.1 / 0.2) / 2,
        }
    )  # fmt: skip
    # two tokens: one in the middle of each half
    assert found.curve[2] == 2.0
    assert found.curve[7] == 4.0
    assert np.isnan(np.delete(found.curve, [2, 7])).all()
    elsewhere = _read(
        *measured(rows, region[::-1] * [1, 1, 1, 0], np.zeros(3)), np.array([0.0, 1.0, 1.0, 0.0]), slice(0, 4)
    )
    assert elsewhere.attention["pointing"] == 0.0


@pytest.mark.parametrize("size", [(97, 65), (33, 201), (64, 64)])
@pytest.mark.parametrize("convention", ["absolute", "relative_1000"])
def test_changed_records_keep_grid_boxes_and_cells(size: tuple[int, int], convention: Any) -> None:
    """What the model writes for a box, and the cells it owns, are those of the original picture."""
    frame = Frame(convention, 16, 32 * 32, 96 * 96)
    record = make_record(sizes=(size,))
    record = replace(record, regions=(Region(box=Box(3.0, 5.0, 20.0, 30.0)),))
    for kind in ("region_mask", "random_region"):
        changed = changed_record(record, frame, Intervention(kind), ("a",))  # type: ignore[arg-type]
        old, new = record.images[0].size, changed.images[0].size
        assert frame.cells(new) == frame.cells(old)
        boxes = [r.regions[0].box for r in (record, changed)]
        assert frame.to_model(boxes[0], old) == pytest.approx(frame.to_model(boxes[1], new))
        assert np.array_equal(membership(record.regions, [old], frame), membership(changed.regions, [new], frame))
        assert (changed.id, changed.answer) == (record.id, record.answer)
    same = changed_record(record, frame, Intervention("region_mask"), ("b",))
    assert same.images == changed_record(record, frame, Intervention("region_mask"), ("a",)).images


def test_the_shipped_policy_needs_its_evidence(shipped: Policy, scenes: list[Record]) -> None:
    bare = replace(scenes[0], id="bare", regions=())
    found = faithfulness(shipped, [*scenes, bare], settings=GREEDY, is_shown=False)
    assert (found.n, found.skipped) == (16, 1)
    accuracy = {name: value.mean for name, value in found.accuracy.items()}
    drops = {name: value.mean for name, value in found.drops.items()}
    assert drops["region_mask"] == pytest.approx(accuracy["original"] - accuracy["region_mask"])
    assert drops["random_region"] == pytest.approx(accuracy["original"] - accuracy["random_region"])
    assert drops["difference"] == pytest.approx(drops["region_mask"] - drops["random_region"])
    assert drops["difference"] > 0.3
    attention = {name: value.mean for name, value in found.attention.items()}
    assert set(attention) == set(ATTENTION)
    assert attention["region_mass"] < attention["image_mass"] < 1
    assert attention["pointing"] > attention["area_share"]
    assert len(found.curve) == BINS
    assert max(c.mean for c in found.curve if c is not None) > 0.1
    row = json.loads(json.dumps(found.row()))
    assert row["drops"]["difference"]["n"] == row["n"] == 16
    again = faithfulness(shipped, scenes, settings=GREEDY, batch=5, is_shown=False)
    assert again.accuracy == found.accuracy


def test_accuracy_is_that_of_the_evaluation(shipped: Policy, scenes: list[Record]) -> None:
    from sightline.sampling.local import LocalSampler
    from sightline.sampling.modes import answer

    found = faithfulness(shipped, scenes, "grounded", settings=GREEDY, is_shown=False)
    results = answer(LocalSampler(shipped), scenes, "grounded", speaker=shipped, settings=GREEDY)
    assert found.accuracy["original"].mean == np.mean([measure(r)["accuracy"] for r in results])


def test_heads_of_a_file_are_read(shipped: Policy, scenes: list[Record], tmp_path: Any) -> None:
    file = tmp_path / "heads.json"
    file.write_text('{"heads": [[0, 0]]}')
    reader = Reader(heads_file=str(file), contrast=Intervention("gray"))
    one, other = (
        faithfulness(shipped, scenes[:4], settings=GREEDY, reader=r, is_shown=False) for r in (reader, Reader())
    )
    assert one.attention["region_mass"] != other.attention["region_mass"]
    assert one.attention["area_share"] == other.attention["area_share"]
    assert one.curve != other.curve


def test_what_cannot_be_measured_is_told(shipped: Policy, scenes: list[Record]) -> None:
    with pytest.raises(UserError, match="no record has regions"):
        faithfulness(shipped, [replace(r, regions=()) for r in scenes[:2]], is_shown=False)
    free = [replace(r, answer_kind="free", answer="a tale of two cities", options=()) for r in scenes[:2]]
    with pytest.raises(UserError, match="no rule decides"):
        faithfulness(shipped, free, settings=GREEDY, is_shown=False)


def test_eval_prints_it_and_writes_it(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.jsonl"
    words = ["eval", "--data", "scenes:easy", "--limit", "6", "--modes", "textual", "--faithfulness", "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "difference of the drops %" in printed
    assert "image dependence over the reply, textual" in printed
    figures = json.loads(out.with_suffix(".json").read_text())
    assert figures["faithfulness"]["textual"]["n"] == 6
    assert main(["eval", "--heads", "x.json"]) == 2
    assert main(["eval", "--faithfulness", "--heads", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("error:") == 2


def test_a_run_keeps_it_with_its_evaluations(tmp_path: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "method: {name: grpo}\ndata: {train: 'scenes:easy', validation: 'scenes:easy', records_per_step: 2}\n"
        "train: {steps: 0}\nevaluation: {n: 3, modes: [textual], faithfulness: true}\n"
    )
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["faithfulness"]["drops"]["difference"]["n"] == 3 for row in rows)
