"""Ground-R1: presets, streams, scores of conversations, both kinds of credit, and two steps of training each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sightline.answers.judge import RulesJudge
from sightline.config import load_recipe
from sightline.credit.group import credit_for
from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.language.parse import read, read_turns
from sightline.methods import load_method
from sightline.methods.ground_r1 import GroundR1, GroundR1Config
from sightline.tools.crop import CropTool
from sightline.tools.settings import CropSettings
from sightline.train.loop import reinforce
from sightline.train.run import gather, open_run, sample
from sightline.train.scoring import credit, score
from sightline.types import Group, Record, Score, Size, Span, Turn

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ground_r1.json").read_text())
GOLD = (28, 28, 84, 84)
ASK = "<think>the square</think><box>[28,28,84,84]</box>"
RIGHT, WRONG = "<think>x</think><answer>green</answer>", "<think>x</think><answer>red</answer>"


def ground_r1(**keys: Any) -> GroundR1:
    method = load_method({"name": "ground_r1", **keys})
    assert isinstance(method, GroundR1)
    return method


def conversations(world: Any, record: Record, *replies: Sequence[str]) -> Group:
    """A Group of one stream; each entry is the turns of the policy in one Rollout."""
    group = world.group(record, grounded=["\n".join(texts) for texts in replies])
    sizes = [image.size for image in record.images]
    rollouts = tuple(
        replace(r, turns=tuple(Turn(role="assistant", span=Span(0, 0), text=text) for text in texts))
        for r, texts in zip(group.rollouts, replies, strict=True)
    )
    return replace(
        group, rollouts=rollouts, readings=tuple(read_turns(list(texts), world.frame, sizes) for texts in replies)
    )


def box_of_share(share: float) -> str:
    """A turn that asks for a box of this share of the 280 px image."""
    return f"<think>a</think><box>[0,0,{280 * share:.4f},280]</box>"


def terms(group: Group, name: str) -> list[float]:
    return [s.terms[name].value for s in group.scores]


def test_presets_hold_the_values_of_the_paper_and_of_the_release() -> None:
    v1, v3 = GroundR1Config.model_validate({"preset": "v1"}), GroundR1Config()
    assert (v1.tree.n_ground, v1.tree.n_answer, v3.tree.n_ground, v3.tree.n_answer) == (2, 4, 4, 2)
    assert (v1.advantage, v3.advantage, v1.credit.eps, v1.credit.ddof) == ("grpo", "srpo", 1e-4, 1)
    assert (v1.weights.format, v3.weights.format, v1.turns.repeat_template) == (2, 1, True)
    assert v1.objective == v3.objective
    assert (v1.objective.kl, v1.objective.normalisation, v1.objective.dual_clip) == (0.04, "sequence", None)
    assert (v3.bins.edges, v3.bins.bins, v3.bins.eps, v3.bins.ddof) == ("equal", 3, 1e-4, 0)
    assert (v1.turns.max, v1.turns.max_tokens, v1.crop.min_side, v1.crop.padding) == (5, 512, 28, 0)
    for config in (v1, v3):
        assert (config.answers, config.geometry, config.crop.policy) == ("kind", False, "lenient")
        assert GroundR1Config.model_validate(config.model_dump(mode="json")) == config
    assert (
        GroundR1Config.model_validate({"preset": "v1", "objective": {"kl": 0.0}}).objective.normalisation == "sequence"
    )
    with pytest.raises(ValidationError, match=r"turns\.max 1"):
        GroundR1Config.model_validate({"turns": {"max": 1}})


def test_the_stream_is_a_tree_of_conversations(world) -> None:
    (stream,) = ground_r1(turns={"max_tokens": 40}).streams(world.record(GOLD))
    assert (stream.name, stream.template, stream.n, stream.branches) == ("grounded", "ground_r1", 8, (4, 2))
    assert stream.sampling == {"max_new_tokens": 40}
    assert stream.turns is not None
    prompt = world.group(world.record(GOLD), grounded=["x"]).rollouts[0].prompt
    reading = read(ASK, world.frame, [Size(280, 280)])
    following = stream.turns.next(prompt, [reading])
    assert following is not None
    assert following.boxes == (GOLD,)
    assert stream.turns.next(prompt, [reading, read(RIGHT, world.frame, [Size(280, 280)])]) is None
    assert ground_r1(tree={"n_answer": 1}).streams(world.record())[0].branches == (4,)


def test_the_release_preset_repeats_the_template(world) -> None:
    (stream,) = ground_r1(preset="v1").streams(world.record(GOLD))
    assert stream.branches == (2, 4)
    group = world.group(world.record(GOLD), g=["x"])
    assert stream.turns is not None
    following = stream.turns.next(group.rollouts[0].prompt, [read(ASK, world.frame, [Size(280, 280)])])
    assert following is not None
    assert following.text == "?"


def test_rewards_of_conversations(world) -> None:
    group = conversations(world, world.record(GOLD), (ASK, RIGHT), (ASK, WRONG), (RIGHT,), (ASK, "no", RIGHT), (ASK,))
    v3 = score(ground_r1(), [group], world.context())[0]
    assert terms(v3, "format") == pytest.approx([1, 1, 1, 2 / 3, 0])
    assert terms(v3, "accuracy") == [1, 0, 1, 1, 0]
    assert [s.total for s in v3.scores] == pytest.approx([2, 1, 2, 5 / 3, 0])
    v1 = score(ground_r1(preset="v1"), [group], world.context())[0]
    assert [s.total for s in v1.scores] == pytest.approx([3, 2, 3, 7 / 3, 0])


def test_gold_boxes_are_logged_and_never_rewarded_unless_asked(world) -> None:
    group = conversations(world, world.record(GOLD), (ASK, RIGHT), (RIGHT,))
    found = score(ground_r1(), [group], world.context())[0]
    assert (terms(found, "overlap"), terms(found, "coverage")) == ([1, 0], [1, 0])
    assert found.scores[0].total == found.scores[1].total
    asked = score(ground_r1(weights={"coverage": 0.5}), [group], world.context())[0]
    assert asked.scores[0].total - asked.scores[1].total == 0.5
    without = conversations(world, world.record(), (ASK, RIGHT))
    assert "overlap" not in score(ground_r1(), [without], world.context())[0].scores[0].terms


def test_geometry_is_part_of_the_form_if_asked(world) -> None:
    turned = ASK.replace("[28,28,84,84]", "[84,84,28,28]")
    group = conversations(world, world.record(GOLD), (turned, RIGHT))
    assert terms(score(ground_r1(), [group], world.context())[0], "format") == [1]
    assert terms(score(ground_r1(geometry=True), [group], world.context())[0], "format") == [0.5]


@pytest.mark.parametrize("case", GOLDEN["release"], ids=lambda c: c["case"])
def test_released_answers(world, case) -> None:
    record = replace(world.record(answer=case["truth"]), meta={"dataset": case["dataset"]})
    group = conversations(world, record, (ASK, case["text"]))
    found = score(ground_r1(preset="v1", answers="release"), [group], world.context())[0]
    assert terms(found, "accuracy") == pytest.approx([case["value"]], abs=1e-4)


def test_an_unknown_data_set_is_told_before_sampling(world) -> None:
    with pytest.raises(UserError, match="no rule for the data set"):
        ground_r1(answers="release").streams(world.record())


def credited(world, method: GroundR1) -> Group:
    """The golden group: four first turns, two answers each. Its reward is the intra reward of the vectors."""
    golden = GOLDEN["srpo"]
    replies = [(box_of_share(a), RIGHT) for a in golden["areas"] for _ in range(2)]
    group = conversations(world, world.record(), *replies)
    scored = score(method, [group], world.context())[0]
    rows = zip(scored.scores, np.ravel(golden["intra"]), strict=True)
    given = tuple(replace(s, terms={"r": Score(float(value))}, weights={}) for s, value in rows)
    return credit(method, [replace(scored, scores=given)])[0]


def test_credit_of_v3_is_srpo(world) -> None:
    group = credited(world, ground_r1(preset="v3"))
    expected = np.ravel(GOLDEN["srpo"]["advantages"])
    np.testing.assert_allclose([c.parts["advantage"] for c in group.credits], expected, atol=1.01e-3)
    assert all({"bin", "intra", "inter", "box_area"} <= set(c.parts) for c in group.credits)


def test_credit_of_v1_is_grpo(world) -> None:
    group = credited(world, ground_r1(preset="v1"))
    plain = credit_for(group, eps=1e-4, ddof=1)
    assert [c.parts["advantage"] for c in group.credits] == [c.parts["advantage"] for c in plain]
    assert [c.parts["bin"] for c in group.credits] == [1, 1, 1, 1, 2, 2, 3, 3], "shown, though they change nothing"
    golden = np.ravel(GOLDEN["srpo"]["grpo"]) * np.sqrt(7 / 8)  # the vectors have the population deviation
    np.testing.assert_allclose([c.parts["advantage"] for c in group.credits], golden, atol=1e-3)


@pytest.mark.parametrize("case", GOLDEN["crop"]["cases"], ids=str)
def test_crops_lie_inside_the_image_where_those_of_the_release_did_not(case) -> None:
    (width, height), file = GOLDEN["crop"]["input"], Size(*GOLDEN["crop"]["file"])
    frame = Frame("absolute", 28, 3136, width * height)
    assert frame.resized(file) == (width, height)
    (box,) = read(f"<think>a</think><box>{case['written']}</box>", frame, [file]).boxes
    ours = CropTool(ground_r1().config.crop).place(box, file).box
    theirs = CropTool(CropSettings(policy="parity", padding=0)).place(box, file).box
    assert ours is not None
    assert theirs is not None
    assert 0 <= ours.x1 < ours.x2 <= file.width
    assert 0 <= ours.y1 < ours.y2 <= file.height
    assert min(ours.width, ours.height) >= 28
    if "release" in case:
        assert list(theirs) == case["release"]
    else:
        assert (theirs.width, theirs.height) == (case["side"], case["side"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([ASK, RIGHT, WRONG, "", box_of_share(2.0), "<box>[9,9,1,1]</box>"])
                      | st.text(max_size=40), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from(["v1", "v3"]),
)  # fmt: skip
def test_any_conversation_is_scored_and_credited(world, replies, preset) -> None:
    method = ground_r1(preset=preset, bins={"edges": [0.1, 0.3]})
    group = conversations(world, world.record(GOLD), *replies)
    found = credit(method, score(method, [group], world.context(), workers=1))[0]
    assert all(0 <= s.total <= 3 for s in found.scores)
    assert all(np.isfinite(c.advantage).all() for c in found.credits)


WORDS = [
    *("--data.train", "scenes:zoom", "--data.records_per_step", "3", "--train.steps", "2", "--evaluation.n", "1"),
    *("--optim.warmup_steps", "0", "--optim.lr", "3e-4"),
    *("--sampling.max_new_tokens", "40", "--method.turns.max_tokens", "40", "--method.turns.max", "3"),
]


@pytest.mark.parametrize("preset", ["v1", "v3"])
def test_two_steps_of_training(tmp_path: Path, preset: str) -> None:
    """On the embedded policy, with the presets' own tree, KL and bins."""
    recipe = load_recipe("grpo", ["--method", "ground_r1", "--method.preset", preset, *WORDS])
    with open_run(recipe, tmp_path) as run:
        for _ in range(2):
            groups, stats = reinforce(run)
            run.step += 1
            assert all(len(group) == 8 for group in groups)
            assert any(turn.images for group in groups for r in group.rollouts for turn in r.turns)
            assert stats.metrics["reward/grounded/format"] > 0.4
            assert np.isfinite(stats.metrics["loss/total"])
        assert stats.metrics["policy/kl"] > 0
        assert "credit/grounded/bin_1_share" in stats.metrics
        assert ("credit/grounded/inter" in stats.metrics) == (preset == "v3")


def test_the_update_equals_that_of_separate_sequences(tmp_path: Path) -> None:
    """Shared first turns carry the summed credit of their continuations, of both signs."""
    recipe = load_recipe("grpo", ["--method", "ground_r1", *WORDS, "--optim.clip_norm", "1e6"])
    norms, moved = [], []
    groups: list[Group] = []
    for sharing in ("tree", "padded"):
        changed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"attention": sharing})})
        with open_run(changed, tmp_path / sharing) as run:
            if not groups:
                records = run.data.next()
                read_groups = gather(records, sample(run, records), run.policy.frame)
                groups = credit(run.method, score(run.method, read_groups, run.context()))
            start = torch.cat([p.detach().flatten().clone() for p in run.policy.model.parameters()])
            norms.append(run.learner.step(groups, run.method, 0).metrics["update/grad_norm"])
            moved.append(torch.cat([p.detach().flatten() for p in run.policy.model.parameters()]) - start)
    shared = [
        {np.sign(c.parts["advantage"]) for c, r in zip(g.credits, g.rollouts, strict=True) if r.branch[0] == i}
        for g in groups
        for i in range(4)
    ]
    assert {-1.0, 1.0} in shared, "no first turn had continuations of both signs, so nothing was tested"
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0) > 0.99


def test_the_judge_is_asked_by_kind(world) -> None:
    world.judge = RulesJudge()
    record = replace(world.record(answer="march 4"), answer_kind="text_ocr")
    group = conversations(world, record, (ASK, "<think>x</think><answer>the date is march 4</answer>"))
    assert terms(score(ground_r1(), [group], world.context())[0], "accuracy") == pytest.approx([0.4])
