"""Blindness probe: the answer's log-prob must change when the image is blanked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sightline.doctor.finding import Finding, Picture

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.types import ImageRef, Record

__all__ = ["Sighted", "blindness_probe", "sighted"]

LEAST = 1e-4
"""Nats of a whole answer. Rounding of fp32 stays far below, and any image that gets through far above."""

CERTAIN = -0.01
"""Log-prob of an answer above which there is nothing left to gain from an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighted:
    """The log-prob of a record's answer (nats, all its tokens) with its images, and with images filled with black."""

    record: Record
    seen: float
    blank: float
    blanks: tuple[ImageRef, ...]

    @property
    def gain(self) -> float:
        return self.seen - self.blank


def blindness_probe(policy: Policy, records: Sequence[Record], *, template: str = "direct") -> Finding:
    """Compares each record's own answer with and without what its images show."""
    measured = sighted(policy, [record for record in records if record.images], template=template)
    if not measured:
        return Finding(
            level="warn", what="no record of the sample has an image that could be blanked",
            meaning="whether the policy sees was not tested",
            command="sightline doctor RECIPE --only blindness --sample 64",
        )  # fmt: skip
    lines = tuple(
        f"{one.record.id}: log p({one.record.answer!r}) {one.seen:.3f}, image blanked {one.blank:.3f}"
        for one in measured
    )
    broken = sum(not np.isfinite(one.gain) for one in measured)
    if broken:
        return Finding(
            level="fail", what=f"the answer's log-prob is no number in {broken} of {len(measured)} records",
            meaning="the weights or the computation overflow: every update would be lost",
            command="sightline doctor RECIPE --only weights parity", details=lines,
            values={"broken": broken, "records": len(measured)},
        )  # fmt: skip
    pictures = tuple(picture for one in measured[:2] for picture in _pictures(one))
    return replace(_judged(measured), details=lines, pictures=pictures)


def _judged(measured: Sequence[Sighted]) -> Finding:
    """What the changes of log-probs mean."""
    open_to = [one for one in measured if min(one.seen, one.blank) < CERTAIN]
    unmoved = sum(abs(one.gain) < LEAST for one in open_to)
    gains = np.array([one.gain for one in measured])
    gain, better = float(gains.mean()), int((gains > 0).sum())
    error = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else abs(gain)
    values = {"gain_nats": gain, "standard_error": error, "unmoved": unmoved, "records": len(measured)}
    if unmoved:
        return Finding(
            level="fail",
            what=f"blanking the image leaves the answer's log-prob unchanged in {unmoved} of {len(open_to)} records",
            meaning="the images do not reach the language model: every gain would come from the text alone",
            command="sightline doctor RECIPE --only weights tokens coordinates", values=values,
        )  # fmt: skip
    if not open_to:
        return Finding(
            level="warn", what=f"all {len(measured)} answers are certain with and without their images",
            meaning="whether the policy sees was not tested, and there is nothing to gain on such records",
            command=f"sightline doctor RECIPE --only blindness --sample {8 * len(measured)}", values=values,
        )  # fmt: skip
    said = (
        f"the image changes the answer's log-prob by {gain:+.2f} ± {error:.2f} nats on average, "
        f"{better} of {len(measured)} up"
    )
    if gain <= -error:
        return Finding(
            level="warn", what=said,
            meaning="the policy reacts to images but does not use them for these answers: expected of random weights, "
            "odd for a trained policy",
            command="sightline doctor RECIPE --only blindness --sample 64", values=values,
        )  # fmt: skip
    meaning = "the policy sees, and what it sees helps" if gain > error else (
        "the images reach the language model; whether they help these answers is too close to tell from so few"
    )  # fmt: skip
    return Finding(level="pass", what=said, meaning=meaning, values=values)


def sighted(policy: Policy, records: Sequence[Record], *, template: str = "direct") -> list[Sighted]:
    """Log-probs of every record's answer in the answer block of a reply, by one scoring pass over all of them.

    Records whose images are black from the beginning are left out.
    """
    from sightline.interventions import Intervention, intervene
    from sightline.language.prompts import prompt
    from sightline.policy.packing import Packer
    from sightline.probes.scoring import scoring_pass
    from sightline.train.supervised import demonstration
    from sightline.types import Group

    groups, blanks, kept = [], [], []
    for record in records:
        shown = prompt(record, "direct", template, policy.style, forced_prefix="<answer>", frame=policy.frame)
        blanked = intervene(record.images, (), policy.frame, Intervention("blank"))
        if not any(done.changed for done in blanked.provenance):
            continue  # black from the beginning
        empty = blanked.images
        blanks.append(empty)
        kept.append(record)
        for one in (shown, replace(shown, images=empty)):
            rollout = demonstration(policy, one, [f" {record.answer} </answer>"])
            groups.append(Group(record=record, rollouts=(rollout,), readings=()))
    scored = scoring_pass(Packer(policy), groups) if groups else []
    values = []
    for group in scored:
        logprobs = group.measurements[0].logprobs
        assert logprobs is not None
        answer = policy.tokenizer(f" {group.record.answer}", add_special_tokens=False)["input_ids"]
        values.append(float(np.sum(logprobs[: len(answer)], dtype=np.float64)))
    return [
        Sighted(record=record, seen=values[2 * i], blank=values[2 * i + 1], blanks=blanks[i])
        for i, record in enumerate(kept)
    ]


def _pictures(one: Sighted) -> tuple[Picture, ...]:
    said = one.record.question.splitlines()[0][:120]
    return (
        Picture(title=said, image=one.record.images[0], note=f"log p({one.record.answer!r}) = {one.seen:.3f}"),
        Picture(title="blanked", image=one.blanks[0], note=f"log p({one.record.answer!r}) = {one.blank:.3f}"),
    )
