"""Conversations on the run page: turns, crops beside their boxes, the tree of branches, bins and both terms of SRPO."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sightline.credit.bin_credit import bin_credit
from sightline.images import crop
from sightline.report.environment import digest, source
from sightline.report.events import RunFolder, RunWriter
from sightline.report.pack import image_keys, pack_group
from sightline.report.page import SCRIPTS, write_page
from sightline.report.rows import group_row
from sightline.types import Box, Group, Rollout, Score, Scores, Span, StepStats, Turn

SMALL, LARGE = Box(20, 20, 50, 50), Box(10, 10, 180, 180)
FOLLOW_UP = "Here it is, enlarged."


def told(synthetic, vocabulary, branch: tuple[int, int], box: Box | None, said: str) -> tuple[Rollout, object, Scores]:
    """A rollout that asked for a crop of `box`, or answered at once."""
    record = synthetic.record(11)
    written = "" if box is None else f"<box>[{','.join(str(int(side)) for side in box)}]</box>"
    end = f"<answer> {said} </answer>"
    texts = [f"<think> look </think> {end}"] if box is None else [f"<think> look </think> {written}", f"it is {end}"]
    first, last = vocabulary.encode(texts[0]), vocabulary.encode(texts[-1]) if box else []
    user = vocabulary.encode(" <pad>" * 9 + " enlarged") if box else []
    ids, ends = [*first, *user, *last], np.cumsum([len(first), len(user), len(last)]).tolist()
    turns = (Turn(role="assistant", span=Span(0, ends[0]), text=texts[0]),)
    if box:
        user_turn = Turn(role="user", span=Span(*ends[:2]), text=FOLLOW_UP, images=(1,), boxes=(box,))
        turns += (user_turn, Turn(role="assistant", span=Span(*ends[1:]), text=texts[-1], finish="length"))
    text = "\n".join(texts)
    rollout = replace(
        synthetic.rollout(record, "turns", 0, "x", vocabulary),
        branch=branch,
        ids=np.array(ids),
        sampled=np.array([not ends[0] <= i < ends[1] for i in range(len(ids))]),
        logprobs=np.full(len(ids), -0.1),
        text=text,
        turns=turns,
        images=(crop(record.images[0], box),) if box else (),
        forks=(ends[1],) if box else (),
    )
    readings = [synthetic.reading(part, box if i == 0 else None) for i, part in enumerate(texts)]
    if box:
        readings[0] = replace(readings[0], sections={**readings[0].sections, "box": Span(15, len(texts[0]))})
    reading = replace(synthetic.reading(text, box), answer=readings[-1].answer, turns=tuple(readings))
    return rollout, reading, Scores(terms={"accuracy": Score(float(said == record.answer), "as the record says")})


def conversations(synthetic, vocabulary) -> Group:
    """Three first turns, two continuations each; the last one answers at once, so its rollouts are the same."""
    right = synthetic.record(11).answer
    parts = [
        told(synthetic, vocabulary, (0, 0), SMALL, right),
        told(synthetic, vocabulary, (0, 1), SMALL, "nothing"),
        told(synthetic, vocabulary, (1, 0), LARGE, right),
        told(synthetic, vocabulary, (1, 1), LARGE, right),
        told(synthetic, vocabulary, (2, 0), None, "nothing"),
        told(synthetic, vocabulary, (2, 1), None, "nothing"),
    ]
    rollouts, readings, scores = (tuple(column) for column in zip(*parts, strict=True))
    group = Group(record=synthetic.record(11), rollouts=rollouts, readings=readings, scores=scores)
    return replace(group, credits=bin_credit(group))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, synthetic) -> Path:
    folder, vocabulary = tmp_path_factory.mktemp("turns"), synthetic.Vocabulary()
    writer = RunWriter(folder)
    writer.manifest({"method": "ground_r1"})
    for step in range(3):
        shares = {f"credit/turns/{name}_share": 0.25 for name in ("bin_1", "bin_2", "bin_3", "no_box")}
        rewards = {f"credit/turns/bin_{k}_reward": 1.0 + k for k in (1, 3)}
        writer.step(StepStats(step=step, metrics={"reward/turns/total": 1.0, **shares, **rewards}))
    writer.groups(0, [conversations(synthetic, vocabulary)], decode_piece=vocabulary.decode_piece)
    return folder


def test_row_tells_turns_crops_and_parts(synthetic) -> None:
    vocabulary = synthetic.Vocabulary()
    row = json.loads(json.dumps(group_row(0, conversations(synthetic, vocabulary))))
    first = row["rollouts"][0]
    assert [turn["role"] for turn in first["turns"]] == ["assistant", "user", "assistant"]
    assert first["turns"][1]["boxes"] == [list(SMALL)]
    assert first["turns"][1]["images"] == [1]
    assert first["turns"][1]["text"] == FOLLOW_UP
    assert first["turns"][2]["finish"] == "length"
    for shown in (row, pack_group(row)):
        actions = [[turn["action"] for turn in rollout["turns"]] for rollout in shown["rollouts"]]
        assert actions[0] == ["box", "", "answer"]
        assert actions[4] == ["answer"]
    assert first["forks"] == [first["turns"][1]["span"][1]]
    assert first["images"][0]["width"] == 30
    assert first["parts"]["bin"] == 1.0
    assert first["parts"]["box_area"] == pytest.approx(900 / 192**2)
    assert first["parts"]["intra"] + first["parts"]["inter"] == pytest.approx(first["advantage"])
    assert row["rollouts"][4]["parts"]["bin"] == 0.0


def test_crops_are_pictures_of_the_run_folder(run: Path) -> None:
    folder = RunFolder(run)
    (row,) = folder.rollouts
    keys = image_keys(pack_group(row))
    assert len(keys) == 3  # the record's picture and two crops, each shared by two rollouts
    assert all(folder.image(key) for key in keys)


def test_boxes_are_tied_to_the_tokens_that_write_them_in_any_turn(synthetic) -> None:
    vocabulary = synthetic.Vocabulary()
    row = group_row(0, conversations(synthetic, vocabulary), decode_piece=vocabulary.decode_piece)
    rollout = row["rollouts"][0]
    second = rollout["text"].index("it is")
    late = {**rollout["boxes"][0], "span": [second, second + 5]}
    packed = pack_group({**row, "rollouts": [{**rollout, "boxes": [*rollout["boxes"], late]}]})["rollouts"][0]

    def words(box: dict) -> str:
        return "".join(token["text"] for token in rollout["tokens"][slice(*box["tokens"])])

    assert words(packed["boxes"][0]).strip().startswith("<box>[20,20")
    assert words(packed["boxes"][1]).strip() == "it is"


def test_pieces_without_readable_text_do_not_lose_the_rest(synthetic) -> None:
    row = group_row(0, synthetic.group(11, 0, synthetic.Vocabulary(), grounded=True))
    tokens = [{"text": piece} for piece in ("a", "\ufffd", "\ufffd", " <box>", "1</box>", "<|im_end|>")]
    box = {"box": [0, 0, 1, 1], "is_valid": True, "span": [10, 22]}
    rollout = {"stream": "s", "branch": [0], "text": "forced aé <box>1</box>", "tokens": tokens, "boxes": [box]}
    packed = pack_group({**row, "rollouts": [rollout]})["rollouts"][0]
    assert packed["boxes"][0]["tokens"] == [3, 5]
    assert packed["prefix"] == "forced "


def test_texts_of_the_user_stand_once(run: Path) -> None:
    rollout = pack_group(RunFolder(run).rollouts[0])["rollouts"][0]
    start, end = rollout["turns"][1]["span"]
    assert rollout["turns"][1]["text"] == FOLLOW_UP
    assert set(rollout["tokens"]["text"][start:end]) == {""}
    assert rollout["turns"][0]["text"] == ""


def test_rows_of_older_runs_still_show(synthetic) -> None:
    vocabulary = synthetic.Vocabulary()
    group = synthetic.group(11, 0, vocabulary, grounded=True)
    row = group_row(0, group, decode_piece=vocabulary.decode_piece)
    for rollout in row["rollouts"]:
        for name in ("turns", "forks", "parts"):
            del rollout[name]
    del row["target"]
    packed = pack_group(row)
    assert packed["rollouts"][0]["parts"] == {}
    assert packed["rollouts"][0]["boxes"][0]["tokens"][0] > 0


DRIVER = """
{
  const count = (selector) => document.querySelectorAll(selector).length;
  view.toggle(2);
  const said = [count(".branch"), count(".stem"), count(".branch > .rollout"), count(".stem img")];
  said.push([...document.querySelectorAll(".stem .note")].map((node) => node.textContent));
  const figure = document.querySelector('.rollout[data-index="2"] .crop');
  figure.dispatchEvent(new PointerEvent("pointerenter"));
  const drawn = document.querySelector(".picture .cropped.lit");
  said.push(["x", "y", "width", "height"].map((name) => Number(drawn.getAttribute(name))));
  figure.dispatchEvent(new PointerEvent("pointerleave"));
  said.push(count(".lit"));
  document.querySelector(".picture .cropped").dispatchEvent(new PointerEvent("pointerenter"));
  said.push(figure.classList.contains("lit"));
  said.push([...document.querySelectorAll(".bins .seats")].map((node) => node.querySelectorAll(".taken").length));
  said.push([...document.querySelectorAll(".bins .value")].map((node) => node.textContent));
  said.push([...document.querySelectorAll('.rollout[data-index="2"] .parts .value')].map((node) => node.textContent));
  const keyed = view.charts.map(({ chart }) => chart).filter((chart) => chart.hasKeys);
  said.push(keyed.map((chart) => [chart.title, chart.lines.length]));
  root.dataset.said = JSON.stringify(said);
}
"""


def test_browser_shows_tree_crops_and_bins(run: Path, tmp_path: Path, browse) -> None:
    script = source(*SCRIPTS)
    text = write_page(run).read_text()
    driven = tmp_path / "driven.html"
    driven.write_text(text.replace(script, script + DRIVER).replace(digest(script), digest(script + DRIVER)))
    dom, console = browse(driven)
    assert console == []
    assert "data-error" not in dom
    for part in (
        "turn 2, user",
        FOLLOW_UP,
        "cut by the token limit",
        "shared by 2 rollouts",
        "asks for a region",
        "78% of the image",
    ):
        assert part in dom
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found
    said = json.loads(found.group(1).replace("&quot;", '"'))
    assert said[:4] == [3, 3, 6, 2]
    (shared,) = RunFolder(run).rollouts[0]["rollouts"][0]["forks"]
    assert said[4] == [f"2 rollouts share {shared} tokens"] * 2 + ["2 rollouts are this one reply"]
    assert said[5] == [LARGE.x1, LARGE.y1, LARGE.width, LARGE.height]
    assert said[6:8] == [0, True]
    assert said[8] == [2, 2, 0, 2]
    assert said[9] == ["0.00", "0.50", "–", "1.00"]
    parts = RunFolder(run).rollouts[0]["rollouts"][2]["parts"]
    expected = [parts["intra"], parts["inter"], parts["advantage"]]
    assert [float(value.replace("−", "-")) for value in said[10]] == pytest.approx(expected, abs=0.006)
    assert said[11] == [["Occupancy, turns", 4], ["Mean reward, turns", 2]]
