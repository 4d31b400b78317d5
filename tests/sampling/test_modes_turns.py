"""The mode `turns`: what a conversation shows, when it falls back, and its controls."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from sightline.evaluate.metrics import measure
from sightline.evaluate.runner import evaluate
from sightline.geometry.frames import Frame
from sightline.images import image_ref, open_image
from sightline.language.parse import read
from sightline.sampling.base import SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.sampling.modes import FALLBACK, ModeConfig, ModeResult, answer
from sightline.tools.settings import TurnSettings
from sightline.types import Box, Record, Region, Rollout, Span, Turn

SETTINGS = SamplingSettings(temperature=0.0, max_new_tokens=24)
ANSWER = "<think> seen </think> <answer> a cat </answer>"
TEXTUAL = "<think> guessed </think> <answer> a dog </answer>"


@dataclass
class Speaker:
    frame: Frame
    style: str = "full"


SPEAKER = Speaker(Frame(convention="relative_1000", factor=16, min_pixels=16 * 16, max_pixels=96 * 96))


@dataclass
class Talker:
    """Says its lines one after the other and follows the rule of each Request, as every sampler does."""

    lines: list[str]
    asked: list = field(default_factory=list)

    def sample(self, requests, settings, *, seed, step):  # noqa: ARG002
        self.asked += requests
        return [[self._talk(request)] for request in requests]

    def _talk(self, request) -> Rollout:
        prompt, rule = request.prompt, request.turns
        sizes = [image.size for image in prompt.images]
        lines = [TEXTUAL] if rule is None else self.lines
        turns, images, readings = [], [], []
        for at, line in enumerate(lines):
            turns.append(Turn(role="assistant", span=Span(2 * at, 2 * at + 1), text=line))
            readings.append(read(line, SPEAKER.frame, sizes))
            following = rule.next(prompt, readings) if rule else None
            if following is None:
                break
            added = tuple(
                range(len(prompt.images) + len(images), len(prompt.images) + len(images) + len(following.images))
            )
            images += following.images
            turns.append(Turn(role="user", span=Span(2 * at + 1, 2 * at + 2), text=following.text, images=added))
        sampled = np.array([turn.role == "assistant" for turn in turns])
        return Rollout(
            prompt=prompt, branch=(0,), prompt_ids=np.zeros(1, int), ids=np.arange(len(turns)), sampled=sampled,
            logprobs=np.zeros(len(turns)), text="\n".join(reading.text for reading in readings), finish="stop",
            turns=tuple(turns), images=tuple(images),
        )  # fmt: skip


def record(name: str = "r") -> Record:
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(200)
    pixels[..., 1] = np.arange(100)[:, None]
    regions = (Region(box=Box(20, 20, 60, 80)),)
    return Record(id=name, question="What is it?", answer="a cat", images=(image_ref(pixels),), regions=regions)


def asks(*box: int) -> str:
    return f"<think> closer </think> <box>[{','.join(map(str, box))}]</box>"


def talk(*lines: str, control: str = "none", seed: int = 0, **turns) -> tuple[ModeResult, Talker]:
    talker = Talker(list(lines))
    config = ModeConfig(padding=0.0, min_side=1, control=control, turns=TurnSettings(**turns))  # type: ignore[arg-type]
    (result,) = answer(talker, [record()], "turns", config, speaker=SPEAKER, settings=SETTINGS, seed=seed)  # type: ignore[arg-type]
    return result, talker


def test_a_conversation_shows_what_it_asked_for() -> None:
    result, talker = talk(asks(100, 200, 300, 800), asks(0, 0, 100, 100), ANSWER)
    assert result.answer == "a cat"
    assert [(crop.box, crop.turn) for crop in result.crops] == [(Box(20, 20, 60, 80), 1), (Box(0, 0, 20, 10), 2)]
    original = np.asarray(open_image(result.record.images[0]))
    for crop in result.crops:
        x1, y1, x2, y2 = (int(side) for side in crop.box)
        assert (np.asarray(open_image(crop.pixels)) == original[y1:y2, x1:x2]).all()
    assert [found.box for found in result.boxes] == [crop.box for crop in result.crops]
    assert result.rollouts[0].images == tuple(crop.pixels for crop in result.crops)
    assert (result.note, len(talker.asked), len(result.rollouts)) == ("", 1, 1)


def test_a_direct_answer_is_an_answer() -> None:
    for reply in (ANSWER, "a cat"):
        result, talker = talk(reply)
        assert (result.answer, result.note, result.crops, len(talker.asked)) == ("a cat", "", (), 1)


@pytest.mark.parametrize("reply", ["", "<think> hm </think>", "<think> hm </think> <box>there</box>"])
def test_nothing_seen_and_nothing_said_falls_back_to_words(reply: str) -> None:
    result, talker = talk(reply)
    assert (result.note, result.answer, result.crops) == (FALLBACK, "a dog", ())
    assert [request.prompt.stream for request in talker.asked] == ["ground_r1", "textual"]
    assert len(result.rollouts) == len(result.readings) == 2


def test_the_release_falls_back_only_where_it_has_cut_nothing() -> None:
    result, _ = talk(*["<think> hm </think>"] * 5, policy="parity")
    assert result.note == FALLBACK
    assert len(result.rollouts[0].images) == 4
    result, _ = talk("<think> hm </think>", asks(0, 0, 500, 500), ANSWER, policy="parity")
    assert [crop.box for crop in result.crops] == [Box(0, 0, 100, 50)]
    assert result.answer == "a cat"


def test_a_conversation_that_never_answers_says_so() -> None:
    result, _ = talk(*[asks(0, 0, 500, 500)] * 9, max_turns=3)
    assert (result.answer, result.note) == ("", "no answer within 3 turns")
    assert len(result.crops) == 2
    metrics = measure(result)
    assert (metrics["unanswered"], metrics["accuracy"], metrics["format"]) == (1.0, 0.0, 0.0)


def test_what_was_not_shown_is_noted() -> None:
    result, _ = talk(asks(500, 500, 100, 100), asks(0, 0, 500, 500), ANSWER, policy="strict")
    assert result.note == "not shown: reversed"
    assert [crop.turn for crop in result.crops] == [2]


def test_tool_calls_and_their_template() -> None:
    call = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [%s]}}</tool_call>'
    both = "<think> a </think>" + call % "0, 0, 500, 500" + call % "500, 500, 1000, 1000"
    result, talker = talk(both, ANSWER, syntax="tool_call")
    assert talker.asked[0].prompt.stream == "deepeyes"
    assert [(crop.box, crop.turn) for crop in result.crops] == [(Box(0, 0, 100, 50), 1), (Box(100, 50, 200, 100), 1)]
    assert measure(result)["format"] == 1.0


def test_prompts_name_the_largest_coordinates() -> None:
    _, talker = talk(ANSWER)
    assert "Width: 1000, height: 1000" in talker.asked[0].prompt.messages[0].content[-1]


def test_controls() -> None:
    plain, _ = talk(asks(100, 200, 300, 800), ANSWER)
    full, _ = talk(asks(100, 200, 300, 800), ANSWER, control="no-crop")
    assert full.crops == ()
    assert full.rollouts[0].images == full.record.images
    assert full.note == "control: no-crop"
    grey, _ = talk(asks(100, 200, 300, 800), ANSWER, control="blank-crop")
    assert grey.crops[0].pixels.size == plain.crops[0].pixels.size
    assert np.unique(np.asarray(open_image(grey.crops[0].pixels))).tolist() == [127]
    moved = [talk(asks(100, 200, 300, 800), ANSWER, control="random-crop", seed=seed)[0] for seed in (0, 0, 1)]
    assert moved[0].crops == moved[1].crops
    assert moved[0].crops[0].box != moved[2].crops[0].box
    x1, y1, x2, y2 = (int(side) for side in moved[0].crops[0].box)
    original = np.asarray(open_image(plain.record.images[0]))
    assert (np.asarray(open_image(moved[0].crops[0].pixels)) == original[y1:y2, x1:x2]).all()


def test_metrics_come_from_all_turns() -> None:
    result, _ = talk(asks(100, 200, 300, 800), asks(0, 0, 100, 100), ANSWER)
    metrics = measure(result)
    assert metrics["iou_recall"] == 1.0
    assert metrics["boxes"] == 2.0
    assert metrics["tokens"] == 3.0
    assert metrics["iou"] == pytest.approx((1 + (1 + 0) / 2) / 2, abs=0.05)


@pytest.mark.parametrize(
    ("first", "form"),
    [
        ("<think> a </think> <box>[1,2,300,400]</box>", 1.0),
        (" <think> a </think>\n<box>[1,2,300,400]</box>\n", 1.0),
        ("<think> a </think> <box>[1,2,300,400]</box> so", 0.0),
        ("so <think> a </think> <box>[1,2,300,400]</box>", 0.0),
        ("<think> a </think> then <box>[1,2,300,400]</box>", 0.0),
        ("<box>[1,2,300,400]</box>", 0.0),
        ("<think> . </think> <box>[1,2,300,400]</box>", 0.0),
        ("<think> a </think> <think> b </think> <box>[1,2,300,400]</box>", 0.0),
        ("<think> a </think> <box>[1,2,300,400]</box><box>[1,2,300,400]</box>", 0.0),
        ("<think> a <box>[1,2,300,400]</box> </think>", 0.0),
    ],
)
def test_the_form_of_every_turn_counts(first: str, form: float) -> None:
    result, _ = talk(first, ANSWER)
    assert measure(result)["format"] == form


def test_evaluation_runs_conversations_of_a_real_policy(policy) -> None:
    records = [record(str(i)) for i in range(3)]
    evaluation = evaluate(policy, records, ["grounded", "turns"], settings=SETTINGS, draws=10, is_shown=False)
    rows = [row for row in evaluation.rows if row.mode == "turns"]
    assert [row.record for row in rows] == ["0", "1", "2"]
    assert evaluation.estimates["turns"]["tokens"].mean > 0


def test_conversations_of_a_real_policy_show_the_expected_crops(policy) -> None:
    """Whatever a policy says: what entered its second turn is the rectangle that the result names."""
    records = [record(str(i)) for i in range(4)]
    config = ModeConfig(turns=TurnSettings(policy="parity", max_turns=3))
    settings = SamplingSettings(temperature=1.0, max_new_tokens=16)
    for result in answer(LocalSampler(policy), records, "turns", config, speaker=policy, settings=settings):
        placeholders = int((np.concatenate([r.ids for r in result.rollouts]) == policy.image_token).sum())
        assert placeholders == sum(policy.frame.tokens(image.size) for image in result.rollouts[0].images)
        for crop in result.crops:
            assert crop.pixels in result.rollouts[0].images
