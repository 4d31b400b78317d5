"""Evaluation of a policy in several modes: `sightline eval`, the evaluation during training and the demo alike.

evaluation = evaluate(policy, records, ["textual", "grounded", "crops"])
evaluation.estimates["textual"]["accuracy"].describe()   # '0.654 [0.624, 0.683]'
write_table(evaluation, folder / "table.jsonl")
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UserError
from sightline.evaluate.metrics import aggregate, measure
from sightline.evaluate.sets import set_means
from sightline.evaluate.statistics import DRAWS, Estimate
from sightline.jsonl import read_rows
from sightline.progress import track
from sightline.types import Record

if TYPE_CHECKING:
    from sightline.answers.judge import Judge
    from sightline.policy.load import Policy
    from sightline.sampling.base import Sampler, SamplingSettings
    from sightline.sampling.modes import ModeConfig, ModeResult, Speaker

__all__ = ["Evaluation", "EvaluationRow", "append_events", "evaluate", "merged", "read_table", "write_table"]

JUDGED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """One record in one mode, as it stands in the table: what was said and what was measured."""

    record: str
    mode: str
    question: str
    reference: str
    answer: str
    metrics: Mapping[str, float]
    text: str
    boxes: Sequence[Sequence[float]] = ()
    crops: Sequence[Sequence[float]] = ()
    kind: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All rows of one evaluation, and per mode every metric with its interval."""

    rows: tuple[EvaluationRow, ...]
    estimates: Mapping[str, Mapping[str, Estimate]]
    seconds: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    step: int = 0

    def events(self) -> Iterator[dict[str, Any]]:
        """The lines of `evaluations.jsonl`, one per mode."""
        for mode, estimates in self.estimates.items():
            means = set_means(self.rows, mode)
            yield {
                "step": self.step,
                "label": self.label,
                "mode": mode,
                "n": sum(row.mode == mode for row in self.rows),
                "metrics": {name: estimate.row() for name, estimate in estimates.items()},
                **({"sets": means.row()} if len(means.counts) > 1 else {}),
                "seconds": round(self.seconds.get(mode, 0.0), 3),
            }


def evaluate(
    policy: Policy | Speaker,
    records: Sequence[Record],
    modes: Sequence[str] = ("textual", "grounded"),
    *,
    sampler: Sampler | None = None,
    settings: SamplingSettings | None = None,
    config: ModeConfig | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    step: int = 0,
    label: str = "",
    batch: int = 64,
    draws: int = DRAWS,
    is_shown: bool = True,
) -> Evaluation:
    """Answers every record in every mode, greedily unless `settings` say otherwise, and measures the replies.

    Args:
        policy: what `load_policy` returned; with a `sampler` of its own, anything that has a frame and a style.
        records: with ids that occur once.
        modes: names of `sightline.sampling.modes.MODES`.
        sampler: default is the local one over `policy`.
        settings: default is temperature 0 and 256 new tokens.
        config: how crops are cut.
        judge: decides about answers no rule covers.
        seed: of the sampling and of the intervals, which take `draws` resamples.
        step, label: training step and name of the set, recorded.
        batch: records that are answered together.
        is_shown: whether a progress bar may appear.

    Raises:
        UserError: without records, for a repeated id, or for an unknown mode.
    """
    from sightline.sampling.base import SamplingSettings

    _check(records, modes)
    asked = _Asked(
        policy, sampler or _local(policy), settings or SamplingSettings(temperature=0.0, max_new_tokens=256),
        config, seed, step,
    )  # fmt: skip
    rows: list[EvaluationRow] = []
    seconds = dict.fromkeys(modes, 0.0)
    starts = range(0, len(records), batch)
    for start in track(starts, f"evaluating {label}".rstrip(), len(starts), is_shown=is_shown):
        began = time.perf_counter()
        for mode, results in asked.answers(records[start : start + batch], modes):
            rows += _rows(results, judge)
            seconds[mode] += time.perf_counter() - began
            began = time.perf_counter()
    rows.sort(key=lambda row: modes.index(row.mode))
    estimates = {
        mode: aggregate((row.metrics for row in rows if row.mode == mode), seed=seed, draws=draws) for mode in seconds
    }
    return Evaluation(rows=tuple(rows), estimates=estimates, seconds=seconds, label=label, step=step)


def merged(
    parts: Sequence[Evaluation], records: Sequence[Record], modes: Sequence[str], *, seed: int = 0, draws: int = DRAWS
) -> Evaluation:
    """One evaluation from those of parts of its records, as if they had been answered together.

    Args:
        parts: with the same modes, step and label; parts without rows count for nothing.
        records: all of them, in order.
        modes, seed, draws: as given to `evaluate`.
    """
    place = {record.id: i for i, record in enumerate(records)}
    rows = sorted((row for part in parts for row in part.rows), key=lambda r: (modes.index(r.mode), place[r.record]))
    first = next(part for part in parts if part.rows)
    seconds = {mode: max(part.seconds.get(mode, 0.0) for part in parts) for mode in first.seconds}
    estimates = {
        mode: aggregate((row.metrics for row in rows if row.mode == mode), seed=seed, draws=draws) for mode in seconds
    }
    return Evaluation(rows=tuple(rows), estimates=estimates, seconds=seconds, label=first.label, step=first.step)


@dataclass(frozen=True, slots=True)
class _Asked:
    """How records are answered."""

    speaker: Speaker
    sampler: Sampler
    settings: SamplingSettings
    config: ModeConfig | None
    seed: int
    step: int

    def answers(self, records: Sequence[Record], modes: Sequence[str]) -> Iterator[tuple[str, list[ModeResult]]]:
        """Results by mode; the crop modes come after the grounded one and start from what was sampled before."""
        from sightline.sampling.modes import MODES, answer

        known: list[ModeResult] = []
        for mode in sorted(dict.fromkeys(modes), key=MODES.index):
            results = answer(
                self.sampler, records, mode, self.config, speaker=self.speaker, settings=self.settings,
                seed=self.seed, step=self.step, known=known,
            )  # fmt: skip
            known = known if mode == "textual" else results
            yield mode, results


def write_table(evaluation: Evaluation, path: str | Path) -> Path:
    """Writes the rows as JSONL, one object per record and mode; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(row), ensure_ascii=False) for row in evaluation.rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def append_events(evaluation: Evaluation, path: str | Path) -> None:
    """Appends one line per mode to an `evaluations.jsonl`."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event, ensure_ascii=False) + "\n" for event in evaluation.events())


def read_table(path: str | Path) -> list[EvaluationRow]:
    """The rows that `write_table` wrote.

    Raises:
        UserError: names the file and line that is not a row of such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such table", where=str(path), hint="sightline eval ... --out FILE.jsonl writes one")
    rows = []
    for number, row in read_rows(path):
        try:
            rows.append(EvaluationRow(**row))
        except TypeError as error:
            raise UserError(f"not a row of an evaluation table: {error}", where=f"{path}:{number}") from error
    return rows


def _local(policy: Any) -> Sampler:
    from sightline.sampling.local import LocalSampler

    return LocalSampler(policy)


def _check(records: Sequence[Record], modes: Sequence[str]) -> None:
    from sightline.sampling.modes import MODES

    for mode in modes:
        if mode not in MODES:
            raise UserError(f"unknown mode {mode!r}", hint=f"one of {', '.join(MODES)}")
    if not records or not modes:
        raise UserError("nothing to evaluate: no records" if modes else "nothing to evaluate: no modes")
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise UserError("this id occurs twice; results are paired by id", where=f"record {record.id}")
        seen.add(record.id)


def _rows(results: Sequence[ModeResult], judge: Judge | None) -> list[EvaluationRow]:
    """Rows in the order of the results; a judge is waited for on several threads at once."""
    if judge is None:
        return [_row(result, judge) for result in results]
    with ThreadPoolExecutor(JUDGED_AT_ONCE) as pool:
        return list(pool.map(lambda result: _row(result, judge), results))


def _row(result: ModeResult, judge: Judge | None) -> EvaluationRow:
    return EvaluationRow(
        record=result.record.id,
        mode=result.mode,
        question=result.record.question,
        reference=result.record.answer,
        answer=result.answer,
        metrics=measure(result, judge),
        text="\n".join(reading.text for reading in result.readings),
        boxes=[[round(side, 2) for side in found.box] for found in result.boxes],
        crops=[list(crop.box) for crop in result.crops],
        kind=str(result.record.meta.get("dataset") or result.record.meta.get("type", "")),
        note=result.note,
    )
