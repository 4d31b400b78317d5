"""What a policy answers and where it looks, record by record: tables for paired comparison of methods on attention."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from paired import Seed, mean, train_seed
from sightline.answers.judge import Judge
from sightline.archive import Archive
from sightline.evaluate.faithfulness import changed_record
from sightline.evaluate.metrics import measure
from sightline.evaluate.runner import EvaluationRow, read_table
from sightline.geometry.grid import membership
from sightline.interventions import Intervention
from sightline.methods.base import Context, Method
from sightline.policy.focus import token_id
from sightline.policy.load import Policy, load_policy
from sightline.policy.packing import Packer
from sightline.probes.scoring import scoring_pass
from sightline.sampling.base import SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.sampling.modes import ModeConfig, ModeResult, answer
from sightline.scenes.stream import record_at
from sightline.types import Group, Record

__all__ = ["MODE", "held_out", "kept_table", "look", "means", "trained"]

MODE = "textual"
BATCH = 64
GREEDY = SamplingSettings(temperature=0.0, max_new_tokens=64)


def held_out(level: str, seed: int, n: int) -> list[Record]:
    """The first `n` validation scenes of a seed."""
    return [record_at(level, "validation", 1000 + seed, index) for index in range(n)]


def kept_table(
    path: Path, model: Path | str, records: Sequence[Record], methods: Mapping[str, Method], prefix: str
) -> list[EvaluationRow]:
    """The table at `path`; made from the checkpoint where it is not there yet."""
    if not path.exists():
        rows = [row for part in look(load_policy(model), records, methods, prefix) for row in part]
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
        fresh.replace(path)
    return read_table(path)


def look(
    policy: Policy, records: Sequence[Record], methods: Mapping[str, Method], prefix: str = ""
) -> Iterator[list[EvaluationRow]]:
    """Rows of some records at a time.

    Metrics: those of an evaluation; `evidence_drop`, `random_drop` and their difference `faithful_drop`, the accuracy
    lost where the regions, or as much elsewhere, are masked; `NAME/TERM`, terms of each method for the greedy reply;
    `NAME/region_mass` and `NAME/cover_mass`, the token's attention on the region as a share of that on the image.
    """
    sampler, judge = LocalSampler(policy), _no_judge()
    context = Context(judge, Archive(), policy.frame, 0, policy.pieces)
    for start in range(0, len(records), BATCH):
        part = records[start : start + BATCH]
        results = _answers(policy, sampler, part, prefix)
        metrics = [measure(result) for result in results]
        for kind, name in (("region_mask", "evidence_drop"), ("random_region", "random_drop")):
            changed = [changed_record(r, policy.frame, Intervention(kind), ("look", r.id)) for r in part]
            for own, result in zip(metrics, _answers(policy, sampler, changed, prefix), strict=True):
                own[name] = own["accuracy"] - measure(result)["accuracy"]
        for name, method in methods.items():
            for own, found in zip(metrics, _terms(policy, results, method, context), strict=True):
                own |= {f"{name}/{key}": value for key, value in found.items()}
        for own in metrics:
            own["faithful_drop"] = own["evidence_drop"] - own["random_drop"]
        yield [_row(result, own) for result, own in zip(results, metrics, strict=True)]


def trained(recipe: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> dict[str, Path]:
    """Trains the arms of a recipe (finished runs are kept) and returns the last checkpoint of each."""
    train_seed(recipe, folder, overrides)
    return {arm: sorted((folder / "arms" / arm / "checkpoints").glob("step-*"))[-1] for arm in recipe["arms"]}


def means(seeds: Sequence[Seed], levels: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, float]]:
    """The levels of every arm, mean over the records of all seeds."""
    return {
        arm: {
            name: round(float(np.mean([mean(s.tables[arm], *shown) for s in seeds])), 4)
            for name, shown in levels.items()
        }
        for arm in seeds[0].tables
    }


def _answers(policy: Policy, sampler: LocalSampler, records: Sequence[Record], prefix: str) -> list[ModeResult]:
    config = ModeConfig(forced_prefix=prefix)
    return answer(sampler, records, MODE, config, speaker=policy, settings=GREEDY)


def _terms(policy: Policy, results: Sequence[ModeResult], method: Method, context: Context) -> list[dict[str, float]]:
    groups = [Group(record=r.record, rollouts=r.rollouts, readings=r.readings) for r in results]
    probes = [p for p in method.probes() if p.name != "focus" or token_id(policy, "<Focus>") is not None]
    found = []
    for group in scoring_pass(Packer(policy), groups, probes, key=("look",)):
        (scores,) = method.score(group, context)
        values = {name: term.value for name, term in scores.terms.items() if not term.masked}
        found.append(values | _focus(policy, group))
    return found


def _focus(policy: Policy, group: Group) -> dict[str, float]:
    row = group.measurements[0].maps.get("focus", np.empty(0))
    if not row.size:
        return {}
    p, sizes = row[0] / max(float(row[0].sum()), 1e-12), [image.size for image in group.record.images]
    cover = membership(group.record.regions, sizes, policy.frame, "coverage")
    return {"region_mass": float(p[cover > 0].sum()), "cover_mass": float(p @ cover), "on_image": float(row[0].sum())}


def _row(result: ModeResult, metrics: Mapping[str, float]) -> EvaluationRow:
    record = result.record
    return EvaluationRow(
        record=record.id, mode=MODE, question=record.question, reference=record.answer, answer=result.answer,
        metrics=dict(metrics), text=result.reading.text,
    )  # fmt: skip


def _no_judge() -> Any:
    """Scenes are answered by words that rules decide about."""

    class Silent:
        def judge(self, requests: Sequence[Any]) -> list[Any]:
            raise AssertionError(f"nothing should be left to a judge: {requests[0]}")

        def stats(self) -> dict[str, float]:
            return {}

        def close(self) -> None: ...

    judge: Judge = Silent()
    return judge
