"""Does a policy use the evidence it is judged by? Interventions on the image and attention, on held-out records.

* Accuracy where the gold regions are filled, against where as much of the image is filled elsewhere. A policy that
  looks at the evidence loses more in the first case; the difference of the two drops is free of the damage that filling
  does by itself.
* Dependence on the image over the length of the reply: log p - log p' of the policy's own tokens, p' under a changed
  image, by relative position.
* Attention of the reply: its mass on the regions, whether its strongest cell lies in one, and how much of what falls on
  the image is held by a single cell (a sink).

All intervals are bootstrap intervals over records; drops are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.errors import UserError
from sightline.evaluate.statistics import Estimate, mean_interval, paired_difference
from sightline.interventions import Intervention, Kind, intervene
from sightline.methods.probes import Contrast, Layers, RegionAttention
from sightline.progress import track
from sightline.types import Box, Group, Record, Rollout

if TYPE_CHECKING:
    from sightline.answers.judge import Judge
    from sightline.geometry.frames import Frame
    from sightline.policy.load import Policy
    from sightline.sampling.base import Sampler, SamplingSettings
    from sightline.sampling.modes import ModeConfig, ModeResult
    from sightline.types import Measurement

__all__ = ["ATTENTION", "Faithfulness", "Reader", "changed_record", "faithfulness"]

CHANGES: tuple[Kind, ...] = ("region_mask", "random_region")
BINS = 10
ATTENTION: dict[str, str] = {
    "region_mass": "Attention of the reply's tokens on the gold regions.",
    "image_mass": "Attention of the reply's tokens on the record's images as a whole.",
    "region_share": "Share of the attention on the images that lies on the regions.",
    "area_share": "Share of the cells that belong to the regions: what even attention over the images would give.",
    "pointing": "Share of records whose most attended cell, mean over the reply, lies in a region.",
    "top1_share": "Share of the attention on the images that one cell alone holds, mean over tokens; near 1 is a sink.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """What one mode showed over the records that have regions.

    Attributes:
        mode: how the questions were put.
        n: records with regions and an accuracy.
        skipped: records without regions, or without a rule for their answer.
        accuracy: on the images as they are and under each change.
        drops: accuracy lost under each change, and `difference` between the two, in that order.
        attention: see ATTENTION.
        curve: log p - log p' by tenth of the reply; None where no reply has a token there.
    """

    mode: str
    n: int
    skipped: int
    accuracy: Mapping[str, Estimate]
    drops: Mapping[str, Estimate]
    attention: Mapping[str, Estimate]
    curve: tuple[Estimate | None, ...]

    def row(self) -> dict[str, Any]:
        """The form in which it stands in JSON files."""

        def rows(values: Mapping[str, Estimate]) -> dict[str, Any]:
            return {name: value.row() for name, value in values.items()}

        return {
            "n": self.n,
            "skipped": self.skipped,
            "accuracy": rows(self.accuracy),
            "drops": rows(self.drops),
            "attention": rows(self.attention),
            "curve": [None if value is None else value.row() for value in self.curve],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What is read of the policy's attention and how its dependence on the image is measured.

    Attributes:
        layers, heads_file: as in `methods/probes.py`.
        contrast: the change behind the curve.
    """

    layers: Layers = "last_third"
    heads_file: str | None = None
    contrast: Intervention = field(default_factory=Intervention)

    @property
    def probes(self) -> tuple[RegionAttention, Contrast]:
        return (
            RegionAttention(layers=self.layers, heads_file=self.heads_file, keeps_maps=True),
            Contrast(intervention=self.contrast),
        )


def faithfulness(
    policy: Policy,
    records: Sequence[Record],
    mode: str = "textual",
    *,
    sampler: Sampler | None = None,
    settings: SamplingSettings | None = None,
    config: ModeConfig | None = None,
    judge: Judge | None = None,
    reader: Reader | None = None,
    seed: int = 0,
    batch: int = 64,
    is_shown: bool = True,
) -> Faithfulness:
    """Answers every record that has regions three times and reads the attention of the first reply.

    Args:
        policy: what `load_policy` returned.
        records: held-out records; those without regions are skipped.
        mode: how the questions are put.
        sampler: default is the local one over `policy`.
        settings: default is temperature 0 and 256 new tokens.
        config: how crops are cut; crops come from the changed, resized image.
        judge: decides about answers no rule covers.
        reader: what is read of attention and contrast.
        seed: of the sampling, the draws of the changes and the intervals.
        batch: records that are answered together.
        is_shown: whether a progress bar may appear.

    Raises:
        UserError: no record has regions, or no answer can be checked.
    """
    from sightline.sampling.base import SamplingSettings
    from sightline.sampling.local import LocalSampler

    bounded = [record for record in records if record.regions and record.images]
    if not bounded:
        raise UserError("no record has regions, which faithfulness is measured by", hint="use records with boxes")
    asked = _Asked(
        policy, sampler or LocalSampler(policy), settings or SamplingSettings(temperature=0.0, max_new_tokens=256),
        mode, config, judge, seed,
    )  # fmt: skip
    correct: list[dict[str, float]] = []
    seen: list[_Seen] = []
    starts = range(0, len(bounded), batch)
    for start in track(starts, f"faithfulness, {mode}", len(starts), is_shown=is_shown):
        part = bounded[start : start + batch]
        results = asked.answers(part)
        seen += _looks(policy, results, (reader or Reader()).probes, seed)
        correct += asked.under_changes(part, results)
    if not correct:
        raise UserError("no rule decides about these answers", hint="use records with options, numbers or short words")
    return _found(mode, correct, seen, len(records) - len(correct), seed)


def changed_record(record: Record, frame: Frame, intervention: Intervention, key: tuple[Any, ...]) -> Record:
    """The record with changed images of the same grids, and its regions in the pixels of the new images."""
    done = intervene(record.images, record.regions, frame, intervention, key)
    regions = []
    for region in record.regions:
        old, new = record.images[region.image].size, done.images[region.image].size
        across, down = new.width / old.width, new.height / old.height
        x1, y1, x2, y2 = region.box
        regions.append(replace(region, box=Box(x1 * across, y1 * down, x2 * across, y2 * down)))
    return replace(record, images=done.images, regions=tuple(regions))


@dataclass(frozen=True, slots=True)
class _Asked:
    """How records are answered and checked."""

    policy: Policy
    sampler: Sampler
    settings: SamplingSettings
    mode: str
    config: ModeConfig | None
    judge: Judge | None
    seed: int

    def answers(self, records: Sequence[Record]) -> list[ModeResult]:
        from sightline.sampling.modes import answer

        return answer(
            self.sampler, records, self.mode, self.config, speaker=self.policy, settings=self.settings,
            seed=self.seed, step=0, known=(),
        )  # fmt: skip

    def accuracies(self, results: Sequence[ModeResult]) -> list[float | None]:
        from sightline.evaluate.metrics import measure

        return [measure(result, self.judge).get("accuracy") for result in results]

    def under_changes(self, records: Sequence[Record], results: Sequence[ModeResult]) -> list[dict[str, float]]:
        """Accuracy of each record as it is and under each of CHANGES; records that no rule decides are left out."""
        columns, frame = {"original": self.accuracies(results)}, self.policy.frame
        for kind in CHANGES:
            key = (self.seed, "faithfulness")
            changed = [changed_record(r, frame, Intervention(kind), (*key, r.id)) for r in records]
            columns[kind] = self.accuracies(self.answers(changed))
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{k: v for k, v in row.items() if v is not None} for row in rows if None not in row.values()]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One reply: values of ATTENTION, and the mean effect of the image in each part of it (NaN without a token)."""

    attention: dict[str, float]
    curve: np.ndarray


def _looks(policy: Policy, results: Sequence[ModeResult], probes: Sequence[Any], seed: int) -> Iterator[_Seen]:
    """What the last reply of each result looked at."""
    from sightline.geometry.grid import membership
    from sightline.policy.packing import Packer
    from sightline.probes.layout import own_columns
    from sightline.probes.scoring import scoring_pass

    groups = [Group(record=r.record, rollouts=(r.rollouts[-1],), readings=()) for r in results]
    for group in scoring_pass(Packer(policy), groups, probes, key=(seed, "faithfulness")):
        regions, sizes = group.record.regions, [image.size for image in group.record.images]
        own = own_columns(group.rollouts[0], policy.frame)
        yield _read(group.rollouts[0], group.measurements[0], membership(regions, sizes, policy.frame), own)


def _read(rollout: Rollout, seen: Measurement, region: np.ndarray, own: slice) -> _Seen:
    """The figures of one reply; `own` are the columns of its maps that stand for the record's images."""
    on = rollout.sampled
    masses, maps = seen.probes["attention"][on].astype(np.float64), seen.maps["attention"][on][:, own]
    image = masses[:, :2].sum(axis=1)
    whole = max(float(image.mean()), 1e-12)
    attention = {
        "region_mass": float(masses[:, 0].mean()),
        "image_mass": float(image.mean()),
        "region_share": float(masses[:, 0].mean()) / whole,
        "area_share": float(region.mean()),
        "pointing": float(region[int(maps.mean(axis=0).argmax())] > 0),
        "top1_share": float((maps.max(axis=1) / np.maximum(image, 1e-12)).mean()),
    }
    assert seen.logprobs is not None
    effect = (seen.logprobs - seen.probes["contrast"])[on].astype(np.float64)
    place = ((np.arange(len(effect)) + 0.5) / len(effect) * BINS).astype(int)
    counts = np.bincount(place, minlength=BINS)
    sums = np.bincount(place, weights=effect, minlength=BINS)
    return _Seen(attention, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def _found(
    mode: str, correct: Sequence[Mapping[str, float]], seen: Sequence[_Seen], skipped: int, seed: int
) -> Faithfulness:
    columns = {name: [row[name] for row in correct] for name in ("original", *CHANGES)}
    drops = {kind: paired_difference(columns[kind], columns["original"], seed=seed) for kind in CHANGES}
    # masking the evidence costs so much more than masking as much elsewhere
    drops["difference"] = paired_difference(columns["region_mask"], columns["random_region"], seed=seed)
    curve = []
    for values in np.stack([s.curve for s in seen], axis=1):
        known = values[np.isfinite(values)]
        curve.append(mean_interval(known.tolist(), seed=seed) if len(known) else None)
    return Faithfulness(
        mode=mode,
        n=len(correct),
        skipped=skipped,
        accuracy={name: mean_interval(values, seed=seed) for name, values in columns.items()},
        drops=drops,
        attention={name: mean_interval([s.attention[name] for s in seen], seed=seed) for name in ATTENTION},
        curve=tuple(curve),
    )
