from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pytest

from conftest import make_record
from sightline.config import sections
from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.images import image_ref
from sightline.policy.load import Policy
from sightline.sampling.base import SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.sampling.modes import FALLBACK, MODES, ModeConfig, answer, plan_crops
from sightline.types import Box, ReadBox, Record, Rollout, Size, Span

SETTINGS = SamplingSettings(temperature=0.0, max_new_tokens=32)
TIGHT = ModeConfig(padding=0.0, min_side=1)


@dataclass
class ScriptedSampler:
    """Replies by stream, and remembers what it was shown."""

    replies: dict
    shown: list = field(default_factory=list)

    def sample(self, requests, settings, *, seed, step):  # noqa: ARG002
        self.shown += [request.prompt for request in requests]
        results = []
        for request in requests:
            prompt = request.prompt
            reply = self.replies[prompt.stream]
            text = reply(prompt) if callable(reply) else reply
            ids = np.arange(len(text.split()))
            rollout = Rollout(
                prompt=prompt, branch=(0,), prompt_ids=np.zeros(1, int), ids=ids, sampled=np.ones(len(ids), bool),
                logprobs=np.zeros(len(ids)), text=text, finish="stop",
            )  # fmt: skip
            results.append([rollout] * request.n)
        return results


@dataclass
class Speaker:
    frame: Frame
    style: str = "full"


SPEAKER = Speaker(Frame(convention="relative_1000", factor=16, min_pixels=16 * 16, max_pixels=96 * 96))


def record(size=(200, 100), name="r") -> Record:
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width) % 256
    pixels[..., 1] = np.arange(height)[:, None] % 256
    return Record(id=name, question="What is it?", answer="a cat", images=(image_ref(pixels),))


def reply(*boxes: tuple[int, int, int, int], said: str = "a cat") -> str:
    written = " ".join(f"<box>[{','.join(map(str, box))}]</box>" for box in boxes)
    return f"<think> here {written} </think> <answer> {said} </answer>"


def sampler(*boxes: tuple[int, int, int, int]) -> ScriptedSampler:
    return ScriptedSampler({"textual": reply(said="t"), "grounded": reply(*boxes, said="g"), "crops": reply(said="c")})


def ask(speaks, mode, config=TIGHT, records=None, **more):
    return answer(speaks, records or [record()], mode, config, speaker=SPEAKER, settings=SETTINGS, **more)


@pytest.mark.parametrize(("mode", "said", "passes"), [("textual", "t", 1), ("grounded", "g", 1), ("crops", "c", 2)])
def test_each_mode_answers_from_its_own_pass(mode, said, passes):
    (result,) = ask(sampler((0, 0, 500, 500)), mode)
    assert result.reading.answer == said
    assert len(result.rollouts) == len(result.readings) == passes
    assert result.note == ""


def test_a_crop_is_cut_from_the_original_pixels():
    speaks = sampler((100, 200, 300, 800))
    (result,) = ask(speaks, "crops")
    (crop,) = result.crops
    assert crop.box == Box(20, 20, 60, 80)
    assert crop.pixels.size == Size(40, 60)
    from sightline.images import open_image

    cut = np.asarray(open_image(crop.pixels))
    assert cut[0, 0].tolist() == [20, 20, 0]
    assert cut[-1, -1].tolist() == [59, 79, 0]
    assert speaks.shown[-1].images == (result.record.images[0], crop.pixels)
    assert result.boxes[0].box == Box(20, 20, 60, 80)


def test_the_union_is_the_least_rectangle_that_covers_all_crops():
    (result,) = ask(sampler((0, 0, 100, 100), (500, 500, 600, 900)), "crops+union")
    assert [crop.is_union for crop in result.crops] == [False, False, True]
    assert result.crops[-1].box == Box(0, 0, 120, 90)
    (without,) = ask(sampler((0, 0, 100, 100), (500, 500, 600, 900)), "crops")
    assert len(without.crops) == 2


def test_the_union_of_one_box_is_not_shown_twice():
    (result,) = ask(sampler((0, 0, 100, 100)), "crops+union")
    assert len(result.crops) == 1


def test_no_usable_box_falls_back_to_the_textual_prompt():
    for boxes in ((), ((300, 300, 300, 300),)):
        speaks = sampler(*boxes)
        (result,) = ask(speaks, "crops")
        assert result.note == FALLBACK
        assert result.reading.answer == "t"
        assert speaks.shown[-1].stream == "textual"
        assert result.crops == ()


def test_a_record_without_an_image_is_answered_too():
    bare = Record(id="no image", question="2 + 2?", answer="4")
    for mode in ("textual", "grounded", "crops", "crops+union"):
        (result,) = ask(sampler((0, 0, 10, 10)), mode, records=[bare])
        assert result.crops == ()


def test_duplicates_and_the_box_limit():
    boxes = [(0, 0, 200, 200), (1, 1, 200, 200), *[(i, 500, i + 50, 600) for i in range(0, 900, 100)]]
    (result,) = ask(sampler(*boxes), "crops", ModeConfig(padding=0.0, min_side=1, max_crops=3))
    assert [crop.box for crop in result.crops] == [Box(0, 0, 40, 20), Box(0, 50, 10, 60), Box(20, 50, 30, 60)]
    assert result.note == "7 boxes beyond the first 3 left out"


def test_padding_and_least_side_stay_inside_the_image():
    found = ReadBox(box=Box(0, 0, 10, 10), written=(0, 0, 10, 10), span=Span(0, 1))
    config = ModeConfig(padding=0.5, min_side=40)
    ((_, box, _),) = plan_crops([found], [Size(200, 100)], config).pieces
    assert box.x1 >= 0
    assert box.y1 >= 0
    assert box.width >= 40
    assert box.height >= 40


def test_boxes_of_images_that_do_not_exist_are_ignored():
    found = ReadBox(box=Box(0, 0, 10, 10), written=(0, 0, 10, 10), span=Span(0, 1), image=3)
    assert plan_crops([found], [Size(200, 100)], TIGHT).pieces == ()


def test_image_order():
    speaks = sampler((0, 0, 100, 100))
    (result,) = ask(speaks, "crops", ModeConfig(padding=0.0, min_side=1, order="crops-first"))
    assert speaks.shown[-1].images == (result.crops[0].pixels, result.record.images[0])


def test_controls_replace_the_crop():
    from sightline.images import open_image

    speaks = sampler((100, 200, 300, 800))
    (none,) = ask(speaks, "crops", TIGHT.model_copy(update={"control": "no-crop"}))
    assert none.crops == ()
    assert speaks.shown[-1].stream == "crops"
    assert len(speaks.shown[-1].images) == 1
    (blank,) = ask(speaks, "crops", TIGHT.model_copy(update={"control": "blank-crop"}))
    assert blank.crops[0].pixels.size == Size(40, 60)
    assert np.unique(np.asarray(open_image(blank.crops[0].pixels))).tolist() == [127]
    random = TIGHT.model_copy(update={"control": "random-crop"})
    (first,), (again,), (other,) = (ask(speaks, "crops", random, seed=seed) for seed in (0, 0, 1))
    assert first.crops[0].box == again.crops[0].box != other.crops[0].box
    assert (first.crops[0].box.width, first.crops[0].box.height) == (40, 60)
    assert "random-crop" in first.note


def test_grounded_replies_are_reused():
    speaks = sampler((0, 0, 100, 100))
    records = [record(name="a"), record(name="b")]
    grounded = ask(speaks, "grounded", records=records)
    before = len(speaks.shown)
    fresh, reused = ask(speaks, "crops", records=records), ask(speaks, "crops", records=records, known=grounded)
    assert len(speaks.shown) - before == 4 + 2
    assert [r.reading for r in fresh] == [r.reading for r in reused]
    assert [r.crops[0].box for r in fresh] == [r.crops[0].box for r in reused]


def test_answers_are_reused_where_the_same_crops_come_out():
    one, two = reply((0, 0, 100, 100), said="g"), reply((0, 0, 100, 100), (500, 500, 600, 600), said="g")
    speaks = ScriptedSampler(
        {
            "grounded": lambda prompt: {"one": one, "two": two, "none": reply(said="g")}[prompt.record.id],
            "crops": lambda prompt: reply(said=f"c{len(prompt.images)}"),
            "textual": reply(said="t"),
        }
    )
    records = [record(name=name) for name in ("none", "one", "two")]
    crops = ask(speaks, "crops", records=records)
    before = len(speaks.shown)
    union = ask(speaks, "crops+union", records=records, known=crops)
    assert [prompt.record.id for prompt in speaks.shown[before:]] == ["two"]
    assert [r.reading.answer for r in union] == ["t", "c2", "c4"]
    assert [r.reading for r in union] == [r.reading for r in ask(speaks, "crops+union", records=records)]
    assert {r.mode for r in union} == {"crops+union"}


def test_recipes_know_every_mode():
    assert get_args(sections.Mode) == MODES


def test_an_unknown_mode_names_the_known_ones():
    with pytest.raises(UserError, match=r"crops\+union"):
        ask(sampler(), "zoom")


def test_a_forced_prefix_begins_the_reply_and_is_not_read(policy: Policy) -> None:
    record = make_record()
    settings = SamplingSettings(temperature=0.0, max_new_tokens=6)
    config = ModeConfig(forced_prefix="<Focus>\n")
    (found,) = answer(LocalSampler(policy), [record], "textual", config, speaker=policy, settings=settings)
    assert found.rollouts[0].text == "<Focus>\n" + found.reading.text
    assert policy.decode(found.rollouts[0].prompt_ids).endswith("assistant\n<Focus>\n")
