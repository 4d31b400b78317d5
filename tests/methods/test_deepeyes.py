"""DeepEyes: the conditional bonus in the total, the tool as a rule of turns, and a cold start into reinforcement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline.config import load_recipe
from sightline.language.parse import read, read_turns
from sightline.methods import load_method
from sightline.methods.deepeyes import DeepEyes, DeepEyesConfig
from sightline.train.loop import reinforce
from sightline.train.run import open_run
from sightline.train.scoring import credit, score
from sightline.train.supervised import imitate
from sightline.types import Group, Record, Size, Span, Turn

CALL = '<think>a</think><tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [28,28,84,84]}}</tool_call>'
RIGHT, WRONG = "<think>x</think><answer>green</answer>", "<think>x</think><answer>red</answer>"


def deepeyes(**keys) -> DeepEyes:
    method = load_method({"name": "deepeyes", **keys})
    assert isinstance(method, DeepEyes)
    return method


def conversations(world, record: Record, *replies: tuple[str, ...]) -> Group:
    """Conversations in which every turn but the last was followed by a crop."""
    group = world.group(record, grounded=["\n".join(texts) for texts in replies])
    rollouts = []
    for rollout, texts in zip(group.rollouts, replies, strict=True):
        turns = [Turn(role="assistant", span=Span(0, 0), text=texts[0])]
        for number, text in enumerate(texts[1:], 1):
            turns.append(Turn(role="user", span=Span(0, 0), images=(number,)))
            turns.append(Turn(role="assistant", span=Span(0, 0), text=text))
        rollouts.append(replace(rollout, turns=tuple(turns)))
    sizes = [image.size for image in record.images]
    readings = tuple(read_turns(list(texts), world.frame, sizes) for texts in replies)
    return replace(group, rollouts=tuple(rollouts), readings=readings)


def totals(world, record: Record, *replies: tuple[str, ...], **keys) -> list[float]:
    found = score(deepeyes(**keys), [conversations(world, record, *replies)], world.context())[0]
    return [round(s.total, 6) for s in found.scores]


def test_the_bonus_is_conditional(world) -> None:
    replies = ((CALL, RIGHT), (RIGHT,), (CALL, WRONG), (WRONG,), (CALL,), ("<think>x<answer>green</answer>",))
    assert totals(world, world.record(), *replies) == [2.0, 0.8, 0.0, 0.0, 0.0, 0.6]


def test_weights_are_fields(world) -> None:
    assert totals(world, world.record(), (CALL, RIGHT), weights={"tool": 0.0}) == [0.8]
    assert totals(world, world.record(), (CALL, RIGHT), weights={"accuracy": 1.0, "tool": 0.5}) == [1.5]


def test_mathematics_has_no_bonus(world) -> None:
    record = replace(world.record(answer="4"), answer_kind="math")
    assert totals(world, record, (CALL, "<think>x</think><answer>4</answer>"), ("<answer>4",)) == [1.2, 0.8]


def test_a_call_is_no_answer(world) -> None:
    record = replace(world.record(answer="28"), answer_kind="number")
    assert totals(world, record, (CALL, CALL)) == [0.0]


def test_defaults_are_those_of_the_paper() -> None:
    config = DeepEyesConfig()
    assert (config.weights.accuracy, config.weights.format, config.weights.tool) == (0.8, 0.2, 1.2)
    assert (config.math.accuracy, config.math.format, config.math.tool) == (1.2, 0.4, 0)
    assert (config.n, config.turns.max, config.objective.kl, config.cold_start) == (16, 5, 0, 0)
    assert (config.crop.min_side, config.crop.max_aspect, config.crop.policy) == (31, 100, "strict")
    assert DeepEyesConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_call_is_answered_with_a_crop_and_a_bad_one_with_words(world) -> None:
    (stream,) = deepeyes().streams(world.record())
    assert (stream.template, stream.n, stream.branches) == ("deepeyes", 16, (16,))
    prompt = world.group(world.record(), grounded=["x"]).rollouts[0].prompt
    assert stream.turns is not None
    shown = stream.turns.next(prompt, [read(CALL, world.frame, [Size(280, 280)])])
    assert shown is not None
    assert shown.boxes == ((28, 28, 84, 84),)
    small = stream.turns.next(prompt, [read(CALL.replace("84,84", "50,50"), world.frame, [Size(280, 280)])])
    assert small is not None
    assert not small.images
    assert stream.turns.next(prompt, [read(RIGHT, world.frame, [Size(280, 280)])]) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([CALL, RIGHT, WRONG, "<tool_call>{}"]) | st.text(max_size=40), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_any_conversation_is_scored_and_credited(world, replies) -> None:
    group = conversations(world, world.record(), *map(tuple, replies))
    found = credit(deepeyes(), score(deepeyes(), [group], world.context(), workers=1))[0]
    assert all(-0.2 <= s.total <= 2 for s in found.scores)
    assert all(np.isfinite(c.advantage).all() for c in found.credits)


def test_a_cold_start_teaches_calls_before_reinforcement(tmp_path: Path) -> None:
    words = ["--data.records_per_step", "4", "--train.steps", "2", "--evaluation.n", "1", "--method.n", "4"]
    recipe = load_recipe("deepeyes", [*words, "--method.cold_start", "3", "--optim.lr", "1e-3"])
    losses = []
    with open_run(recipe, tmp_path) as run:
        while run.stage.kind == "supervised":
            _, stats = imitate(run)
            losses.append(stats.metrics["supervised/loss"])
            run.step += 1
        assert run.step == 3
        assert losses[-1] < losses[0]
        groups, stats = reinforce(run)
        assert all(len(group) == 4 for group in groups)
        assert {"reward/grounded/tool", "reward/grounded/accuracy", "reward/grounded/format"} <= set(stats.metrics)
