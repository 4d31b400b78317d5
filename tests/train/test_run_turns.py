"""Conversations through the loop: sampled, read, measured, credited, learned; and imitated in a supervised stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conversations import Crops, ends_often
from sightline.config import load_recipe
from sightline.errors import UserError
from sightline.methods.base import Method, Stage, Stream
from sightline.train.loop import reinforce
from sightline.train.run import Run, open_run
from sightline.train.supervised import imitate
from sightline.types import Group, Record, Score, Scores

WORDS = [
    *("--data.train", "scenes:easy", "--data.reader", "ours", "--data.records_per_step", "2", "--train.steps", "2"),
    *("--optim.lr", "1e-3", "--optim.warmup_steps", "0", "--sampling.max_new_tokens", "20", "--model.dtype", "float32"),
    *("--model.device", "cpu", "--data.strata", "null", "--train.old_logprobs", "learner"),
]


class Converses(Method):
    """A tree of conversations beside a stream of single replies of its own length."""

    def streams(self, record: Record) -> tuple[Stream, ...]:
        del record
        return (
            Stream("ground_r1", "ground_r1", 4, branches=(2, 2), turns=Crops()),
            Stream("textual", "textual", 3, sampling={"max_new_tokens": 5}),
        )

    def score(self, group: Group, context: object) -> tuple[Scores, ...]:
        del context
        return tuple(Scores(terms={"r": Score(float(np.sin(len(g.text))))}) for g in group.readings)


class Imitates(Converses):
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("supervised", 2),)

    def streams(self, record: Record) -> tuple[Stream, ...]:
        return super().streams(record)[:1]


@pytest.fixture
def run(checkpoints: dict[str, Path], tmp_path: Path) -> Iterator[Run]:
    recipe = load_recipe("grpo", [*WORDS, "--model.name", str(checkpoints["qwen2_5_vl"])])
    with open_run(recipe, tmp_path) as opened:
        opened.policy = ends_often(opened.policy)
        opened.sampler.policy = opened.policy  # type: ignore[attr-defined]
        opened.method = Converses()
        yield opened


def test_a_step_over_conversations(run: Run) -> None:
    before = [p.detach().clone() for p in run.policy.module.parameters()]
    groups, stats = reinforce(run)
    assert len(groups) == 2
    for group in groups:
        talks = group["ground_r1"]
        assert [r.branch for r in talks.rollouts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for rollout, reading in zip(talks.rollouts, talks.readings, strict=True):
            said = [t.text for t in rollout.turns if t.role == "assistant"]
            assert reading.text == rollout.text == "\n".join(said)
            assert [t.text for t in reading.turns] == (said if len(said) > 1 else [])
        assert all(len(r.ids) <= 5 for r in group["textual"].rollouts)
        for rollout, measured in zip(group.rollouts, group.measurements, strict=True):
            assert measured.logprobs is not None
            np.testing.assert_allclose(measured.logprobs, rollout.logprobs, atol=1e-5)
    assert any(len(r.turns) > 1 for g in groups for r in g.rollouts)
    assert stats.metrics["update/tokens"] < stats.metrics["update/tokens_unshared"]
    assert stats.metrics["update/grad_norm"] > 0
    assert any(bool((a != b).any()) for a, b in zip(before, run.policy.module.parameters(), strict=True))


def said(run: Run, replies: Sequence[str]) -> None:
    """Every record of the run says the same."""
    following = run.data.next
    meta = {"replies": {"ground_r1": list(replies)}}
    run.data.next = lambda count=None: [  # type: ignore[method-assign]
        replace(r, meta={**r.meta, **meta}) for r in (following() if count is None else following(count))
    ]


def test_a_supervised_stage_imitates_conversations(run: Run) -> None:
    run.method = Imitates()
    goes_on = next(text for text in (f" look {i}" for i in range(99)) if sum(map(ord, text)) % 6 != 5)
    said(run, [goes_on, goes_on, " done"])
    losses = []
    for _ in range(2):
        losses.append(imitate(run)[1].metrics["supervised/loss"])
        run.step += 1
    assert losses[1] < losses[0]


def test_replies_beyond_the_last_turn_are_an_error_of_the_data(run: Run) -> None:
    run.method = Imitates()
    said(run, [" look", " look", " look", " done"])
    with pytest.raises(UserError, match="of 4"):
        imitate(run)


class Warmer(Converses):
    def streams(self, record: Record) -> tuple[Stream, ...]:
        first, second = super().streams(record)
        return first, replace(second, sampling={"temperature": 0.7})


def test_a_temperature_that_would_not_be_scored_is_refused(run: Run) -> None:
    run.method = Warmer()
    with pytest.raises(UserError, match=r"'textual' asks for temperature 0\.7, but log-probs are scored at 1"):
        reinforce(run)
