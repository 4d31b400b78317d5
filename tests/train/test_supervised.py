"""The supervised stage: demonstrations are token-exact, the loss is the mean, and a recipe can begin with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_record, picture
from sightline.config import load_recipe
from sightline.errors import UserError
from sightline.language.prompts import prompt
from sightline.policy.load import Policy
from sightline.train.run import open_run
from sightline.train.supervised import (
    demonstration,
    imitate,
    replies,
    supervised_batches,
    supervised_loss,
)
from sightline.types import NextTurn, Prompt, Reading
from stock import reference_logprobs


def test_a_demonstration_of_two_turns_is_what_the_template_says(policy: Policy) -> None:
    record = make_record()
    crop = make_record("crop", ((40, 40),), 3).images[0]
    shown = prompt(record, "ground_r1", "ground_r1", "compact")
    rollout = demonstration(policy, shown, ["<think> a</think>", NextTurn(" look", (crop,)), " b"])
    text = policy.tokenizer.decode(rollout.ids)
    pads = "<|image_pad|>" * policy.frame.tokens(crop.size)
    assert text == (
        f"<think> a</think><|im_end|>\n<|im_start|>user\n<|vision_start|>{pads}<|vision_end|> look<|im_end|>\n"
        "<|im_start|>assistant\n b<|im_end|>"
    )
    assert [t.role for t in rollout.turns] == ["assistant", "user", "assistant"]
    assert rollout.turns[1].images == (1,)
    for turn in rollout.turns:
        assert rollout.sampled[slice(*turn.span)].all() == (turn.role == "assistant")


class Looks:
    """A rule of two turns that shows a picture where the first reply names a box."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:  # noqa: ARG002
        self.heard = [reading.text for reading in readings]
        box = readings[-1].boxes[0].box if readings[-1].boxes else None
        return None if box is None or len(readings) > 1 else NextTurn("", (picture(31, 50),), (box,))


def test_a_rule_speaks_between_the_replies(policy: Policy) -> None:
    rule, record = Looks(), make_record()
    shown = prompt(record, "ground_r1", "ground_r1", "compact", forced_prefix="<think>")
    said = [" here</think><box>[10,10,40,40]</box>", "<answer> red</answer>"]
    rollout = demonstration(policy, shown, said, rule=rule)
    explicit = demonstration(policy, shown, [said[0], NextTurn("", (picture(31, 50),)), said[1]])
    np.testing.assert_array_equal(rollout.ids, explicit.ids)
    np.testing.assert_array_equal(rollout.sampled, explicit.sampled)
    assert rule.heard == ["<think>" + said[0]]
    assert rollout.text == f"<think>{said[0]}\n{said[1]}"
    assert rollout.turns[1].images == (1,)
    assert len(rollout.turns[1].boxes) == 1
    assert rollout.images[0].size == (31, 50)


@pytest.mark.parametrize("said", [(" no box", " red"), ("<box>[1,1,9,9]</box>", "<box>[2,2,9,9]</box>", " red")])
def test_a_rule_that_stops_early_is_an_error_of_the_data(policy: Policy, said: tuple[str, ...]) -> None:
    shown = prompt(make_record("r7"), "ground_r1", "ground_r1", "compact")
    with pytest.raises(UserError, match=rf"after reply {len(said) - 1} of {len(said)}") as error:
        demonstration(policy, shown, said, rule=Looks())
    assert "r7" in str(error.value.where)


def test_loss_is_the_mean_over_reply_tokens(policy: Policy) -> None:
    record = make_record()
    shown = prompt(record, "textual", "textual", "compact")
    group = [demonstration(policy, shown, [text], branch=i) for i, text in enumerate((" red", " green is it"))]
    total = sum(len(r.ids) for r in group)
    with torch.no_grad():
        want = -float(sum(lp.sum() for lp in reference_logprobs(policy, group))) / total
        got = sum(float(supervised_loss(policy, b, total)) for b in supervised_batches(policy, [group], 4096))
    assert got == pytest.approx(want, rel=1e-5)


def test_replies_come_from_the_record(policy: Policy) -> None:
    import dataclasses

    own = dataclasses.replace(make_record(), meta={"replies": {"textual": "<think> x</think><answer> y</answer>"}})
    assert replies(own, "textual", policy.frame) == ("<think> x</think><answer> y</answer>",)
    with pytest.raises(UserError, match=r"meta\.replies"):
        replies(own, "grounded", policy.frame)
    for odd in ("x", ["x"], 5, {"textual": 5}, {"textual": ["x", 5]}, {"textual": {"x": "y"}}):
        with pytest.raises(UserError, match=r"meta\.replies: the replies for .* are no texts"):
            replies(dataclasses.replace(own, meta={"replies": odd}), "textual", policy.frame)


@pytest.mark.slow
def test_a_recipe_begins_with_a_cold_start(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    words = ["--method.cold_start", "12", "--train.steps", "1", "--optim.lr", "3e-3", "--data.records_per_step", "4"]
    words += ["--data.limit", "4", "--model.name", str(checkpoints["qwen3_vl"])]
    recipe = load_recipe("treevgr", [*words, "--model.dtype", "float32", "--model.device", "cpu", *PLAIN])
    losses = []
    with open_run(recipe, tmp_path) as run:
        assert run.steps == 13
        while run.stage.kind == "supervised":
            _, stats = imitate(run)
            losses.append(stats.metrics["supervised/loss"])
            run.step += 1
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert np.isfinite(losses).all()


PLAIN = [
    *("--data.train", "scenes:easy", "--data.reader", "ours", "--data.strata", "null", "--optim.inner_steps", "1"),
    *("--model.min_pixels", "null", "--model.max_pixels", "null", "--optim.warmup_steps", "0"),
    *("--model.checkpointing", "false"),
]
