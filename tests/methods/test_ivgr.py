"""iVGR: the golden table of the released reward code at group level, and the same cases with the paper's rules."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sightline.answers.offline import OfflineJudge
from sightline.methods import load_method
from sightline.methods.ivgr import IVGR, IVGRConfig
from sightline.train.scoring import archive_for, credit, score
from sightline.types import Group

GOLD = (1, 2, 30, 40)
BOX = "<box>[1,2,30,40]</box>"
RIGHT, WRONG = "<answer>green</answer>", "<answer>red</answer>"


def think(text: str, answer: str = RIGHT) -> str:
    return f"<think>{text}</think>{answer}"


def ivgr(**keys) -> IVGR:
    method = load_method({"name": "ivgr", **keys})
    assert isinstance(method, IVGR)
    return method


def totals(group: Group) -> dict[str, list[float]]:
    return {name: [round(s.total, 6) for s in part.scores] for name, part in group.by_stream()}


def terms(group: Group, stream: str, name: str) -> list[float]:
    return [s.terms[name].value for s in group[stream].scores]


@pytest.fixture
def release(world):
    """Scores one record's replies with the release preset; visits share an archive."""
    method = ivgr(preset="release")
    world.archive = archive_for(method)

    def visit(*gold, step: int = 0, **texts) -> Group:
        record = world.record(*(gold or (GOLD,) if "general" not in texts else ()))
        return score(method, [world.group(record, **texts)], world.context(step), workers=1)[0]

    return visit


class TestGoldenTable:
    """One test per row; the judge matches exactly, consistency is the mean of 1.0, 0.7, 0.3, 0.7."""

    def test_perfect_box_and_right(self, release) -> None:
        found = release(
            grounded=[think(f"The square {BOX}.")], textual=[think("It is left."), think("It is left.", WRONG)]
        )
        assert totals(found) == {"grounded": [4.0], "textual": [2.675, 1.675]}
        assert terms(found, "textual", "consistency") == [0.675, 0.675]

    def test_right_without_box_leaves_no_reference(self, release, world) -> None:
        found = release(grounded=[think("no box")], textual=[think("It is left.")])
        assert totals(found) == {"grounded": [2.0], "textual": [2.0]}
        assert found.reference is None
        assert not world.judge.asked("consistency")

    def test_junk_before_think_is_malformed_yet_accepted_as_reference(self, release) -> None:
        found = release(grounded=[f"junk {think(BOX)}"], textual=[think("It is left.")])
        assert totals(found) == {"grounded": [3.0], "textual": [2.675]}

    def test_general_right(self, release) -> None:
        assert totals(release(general=[think("words"), think("words", WRONG)])) == {"general": [2.5, 1.0]}

    def test_truncated_after_think(self, release) -> None:
        found = release(grounded=["<think> the square …"], textual=["<think> the square …"])
        assert totals(found) == {"grounded": [0.0], "textual": [0.0]}

    def test_second_visit_is_judged_against_the_stale_reference(self, release, world) -> None:
        release(grounded=[think(f"first {BOX}")], textual=[think("a")])
        found = release(grounded=[think("nothing", WRONG)], textual=[think("b")], step=7)
        assert totals(found) == {"grounded": [1.0], "textual": [2.675]}
        assert found.reference is not None
        assert found.reference.step == 0
        assert world.judge.asked("consistency")[-1].reference == f"first{BOX}"

    def test_judge_down_zeroes_every_rollout_of_the_record(self, release, world) -> None:
        world.judge.failing = {"answer", "consistency"}
        found = release(grounded=[think(BOX), "no answer"], textual=[think("a"), think("b")])
        assert totals(found) == {"grounded": [0.0, 0.0], "textual": [0.0, 0.0]}
        assert not any(s.is_masked for s in found.scores)
        assert len(world.archive) == 0

    def test_one_failed_grounded_answer_zeroes_both_streams(self, release, world) -> None:
        world.judge.failing = {"unreadable"}
        bad = think(BOX, "<answer>unreadable</answer>")
        found = release(grounded=[think(BOX), bad], textual=[think("a"), think("b")])
        assert totals(found) == {"grounded": [0.0, 0.0], "textual": [0.0, 0.0]}
        assert not any(s.is_masked for s in found.scores)
        assert all("failed" in t.why for s in found.scores for t in s.terms.values())

    def test_one_failed_textual_answer_zeroes_its_stream(self, release, world) -> None:
        world.judge.failing = {"unreadable"}
        bad = think("a", "<answer>unreadable</answer>")
        found = release(grounded=[think(BOX)], textual=[think("a"), bad])
        assert totals(found) == {"grounded": [4.0], "textual": [0.0, 0.0]}

    def test_consistency_judge_down_costs_only_its_term(self, release, world) -> None:
        world.judge.failing = {"consistency"}
        found = release(grounded=[think(BOX)], textual=[think("a")])
        assert totals(found) == {"grounded": [4.0], "textual": [2.0]}

    @pytest.mark.parametrize("box", ["<box>[1, 2, 30, 40]</box>", "<box>[1.0,2.0,30.0,40.0]</box>"])
    def test_blanks_and_decimals_make_a_box_vanish(self, release, box) -> None:
        found = release(grounded=[think(box)])
        assert terms(found, "grounded", "box") == [0]
        assert terms(found, "grounded", "validity") == [0]

    def test_two_identical_tags(self, release) -> None:
        found = release(grounded=[think(BOX + BOX)])
        assert terms(found, "grounded", "validity") == [0]
        assert terms(found, "grounded", "box") == [1]

    def test_duplicates_in_the_second_half_escape(self, release) -> None:
        boxes = "".join(f"<box>[{x},0,{x + 10},10]</box>" for x in (0, 50, 100, 200, 200))
        assert terms(release(grounded=[think(boxes)]), "grounded", "validity") == [1]

    def test_second_box_of_a_tag_is_lost(self, release) -> None:
        one_tag = think("<box>[1,2,30,40],[50,50,60,60]</box>")
        assert terms(release(GOLD, (50, 50, 60, 60), grounded=[one_tag]), "grounded", "box") == [0.75]

    def test_two_identical_gold_boxes(self, release) -> None:
        assert terms(release(GOLD, GOLD, grounded=[think(BOX)]), "grounded", "box") == [1.0]


def test_archive_keeps_the_best_box_and_older_ties_across_visits(release) -> None:
    half = think("half <box>[1,2,30,21]</box>")
    visits = [half, think(f"first {BOX}"), think(f"second {BOX}"), half]
    seen = [release(grounded=[text], textual=[think("a")], step=i).reference for i, text in enumerate(visits)]
    assert [r.text.split("<")[0] for r in seen if r] == ["half", "first", "first", "first"]
    assert [r.step for r in seen if r] == [0, 1, 1, 1]
    assert [r.rank for r in seen if r][1] == (1.0, 1.0)


def test_best_of_the_step_is_the_first_on_ties(release) -> None:
    found = release(grounded=[think("a"), think(f"b {BOX}"), think(f"c {BOX}")], textual=[think("t")])
    assert found.reference is not None
    assert found.reference.text == f"b{BOX}"


def paper(world, replies: dict, step: int = 0, judge_fails: str = "", gold=(GOLD,), **keys) -> Group:
    method = ivgr(**keys)
    if judge_fails:
        world.judge.failing = {judge_fails}
    group = world.group(world.record(*gold, answer="green"), **replies)
    return credit(method, score(method, [group], world.context(step), workers=1))[0]


def test_paper_totals(world) -> None:
    found = paper(world, {"grounded": [think(f"The square {BOX}.")], "textual": [think("left"), think("left", WRONG)]})
    assert totals(found) == {"grounded": [3.0], "textual": [2.675, 1.675]}
    general = paper(world, {"general": [think("words")]}, gold=())
    assert totals(general) == {"general": [2.0]}


def test_paper_reads_boxes_with_blanks_and_keeps_validity_visible(world) -> None:
    found = paper(world, {"grounded": [think("The square <box>[1, 2, 30, 40]</box>.")]})
    score = found.scores[0]
    assert score.terms["box"].value == 1
    assert (score.terms["validity"].value, score.weight("validity")) == (1, 0)


def test_paper_refuses_malformed_references(world) -> None:
    replies = {"grounded": [f"junk {think(f'at {BOX}')}"], "textual": [think("left")]}
    assert paper(world, replies).reference is None
    assert paper(world, replies, archive={"require_format": False}).reference is not None


def test_tau_decides_who_becomes_a_reference(world) -> None:
    replies = {"grounded": [think("half <box>[1,2,30,21]</box>")], "textual": [think("left")]}
    assert paper(world, replies, archive={"min_box": 0.6}).reference is None
    assert paper(world, replies, archive={"min_box": 0.4}).reference is not None


def test_failed_judge_masks_instead_of_scoring_zero(world) -> None:
    replies = {"grounded": [think(f"at {BOX}")] * 2, "textual": [think("left"), think("left", WRONG), "no tags"]}
    found = paper(world, replies, judge_fails="consistency")
    assert [s.is_masked for s in found["textual"].scores] == [True, True, False]
    assert [c.weight.sum() > 0 for c in found["grounded"].credits] == [True, True]
    assert [c.weight.sum() for c in found["textual"].credits] == [0, 0, 0]
    assert all("judge failed" in s.terms["consistency"].why for s in found["textual"].scores[:2])


def test_unjudged_answers_never_become_references(world) -> None:
    record = world.record(GOLD, answer="a long explanation")
    open_record = type(record)(
        id=record.id,
        question="?",
        answer=record.answer,
        answer_kind="free",
        images=record.images,
        regions=record.regions,
    )
    world.judge.failing = {"answer"}
    method = ivgr()
    group = world.group(open_record, grounded=[think(f"at {BOX}", "<answer>words</answer>")], textual=[think("left")])
    found = score(method, [group], world.context())[0]
    assert found.scores[0].is_masked
    assert found.reference is None


GUARDS = {
    "gate_on_correct": (True, [0.675, 0, 0.675, 0.675]),
    "penalise_boxes": (True, [0.675, 0.675, 0, 0.675]),
    "min_think": (3, [0.675, 0.675, 0.675, 0]),
}


@pytest.mark.parametrize("guard", [None, *GUARDS])
def test_guards_on_consistency(world, guard) -> None:
    value, expected = GUARDS.get(guard, (None, [0.675] * 4))
    textual = [think("it is left"), think("it is left", WRONG), think(f"it is left {BOX}"), think("left")]
    keys = {"consistency": {guard: value}} if guard else {}
    found = paper(world, {"grounded": [think(f"at {BOX}")], "textual": textual}, **keys)
    assert terms(found, "textual", "consistency") == expected


def test_reference_boxes_can_be_stripped(world) -> None:
    replies = {"grounded": [think(f"the square {BOX} is green")], "textual": [think("left")]}
    kept = paper(world, replies).reference
    assert kept is not None
    assert BOX in kept.text
    world.archive = archive_for(ivgr())
    stripped = paper(world, replies, consistency={"strip_reference_boxes": True}).reference
    assert stripped is not None
    assert stripped.text == "the square is green"
    assert stripped.boxes == kept.boxes


def test_duplicates_can_cost_the_box_reward(world) -> None:
    replies = {"grounded": [think(f"at {BOX} {BOX}"), think("none"), think(f"at {BOX}")]}
    assert terms(paper(world, replies), "grounded", "box") == [1, 0, 1]
    guarded = paper(world, replies, boxes={"zero_duplicates": True})
    assert terms(guarded, "grounded", "box") == [0, 0, 1]


def test_judge_sees_frame_and_size_and_one_call_holds_the_group(world) -> None:
    paper(world, {"grounded": [think(f"at {BOX}")], "textual": [think("a"), think("b"), "no tags"]})
    requests = world.judge.asked("consistency")
    assert [r.candidate for r in requests] == ["a", "b"]
    assert all(r.frame == world.frame and r.size == (280, 280) and r.reference == f"at {BOX}" for r in requests)


def test_without_weight_consistency_asks_nobody(world) -> None:
    found = paper(world, {"grounded": [think(f"at {BOX}")], "textual": [think("a")]}, weights={"consistency": 0.0})
    assert "consistency" not in found["textual"].scores[0].terms
    assert not world.judge.asked("consistency")
    assert not any(s.reads_archive for s in ivgr(weights={"consistency": 0.0}).streams(world.record(GOLD)))


def test_current_step_is_the_ablation_without_archive(world) -> None:
    method = ivgr(archive={"policy": "current_step"})
    world.archive = archive_for(method)
    first = {"grounded": [think(f"at {BOX}")], "textual": [think("a")]}
    second = {"grounded": [think("nothing", WRONG)], "textual": [think("a")]}
    for step, (replies, expected) in enumerate([(first, 0.675), (second, 0.0)]):
        found = score(method, [world.group(world.record(GOLD), **replies)], world.context(step))[0]
        assert terms(found, "textual", "consistency") == [expected]


def test_streams_follow_the_regions(world) -> None:
    method = ivgr(streams={"textual": {"n": 8, "loss_weight": 0.5}})
    grounded, textual = method.streams(world.record(GOLD))
    assert (grounded.name, grounded.template, grounded.n, grounded.reads_archive) == ("grounded", "grounded", 5, False)
    assert (textual.name, textual.n, textual.loss_weight, textual.reads_archive) == ("textual", 8, 0.5, True)
    assert [s.name for s in method.streams(world.record())] == ["general"]


def test_streams_have_their_own_baselines(world) -> None:
    replies = {
        "grounded": [think(f"at {BOX}"), think("none")],
        "textual": [think("a"), think("b", WRONG)],
    }
    found = paper(world, replies)
    assert [round(c.parts["advantage"], 3) for c in found.credits] == [0.707, -0.707, 0.707, -0.707]


def test_presets_and_overrides() -> None:
    release = ivgr(preset="release", weights={"box": 0.5}).config
    assert release.weights.model_dump() == {
        "format": 1,
        "accuracy": 1,
        "box": 0.5,
        "validity": 1,
        "consistency": 1,
        "general_accuracy": 1.5,
    }
    assert (release.archive.min_box, release.archive.require_format, release.reading) == (0.3, False, "strict")
    assert (IVGRConfig().archive.require_format, IVGRConfig().on_judge_failure) == (True, "mask")
    assert (IVGRConfig().objective.kl, IVGRConfig().objective.dual_clip) == (0.01, 3.0)
    assert IVGRConfig.model_validate(release.model_dump(mode="json")) == release
    with pytest.raises(ValidationError):
        IVGRConfig.model_validate({"archive": {"min_box": 0.0}})


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"boxes": {"match": "recall"}}, "boxes.match"),
        ({"boxes": {"zero_duplicates": True, "duplicate_iou": 0.5}}, "boxes.duplicate_iou, boxes.zero_duplicates"),
        ({"consistency": {"strip_reference_boxes": True}}, "consistency.strip_reference_boxes"),
    ],
)
def test_strict_reading_refuses_options_that_it_would_ignore(keys, named) -> None:
    with pytest.raises(ValidationError, match=f"strict ignores {named};"):
        IVGRConfig.model_validate({"preset": "release", **keys})
    assert IVGRConfig.model_validate({"preset": "release", "reading": "tolerant", **keys}).reading == "tolerant"
    assert IVGRConfig.model_validate({"preset": "release", "consistency": {"min_think": 3}}).consistency.min_think == 3


def test_a_reference_without_words_masks_nobody_under_the_offline_judge(world) -> None:
    world.judge = OfflineJudge()
    replies = {"grounded": [think(BOX)], "textual": [think("The square is at the top left."), think("It is red.")]}
    found = paper(world, replies)
    assert found.reference is not None
    assert found.reference.text == BOX
    assert [s.is_masked for s in found["textual"].scores] == [False, False]
    assert terms(found, "textual", "consistency") == [0, 0]
    assert "nothing that can be checked" in found["textual"].scores[0].terms["consistency"].why


def test_any_text_scores(world) -> None:
    odd = ["", "<think>", "</answer><think>", "<box>[9,9,1,1]</box>", "\x00\ud7ff<box>[1,2,3]</box>", think("\n" * 50)]
    for preset in ("paper", "release"):
        found = score(
            ivgr(preset=preset), [world.group(world.record(GOLD), grounded=odd, textual=odd)], world.context()
        )
        assert len(found[0].scores) == 2 * len(odd)
        assert all(s.total >= 0 for s in found[0].scores)
