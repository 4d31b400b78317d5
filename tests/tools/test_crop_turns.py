"""The course of a conversation: what follows each reply under every policy, and exactly which pixels are shown."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.geometry.frames import Frame
from sightline.images import open_image
from sightline.language.parse import read
from sightline.language.prompts import TEMPLATES, prompt
from sightline.methods.base import TurnRule
from sightline.tools.crop import CropSettings, CropTool
from sightline.tools.rule import CropTurns
from sightline.tools.syntax import BoxSyntax, ToolCallSyntax
from sightline.types import Box, ImageRef, Prompt, Reading, Record

ASK = "<think> closer </think> <box>[250,250,500,500]</box>"
ANSWER = "<think> seen </think> <answer> red </answer>"


@pytest.fixture
def shown(chart: ImageRef):
    record = Record(id="r", question="What color?", answer="red", images=(chart,))
    return lambda template="ground_r1", style="full": prompt(record, template, template, style)


@pytest.fixture
def after(frame: Frame, shown):
    """The next turn after these replies."""

    def following(rule: CropTurns, *texts: str, asked: Prompt | None = None, **options: str):
        asked = asked or shown()
        sizes = [image.size for image in asked.images]
        readings: list[Reading] = [read(text, frame, sizes, **options) for text in texts]  # type: ignore[arg-type]
        return rule.next(asked, readings)

    return following


def rule(policy: str = "lenient", *, syntax=None, crops: dict | None = None, **more) -> CropTurns:
    tool = CropTool(CropSettings(policy=policy, **{"padding": 0.0, **(crops or {})}))  # type: ignore[arg-type]
    return CropTurns(tool, syntax or BoxSyntax(is_parity=policy == "parity"), **more)


def pixels(image: ImageRef) -> np.ndarray:
    return np.asarray(open_image(image))


def test_it_is_a_turn_rule() -> None:
    assert isinstance(rule(), TurnRule)


@pytest.mark.parametrize("policy", ["strict", "lenient", "parity"])
def test_the_second_image_is_the_expected_crop(after, chart, policy) -> None:
    turn = after(rule(policy), ASK)
    assert turn.boxes == (Box(160, 120, 320, 240),)
    assert (pixels(turn.images[0]) == pixels(chart)[120:240, 160:320]).all()


def test_compact_follow_ups_are_the_crop_alone(after, shown) -> None:
    turn = after(rule(), ASK, asked=shown(style="compact"))
    assert turn.text == ""
    assert len(turn.images) == 1
    assert after(rule(style="full"), ASK, asked=shown(style="compact")).text.startswith("This is the region")


def test_full_follow_ups_are_a_sentence_or_the_template(after, shown) -> None:
    assert after(rule(), ASK).text.startswith("This is the region you asked for.")
    assert after(rule(repeat_template=True), ASK).text == shown().messages[-1].content[-1]
    told = after(rule("strict", repeat_template=True), "<think> a </think> <box>[500,0,250,9]</box>")
    assert told.text.startswith("No region can be shown")


@pytest.mark.parametrize(
    ("text", "ours", "release"),
    [
        (ANSWER, True, True),
        ("<think> a </think> <answer> red", True, True),
        ("<think> the <answer> tag </think> <box>[250,250,500,500]</box>", False, True),
        ("<think> nothing to see </think>", True, False),
        ("", True, False),
    ],
)
def test_what_ends_a_conversation(after, text, ours, release) -> None:
    assert (after(rule(), text) is None) == ours
    assert (after(rule("parity"), text) is None) == release


def test_a_truncated_turn_ends_it(after) -> None:
    for policy in ("strict", "lenient", "parity"):
        assert after(rule(policy), ASK, finish="length") is None


def test_the_last_permitted_turn_gets_no_crop(after) -> None:
    assert after(rule(max_turns=2), ASK) is not None
    assert after(rule(max_turns=2), ASK, ASK) is None
    assert after(rule(max_turns=1), ASK) is None


def test_the_number_of_crops_is_that_of_the_conversation(after) -> None:
    limited = rule(crops={"max_crops": 2})
    assert after(limited, ASK, ASK).images
    told = after(limited, ASK, ASK, ASK)
    assert told.images == ()
    assert "2 regions have been shown already" in told.text


def test_a_strict_error_is_words_without_an_image(after, shown) -> None:
    bad = "<think> a </think> <box>[900,900,1200,1200]</box>"
    turn = after(rule("strict"), bad)
    assert (turn.images, turn.boxes) == ((), ())
    assert "outside the image" in turn.text
    assert after(rule("strict"), bad, asked=shown(style="compact")).text == TEMPLATES["ground_r1"].compact
    assert after(rule("strict"), bad, ASK).images
    assert after(rule("lenient"), bad).boxes == (Box(576, 432, 640, 480),)


def test_the_release_sends_the_full_image_again(after, chart) -> None:
    for text in ("", "<think> no box </think>", "<think> a </think><box>1,2,3,4</box>"):
        turn = after(rule("parity"), text)
        assert turn.images == (chart,)
        assert turn.boxes == (Box(0, 0, 640, 480),)


def test_several_tool_calls_get_several_crops(after, shown, chart) -> None:
    call = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": %s}}</tool_call>'
    text = "<think> a </think>" + call % "[0, 0, 500, 500]" + call % '"all"' + call % "[500, 500, 1000, 1000]"
    turn = after(rule(syntax=ToolCallSyntax()), text, asked=shown("deepeyes"))
    assert turn.boxes == (Box(0, 0, 320, 240), Box(320, 240, 640, 480))
    assert (pixels(turn.images[1]) == pixels(chart)[240:, 320:]).all()
    assert "no four numbers" in turn.text
    assert turn.opening.startswith("<tool_response>")
    assert turn.text.endswith("</tool_response>")
    one = after(rule(syntax=ToolCallSyntax(), crops={"max_crops": 1}), text, asked=shown("deepeyes"))
    assert one.boxes == (Box(0, 0, 320, 240),)


def test_the_words_of_a_tool_stand_around_its_crops(policy, chart) -> None:
    """The ids of the user's turn: opening, image, sentence, in the chat format."""
    from sightline.sampling.base import Request
    from sightline.sampling.turns import Conversation

    asked = prompt(Record(id="r", question="?", answer="a", images=(chart,)), "deepeyes", "deepeyes", "full")
    call = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 40, 40]}}</tool_call>'
    ids = [*policy.tokenizer(call, add_special_tokens=False)["input_ids"], policy.eos[0]]
    begun = Conversation.begin(policy, Request(asked, turns=rule(syntax=ToolCallSyntax()))).forked()[0]
    talk = begun.replied(policy, ids, [0.0] * len(ids), "stop").continued(policy)
    said = policy.tokenizer.decode(talk.pieces[-1])
    assert said.index("<tool_response>") < said.index("<|image_pad|>") < said.index("region you asked for")
    assert said.index("region you asked for") < said.index("</tool_response>") < said.index("assistant")


def test_controls_take_the_same_course(after, chart) -> None:
    crop = after(rule(), ASK)
    full = after(rule(control="no-crop"), ASK)
    assert full.images == (chart,)
    assert full.boxes == (Box(0, 0, 640, 480),)
    grey = after(rule(control="blank-crop"), ASK)
    assert grey.images[0].size == crop.images[0].size
    assert np.unique(pixels(grey.images[0])).tolist() == [127]
    moved = [after(rule(control="random-crop", seed=seed), ASK) for seed in (0, 0, 1)]
    assert moved[0] == moved[1]
    assert moved[0].boxes != moved[2].boxes
    assert moved[0].images[0].size == crop.images[0].size
    second = after(rule(control="random-crop"), ASK, ASK)
    assert second.boxes != moved[0].boxes
    assert {turn.text for turn in (crop, full, grey, *moved)} == {crop.text}


def test_a_box_in_the_second_image_of_a_record(frame, chart) -> None:
    other = CropTool().pixels(Box(0, 0, 100, 50), chart)
    record = Record(id="r", question="?", answer="a", images=(chart, other))
    asked = prompt(record, "ground_r1", "ground_r1", "full")
    reading = read('<think> a </think> <box image="1">[0,0,500,1000]</box>', frame, [chart.size, other.size])
    turn = rule().next(asked, [reading])
    assert turn is not None
    assert turn.images[0].size == (50, 50)
    assert turn.boxes == ()


def test_without_an_image_there_is_nothing_to_show(frame) -> None:
    asked = prompt(Record(id="r", question="?", answer="a"), "ground_r1", "ground_r1", "full")
    assert rule().next(asked, [read(ASK, frame, [])]) is None
