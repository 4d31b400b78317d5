"""`sightline score FILE.jsonl`: the rewards and advantages of logged rollouts, again or by another preset."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tyro.conf import Positional, Suppress

from sightline.commands.frames import FrameName, frame_named
from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.answers.judge_config import JudgeConfig
    from sightline.commands.logged import LoggedGroup
    from sightline.methods.base import Method
    from sightline.types import Group

__all__ = ["ScoreFile"]


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """Score logged rollouts: every term with its reason, the total and the advantage, one JSON row per rollout.

    A row of the file holds `record`, `question`, `answer`, `stream`, `step`, `text`, `sizes` ([[width, height], ...])
    and `boxes` (gold, pixels of the original image). Consecutive rows of the same record and step form a group; the
    archive of references is carried from row to row. `rollouts.jsonl` of a run folder is read as well. Keys of the
    method and of the judge may follow, e.g. `--judge.url http://localhost:8000/v1 --method.weights.format 0.5`.
    """

    file: Positional[Path]
    """Logged rollouts."""
    preset: str = "ivgr"
    """METHOD or METHOD/PRESET, e.g. ivgr/release."""
    judge: str = "offline"
    """offline, http, or rules (answers only; not where consistency is rewarded)."""
    frame: FrameName = "pixels"
    """Coordinates in which the replies write boxes, for rows that do not say so themselves."""
    limit: int | None = None
    """Score only the first so many groups."""
    out: Path | None = None
    """File to write; default standard output."""
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        if self.out is not None and self.out.exists():
            raise UserError("exists already", where=str(self.out), hint="choose another name for --out")
        from sightline.commands.logged import read_groups

        groups = list(read_groups(self.file, frame_named(self.frame), limit=self.limit))
        method, judging = self._parts()
        if self.out is None:
            self._write(self._scored(groups, method, judging), sys.stdout)
            return 0
        with self.out.open("w", encoding="utf-8") as stream:
            count = self._write(self._scored(groups, method, judging), stream)
        print(f"{count} rollouts in {len(groups)} groups: {self.out}")
        return 0

    def _write(self, groups: Iterator[LoggedGroup], stream: IO[str]) -> int:
        count = 0
        for group in groups:
            for row in score_rows(group.group, group.step):
                print(json.dumps(row, ensure_ascii=False), file=stream)
                count += 1
        return count

    def _parts(self) -> tuple[Method, JudgeConfig]:
        """The method and the judge's section; what does not fit is told before a file is opened."""
        from sightline.config.recipe import JUDGE_HINT, judge_problem
        from sightline.methods import load_method

        wanted, values = self._sections()
        method, judging = load_method(wanted), judge_config(values)
        if problem := judge_problem(method.config, judging):
            raise UserError(problem, where="--judge", hint=JUDGE_HINT)
        return method, judging

    def _scored(self, groups: list[LoggedGroup], method: Method, judging: JudgeConfig) -> Iterator[LoggedGroup]:
        """Groups one after the other, so that each sees what the ones before it left in the archive."""
        from sightline.answers.judge import build_judge
        from sightline.methods.base import Context
        from sightline.progress import track
        from sightline.train.scoring import archive_for, credit, score

        archive = archive_for(method)
        judge = build_judge(judging)
        try:
            shown = track(groups, "scoring", len(groups), is_shown=self.out is not None)
            for step, members in groupby(shown, key=lambda logged: logged.step):
                scored: list[Group] = []
                kept = []
                for logged in members:
                    context = Context(judge=judge, archive=archive, frame=logged.frame, step=step)
                    scored += score(method, [logged.group], context, workers=1)
                    kept.append(logged)
                # as in a run, credit may compare the groups of a step
                for logged, group in zip(kept, credit(method, scored), strict=True):
                    yield replace(logged, group=group)
        finally:
            judge.close()

    def _sections(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The sections `method` and `judge` that the options describe."""
        from sightline.config.source import nested, parse_overrides

        given = nested(parse_overrides(self.overrides), "command line")
        unknown = [key for key in given if key not in ("method", "judge")]
        if unknown:
            raise UserError(f"unknown option --{unknown[0]}", hint="options, --method.KEY and --judge.KEY")
        name, _, preset = self.preset.partition("/")
        method = {"name": name, **({"preset": preset} if preset else {}), **given.get("method", {})}
        return method, {"kind": self.judge, **given.get("judge", {})}


def judge_config(values: dict[str, Any]) -> JudgeConfig:
    """The validated section `judge`; UserError names the first key that does not fit."""
    from pydantic import ValidationError

    from sightline.answers.judge_config import JudgeConfig

    try:
        return JudgeConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            first["msg"].removeprefix("Value error, "), where=".".join(("--judge", *map(str, first["loc"])))
        ) from error


def score_rows(group: Group, step: int) -> Iterator[dict[str, Any]]:
    """One row per rollout: what it is, every term, total, advantage; None for a masked rollout's advantage."""
    reference = group.reference
    for rollout, scores, credits in zip(group.rollouts, group.scores, group.credits, strict=True):
        terms = {
            name: {"value": term.value, "weight": scores.weight(name), "why": term.why, "masked": term.masked}
            for name, term in scores.terms.items()
        }
        is_carried = bool(credits.weight.any())
        yield {
            "record": group.record.id,
            "step": step,
            "stream": rollout.stream,
            "branch": list(rollout.branch),
            "terms": terms,
            "total": scores.total,
            "masked": scores.is_masked,
            "advantage": float(credits.advantage[0]) if is_carried else None,
            "reference_step": reference.step if reference is not None else None,
        }
