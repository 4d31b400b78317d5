"""No reply whatever breaks what stands between a text and the loss: reading, calls, rewards, the geometry of crops."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.geometry.boxes import repair
from sightline.geometry.frames import Frame
from sightline.images import image_ref
from sightline.language.parse import read, read_turns, strict_read
from sightline.language.prompts import prompt
from sightline.language.tool_calls import tool_calls
from sightline.rewards import (
    answer,
    boxes,
    format,
    grit,
    grit_release,
    ground_r1_release,
    guards,
    release,
    router,
    turn_format,
)
from sightline.tools.crop import CropSettings, CropTool
from sightline.tools.rule import CropTurns
from sightline.tools.syntax import BoxSyntax, ToolCallSyntax
from sightline.types import Box, ReadBox, Reading, Record, Region, Score

FRAMES = (Frame("relative_1000", 32, 1024, 65536), Frame("absolute", 28, 784, 78400))
IMAGES = tuple(
    image_ref(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for seed, (width, height) in enumerate([(64, 48), (31, 77)])
)
KINDS = (
    ("red", "text", "vsr"),
    ("7", "number", "CLEVR"),
    ("yes", "yes_no", "visual_toolbox_v2"),
    ("B", "option", "v7w"),
    ("1/2", "math", "data_thinklite_reasoning_acc"),
    ("EXIT 12", "text_ocr", "docvqa"),
    ("a red cup on a table", "free", "flickr30k"),
)
RECORDS = tuple(
    Record(
        id=str(i), question="What is it?", answer=said, answer_kind=kind, images=IMAGES,  # type: ignore[arg-type]
        options=("a cat", "a red cup") if kind == "option" else (),
        regions=(Region(box=Box(4, 4, 30, 40)), Region(box=Box(0, 0, 9, 9), image=1)),
        meta={"dataset": dataset},
    )
    for i, (said, kind, dataset) in enumerate(KINDS)
)  # fmt: skip
RULES = tuple(
    CropTurns(CropTool(CropSettings(policy=policy, **more)), syntax)  # type: ignore[arg-type]
    for policy, more, syntax in (
        ("strict", {"min_side": 4}, BoxSyntax()),
        ("lenient", {"min_side": 20, "max_pixels": 900}, BoxSyntax()),
        ("parity", {}, BoxSyntax(is_parity=True)),
        ("strict", {"min_side": 1, "max_aspect": 1.5}, ToolCallSyntax()),
        ("lenient", {"min_pixels": 3000, "padding": 1.0, "max_crops": 2}, ToolCallSyntax()),
    )
)
MATCHES = ("dual", "recall", "precision", "union", "greedy", "hungarian")


def rewards(reading: Reading, record: Record) -> Iterator[Score]:
    """Every reward term that is a function of reply and record."""
    yield format.think_answer_format(reading)
    yield turn_format.turn_format(reading)
    yield turn_format.turn_format(reading, geometry=True)
    yield boxes.box_validity(reading)
    yield from (boxes.box_iou(reading, record, match) for match in MATCHES)  # type: ignore[arg-type]
    yield answer.accuracy(reading, record)
    yield from router.routed_answers([reading], record)
    yield from ground_r1_release.release_answers([reading], record)
    yield from (grit.tag_pairs(reading), grit.grit_format(reading), grit.answer_bleu(reading, record))
    yield grit.any_box(grit.chain_boxes(reading))
    yield from (grit_release.release_tags(reading.text), grit_release.release_answer_tag(reading.text))
    yield grit_release.release_bleu(reading.text, record)
    strict = strict_read(reading.text)
    gold = release.release_gold(record, FRAMES[0])
    yield from (release.release_format(strict), release.release_dual_iou(strict, gold))
    yield release.release_validity(strict, gold)


def check_place(rule: CropTurns, box: ReadBox | None, image: int) -> None:
    """A place is whole pixels with an area, inside the image unless the release put it there."""
    size = IMAGES[image].size
    place = rule.tool.place(box, size).box
    if place is not None:
        assert all(side == int(side) for side in place)
        assert min(place.width, place.height) >= 1
        assert rule.tool.settings.policy == "parity" or repair(place, size).problems == ()


def check(texts: Sequence[str], finish: str, pick: int) -> None:
    """What holds for every conversation."""
    frame, record, rule = FRAMES[pick % 2], RECORDS[pick % len(RECORDS)], RULES[pick % len(RULES)]
    sizes = [image.size for image in IMAGES]
    whole = read_turns(texts, frame, sizes, finish=finish)  # type: ignore[arg-type]
    for score in rewards(whole, record):
        assert np.isfinite(score.value)
        assert score.masked or -1 <= score.value <= 2
    guards.is_box_spam(whole, record)
    guards.is_empty_answer(whole)
    turns = whole.turns or (whole,)
    for text in texts:
        for call in tool_calls(text):
            assert call.problem or call.name
    for other in RULES:
        for turn in turns:
            for call in other.syntax.asks(turn):
                assert call.box is not None or call.problem
                if call.image < len(IMAGES):
                    check_place(other, call.box, call.image)
    shown = prompt(record, "ground_r1", rule.syntax.template, "full")
    following = rule.next(shown, turns)
    if following is not None:
        assert following.images or following.text
        assert len(following.images) <= rule.tool.settings.max_crops
        assert len(following.boxes) in (0, len(following.images))


CALL = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [10, 20, 300, 400], "label": "cup"}}'
CALL = f"<tool_call>{CALL}</tool_call>"
SEEDS = (
    "<think> the cup </think> <box>[100,200,300,400]</box>",
    "<think> the cup <box>[1,2,30,40]</box> is red </think> <answer> red </answer>",
    "<think> closer </think>" + CALL,
    CALL + "\n" + CALL,
    '<think> two {"bbox_2d": [1, 2, 30, 40]} </think> <rethink> two cups </rethink> <answer> 2 </answer>',
    "<think> at [5, 6.5, 70, 80] </think> <answer> (B) a red cup </answer>",
    "<think></think><box>[900,900,100,100]</box>",
    "<think> a </think> <answer> \\frac{1}{2} </answer>",
)
WORDS = (
    *"{}[]()<>,;:/\\\"'|` \n\t.-−é漢",
    "\ud800", "\x00", "<think>", "</think>", "<box>", "</box>", "<answer>", "</answer>",
    "<tool_call>", "</tool_call>", "<rethink>", "</rethink>", "< Box >", "<box image=2>", "<|box_start|>", "<|im_end|>",
    '"bbox_2d": ', '"image": 1', '"arguments": ', '"name": ', '{"a": ', "```json", "[1,2,3,4]", "[0.1, 0.2, 0.3, 0.4]",
    "1e9", "-5", "9" * 30, "0", "NaN", "Infinity", "yes", "no", "A.", "B", "1/2", "50%", "True", "None", "'", "“",
)  # fmt: skip


def mutated(text: str, source: random.Random) -> str:
    """A few slips of the pen: stretches cut, doubled, moved or taken from elsewhere, words and numbers put in."""
    for _ in range(source.randrange(6)):
        start, end = sorted(source.randrange(len(text) + 1) for _ in range(2))
        other = source.choice(SEEDS)
        text = source.choice(
            (
                text[:start] + text[end:],
                text[:end] + text[start:],
                text[end:] + text[:start] + text[start:end],
                text[:start] + source.choice(WORDS) + text[start:],
                text[:start] + source.choice(WORDS) * source.randrange(1, 9) + text[end:],
                text[:start] + str(source.randrange(-2000, 20000)) + text[start:],
                text[:start] + other[source.randrange(len(other)) :],
                text[:start] + text[start:end].swapcase() + text[end:],
            )
        )
    return text


pieces = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(SEEDS), st.integers(-2000, 2000).map(str), st.text(max_size=5)
)
replies = st.one_of(
    st.lists(pieces, max_size=12).map("".join),
    st.builds(lambda text, seed: mutated(text, random.Random(seed)), st.sampled_from(SEEDS), st.integers(0, 2**32)),
)


@settings(max_examples=2000)
@given(st.lists(replies, min_size=1, max_size=3), st.sampled_from(["stop", "length"]), st.integers(0, 29))
def test_no_reply_breaks_anything(texts: list[str], finish: str, pick: int) -> None:
    check(texts, finish, pick)


@pytest.mark.fuzz
def test_a_hundred_thousand_mutated_replies() -> None:
    source = random.Random(20250526)
    for number in range(100_000):
        texts = [mutated(source.choice(SEEDS), source) for _ in range(1 if number % 4 else 2)]
        check(texts, source.choice(["stop", "length"]), number % 30)


def test_the_mutator_reaches_every_outcome() -> None:
    """Mutated replies are worth checking: crops, errors, answers and calls with problems all occur."""
    source, seen = random.Random(1), set()
    for number in range(1500):
        text, rule = mutated(source.choice(SEEDS), source), RULES[number % len(RULES)]
        reading = read(text, FRAMES[0], [image.size for image in IMAGES])
        following = rule.next(prompt(RECORDS[0], "ground_r1", "ground_r1", "full"), [reading])
        seen.add("end" if following is None else "crop" if following.images else "error")
        seen.update(call.problem for call in rule.syntax.asks(reading) if call.problem)
        seen.update(rule.tool.place(call.box, IMAGES[0].size).problem for call in rule.syntax.asks(reading) if call.box)
    assert {"end", "crop", "error", "broken JSON", "unknown tool", "no four numbers in the box"} <= seen
    assert {"reversed", "outside", "smaller than 4 px", "too elongated"} <= seen
