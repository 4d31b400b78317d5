"""GRIT: golden vectors of the released code at the level of the method, the paper's rules, and what stays hidden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sightline.answers.judge import RulesJudge, Verdict
from sightline.methods import load_method
from sightline.methods.grit import GRIT, GRITConfig
from sightline.train.scoring import credit, score
from sightline.types import Group, Record

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "grit.json").read_text())
FULL = '<think> one {"bbox_2d": [1, 2, 30, 40]} and (5, 6, 7, 8) </think><rethink> two </rethink><answer> 2'


class NumberJudge:
    """Gives one number for everything, or fails."""

    def __init__(self, value: float | None) -> None:
        self.value = value

    def judge(self, requests: Any) -> list[Verdict]:
        return [Verdict(value=self.value, why="number", failed=self.value is None) for _ in requests]

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


def grit(**keys: Any) -> GRIT:
    method = load_method({"name": "grit", **keys})
    assert isinstance(method, GRIT)
    return method


def counted(world: Any, answer: str = "2", dataset: str | None = "tallyqa", kind: str = "number") -> Record:
    meta = {} if dataset is None else {"dataset": dataset}
    return replace(world.record((1, 2, 30, 40), answer=answer), answer_kind=kind, meta=meta)


def scored(world: Any, method: GRIT, record: Record, *texts: str, judge: Any = None) -> Group:
    context = replace(world.context(), judge=judge) if judge else world.context()
    return score(method, [world.group(record, grit=texts)], context, workers=1)[0]


def weighted(group: Group, at: int = 0) -> dict[str, float]:
    scores = group.scores[at]
    return {name: scores.weight(name) * term.value for name, term in scores.terms.items()}


@pytest.mark.parametrize("preset", ["release", "paper"])
def test_golden_rewards(world: Any, preset: str) -> None:
    for case in GOLDEN[preset]:
        kind = "yes_no" if case["answer"] in ("yes", "no") else "number" if case["answer"].isdigit() else "text"
        record = counted(world, case["answer"], case.get("dataset"), kind)
        found = weighted(scored(world, grit(preset=preset), record, case["text"], judge=RulesJudge()))
        wanted = pytest.approx(case["terms"])
        assert {name: found.get(name) for name in case["terms"]} == wanted, case["name"]


def test_largest_rewards(world: Any) -> None:
    """3.1 and 2.6 in the paper, 4.1 and 3.1 in the release."""
    judge = NumberJudge(1.0)
    for preset, on_count, elsewhere in (("paper", 3.1, 2.6), ("release", 4.1, 3.1)):
        for dataset, best in (("tallyqa", on_count), ("vsr", elsewhere)):
            record = counted(world, dataset=dataset)
            total = scored(world, grit(preset=preset), record, FULL, judge=judge).scores[0].total
            assert total == pytest.approx(best), (preset, dataset)


def test_rows_of_different_sets_in_one_batch(world: Any) -> None:
    """The release goes by the first row of a batch and crashes on a yes in a counting one; here each row is its own."""
    method = grit(preset="release")
    rows = [counted(world, "yes", "vsr", "yes_no"), replace(counted(world), id="s2")]
    for order in (rows, rows[::-1]):
        groups = [world.group(record, grit=[FULL]) for record in order]
        found = {g.record.id: g.scores[0].terms for g in score(method, groups, world.context(), workers=1)}
        assert "count" not in found["s1"]
        assert found["s2"]["count"].value == 1
    assert "count" not in scored(world, method, counted(world, "yes"), FULL).scores[0].terms


class TestJudge:
    @pytest.mark.parametrize(("how", "value"), [("positive", 1.0), ("half", 0.0), ("none", 0.2)])
    def test_what_becomes_of_its_number(self, world: Any, how: str, value: float) -> None:
        method = grit(preset="release", answers={"binarise": how})
        assert (
            scored(world, method, counted(world), FULL, judge=NumberJudge(0.2)).scores[0].terms["accuracy"].value
            == value
        )

    def test_the_release_pays_any_positive_number_in_full(self, world: Any) -> None:
        assert (
            scored(world, grit(preset="release"), counted(world), FULL, judge=NumberJudge(0.2))
            .scores[0]
            .terms["accuracy"]
            .value
            == 1
        )

    def test_a_failure_masks_or_is_zero(self, world: Any) -> None:
        record = counted(world, "a few", None, "free")
        for preset, is_masked in (("paper", True), ("release", False)):
            found = scored(world, grit(preset=preset), record, FULL, judge=NumberJudge(None)).scores[0]
            assert found.is_masked == is_masked
            assert found.terms["accuracy"].value == 0

    def test_rules_come_first_in_the_paper(self, world: Any) -> None:
        scored(world, grit(), counted(world), FULL, FULL.replace("> 2", "> 3"))
        assert not world.judge.requests
        scored(world, grit(preset="release"), counted(world), FULL)
        assert [r.candidate for r in world.judge.requests] == [" 2"]

    def test_text_without_an_answer_block_answers_nothing(self, world: Any) -> None:
        found = scored(world, grit(), counted(world), "<think> a </think> 2", "2", FULL + "…")
        assert [s.terms["accuracy"].value for s in found.scores] == [0, 0, 0]


class TestHiddenBoxes:
    """Nothing that rewards see tells where the gold boxes are."""

    @pytest.mark.parametrize("preset", ["paper", "release"])
    def test_scores_do_not_change_with_the_gold_boxes(self, world: Any, preset: str) -> None:
        record = counted(world)
        moved = replace(record, regions=tuple(replace(r, box=r.box._replace(x1=0, x2=280)) for r in record.regions))
        truth = replace(record, regions=(), meta={**record.meta, "objects": [{"box": [1, 2, 30, 40]}], "targets": [0]})
        texts = (FULL, FULL.replace("1, 2, 30, 40", "200, 200, 250, 250"), "<think> none </think>")
        found = [scored(world, grit(preset=preset), r, *texts).scores for r in (record, moved, truth)]
        assert found[0] == found[1] == found[2]

    def test_regions_cannot_be_read_while_scoring(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Record] = []
        import sightline.methods.grit as module

        original = module.accuracies
        monkeypatch.setattr(module, "accuracies", lambda r, record, j: seen.append(record) or original(r, record, j))
        scored(world, grit(), replace(counted(world), meta={"type": "count", "objects": [{"box": [1, 2, 3, 4]}]}), FULL)
        assert seen[0].regions == ()
        assert dict(seen[0].meta) == {"type": "count"}


class TestCredit:
    def test_a_group_of_equal_rewards_teaches_nothing(self, world: Any) -> None:
        group = credit(grit(), [scored(world, grit(), counted(world), FULL, FULL, FULL)])[0]
        assert all(not c.advantage.any() for c in group.credits)
        assert all(c.weight.all() for c in group.credits)  # the KL term still acts

    def test_deviation_of_the_presets(self, world: Any) -> None:
        texts = (FULL, FULL, FULL, "<think> a </think>")
        for preset, size in (("paper", 3**-0.5), ("release", 0.5)):
            group = credit(grit(preset=preset), [scored(world, grit(preset=preset), counted(world), *texts)])[0]
            assert group.credits[0].parts["advantage"] == pytest.approx(size, rel=2e-4)


class TestConfig:
    def test_defaults(self) -> None:
        config = grit().config
        assert (config.streams.grit.n, config.credit.eps, config.credit.ddof) == (4, 1e-8, 0)
        assert (config.objective.kl, config.objective.normalisation) == (0.01, "sequence")
        assert [(s.name, s.template, s.n) for s in grit().streams(None)] == [("grit", "grit", 4)]  # type: ignore[arg-type]

    def test_release(self) -> None:
        config = GRITConfig.model_validate({"preset": "release", "weights": {"bleu": 0.0}})
        assert (config.credit.eps, config.credit.ddof, config.on_judge_failure) == (1e-4, 1, "zero")
        assert (config.weights.bleu, config.weights.repetition, config.answers.binarise) == (0.0, 0.5, "positive")

    def test_strict_reading_refuses_own_options(self) -> None:
        with pytest.raises(ValidationError, match="strict ignores counting"):
            GRITConfig.model_validate({"preset": "release", "counting": {"boxes": "valid"}})

    def test_terms_can_be_switched_off(self, world: Any) -> None:
        method = grit(weights={"box": 0.0, "count": 0.0})
        found = scored(world, method, counted(world), FULL, FULL.replace("(5, 6, 7, 8)", ""))
        assert found.scores[0].total == found.scores[1].total
        assert found.scores[0].terms["count"].value == 1  # still told, counts nothing

    def test_own_options(self, world: Any) -> None:
        texts = (FULL, FULL.replace("5, 6, 7, 8", "1, 2, 30, 40"))
        method = grit(counting={"boxes": "distinct"}, weights={"validity": 1.0})
        found = scored(world, method, counted(world), *texts).scores
        assert [s.terms["count"].value for s in found] == [1, 0]
        assert [s.terms["validity"].value for s in found] == [1, 0]


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>", "1,2,3,4", " 2 "]
            ),
            st.text(max_size=20),
        ),
        max_size=20,
    )
)
def test_every_reply_scores_within_its_range(world: Any, parts: list[str]) -> None:
    text = "".join(parts)
    for preset, low, high in (("paper", 0, 3.1), ("release", -0.5, 4.1)):
        found = scored(world, grit(preset=preset), counted(world), text, "")
        assert all(low <= s.total <= high + 1e-9 for s in found.scores)


def test_logged_rollouts_score_as_they_did(world: Any, tmp_path: Path) -> None:
    """A run's log keeps what the terms go by: the data set, and which tokens repeat."""
    from sightline.commands.logged import read_groups
    from sightline.report.rows import group_row

    loop = FULL.replace("two", "so it is and so it is and " * 6)
    texts = (FULL, loop)
    method = grit(preset="release")
    group = scored(world, method, counted(world), *texts)
    rollouts = tuple(replace(r, ids=r.ids % 8) for r in group.rollouts)
    group = score(method, [replace(group, rollouts=rollouts)], world.context(), workers=1)[0]
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps(group_row(0, group, decode_piece=lambda i: f"p{i}", frame=world.frame)) + "\n")
    logged = next(iter(read_groups(path, world.frame))).group
    assert score(method, [logged], world.context(), workers=1)[0].scores == group.scores
    assert group.scores[1].terms["repetition"].value < group.scores[0].terms["repetition"].value
