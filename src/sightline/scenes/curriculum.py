"""What the cold start shows: levels, question types and reply formats in their shares, packed behind one picture."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sightline.images import crop, crop_box
from sightline.language.prompts import prompt
from sightline.policy.tree import Path, Segment
from sightline.scenes.model import lattice
from sightline.scenes.questions import QuestionType, ask
from sightline.scenes.texts import reply
from sightline.scenes.world import VIEW, Background, Scene, scene_at
from sightline.train.supervised import demonstration
from sightline.types import Box, ImageRef, NextTurn, Record, Size

if TYPE_CHECKING:
    from sightline.policy.load import Policy

T = TypeVar("T")

__all__ = ["Curriculum", "Example", "Shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The part of a scene that an image shows, and whether its marks can be read there."""

    scene: Scene
    part: Box
    readable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Several questions about one picture as paths of one token tree, and what each image (by digest) shows."""

    paths: tuple[Path, ...]
    shown: Mapping[str, Shown]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """Shares of the cold start. `seed` and the number of the picture decide everything.

    Attributes:
        levels: levels of the pictures without crops.
        types: question types there; pictures with crops ask for marks.
        formats: reply formats there.
        cropped: share of pictures whose questions show crops (formats `crops` and `ground_r1`, half each).
        cropped_levels: levels of those.
        early: number of pictures at the beginning that keep to the `early_*` shares: finding the object that is asked
            about comes first, the other formats are then learned within a few dozen steps.
        questions: questions behind one picture; two where they show crops, so that rows stay of similar length.
    """

    family: str
    seed: int
    levels: Mapping[str, float] = field(default_factory=lambda: {"easy": 1.0})
    types: Mapping[QuestionType, float] = field(
        default_factory=lambda: {"mark": 0.76, "region": 0.1, "count": 0.09, "relation": 0.05}
    )
    formats: Mapping[str, float] = field(
        default_factory=lambda: {"textual": 0.32, "general": 0.08, "grounded": 0.4, "direct": 0.1, "grit": 0.1}
    )
    cropped: float = 0.25
    cropped_levels: Mapping[str, float] = field(default_factory=lambda: {"easy": 0.5, "zoom": 0.5})
    early: int = 4800
    early_types: Mapping[QuestionType, float] = field(default_factory=lambda: {"mark": 0.85, "region": 0.15})
    early_formats: Mapping[str, float] = field(default_factory=lambda: {"textual": 0.5, "grounded": 0.5})
    early_cropped: float = 0.06
    questions: int = 4

    @property
    def background(self) -> Background:
        return "gradient" if self.family == "qwen2_5_vl" else "plain"

    def write(self, box: Box, size: Size) -> list[int]:
        """Original pixels to the numbers the policy is taught: whole pixels of its view, in the family's frame."""
        values = lattice(self.family)
        relative = (box.x1 / size.width, box.y1 / size.height, box.x2 / size.width, box.y2 / size.height)
        return [values[min(max(round(v * VIEW), 0), VIEW)] for v in relative]

    def example(self, number: int, policy: Policy) -> Example:
        """Picture `number` with its questions, encoded for one policy."""
        rng = random.Random(f"sightline curriculum {self.seed} {number}")
        is_early = number < self.early
        types, formats = (self.early_types, self.early_formats) if is_early else (self.types, self.formats)
        is_cropped = rng.random() < (self.early_cropped if is_early else self.cropped)
        level = _drawn(rng, self.cropped_levels if is_cropped else self.levels)
        scene = scene_at(level, "train", self.seed, number, self.background)
        whole = Shown(scene=scene, part=Box(0, 0, scene.side, scene.side), readable=level != "zoom")
        shown: dict[str, Shown] = {}
        image: ImageRef | None = None
        paths: list[Path] = []
        for k in range(2 if is_cropped else self.questions):
            kind = "mark" if is_cropped else _drawn(rng, types)
            style = rng.choice(("crops", "ground_r1")) if is_cropped else _drawn(rng, formats)
            record = ask(scene, kind, k, image)
            image = record.images[0]
            shown[image.digest] = whole
            parts = self._parts(rng, record)[: 1 if style == "ground_r1" else 2] if is_cropped else []
            crops = [crop(image, part, min_side=1) for part in parts]
            shown |= {c.digest: Shown(scene=scene, part=part) for c, part in zip(crops, parts, strict=True)}
            paths.append(self._path(k, record, style, crops, policy))
        return Example(paths=tuple(paths), shown=shown)

    def _path(self, k: int, record: Record, style: str, crops: Sequence[ImageRef], policy: Policy) -> Path:
        """The picture as the shared segment, then question and reply as one segment of their own."""
        first, *later = reply(record, style, lambda box: self.write(box, record.images[0].size))
        shown = (*record.images, *crops) if style == "crops" else record.images
        turns: list[str | NextTurn] = [first]
        for text in later:
            turns += [NextTurn("", (crops[0],)), text]
        asked = prompt(record, style, style, policy.style, images=shown)
        rollout = demonstration(policy, asked, turns, branch=k)
        cut = int(np.flatnonzero(rollout.prompt_ids == policy.image_token)[0])
        cut += policy.frame.tokens(record.images[0].size) + 1
        head, tail = rollout.prompt_ids[:cut], rollout.prompt_ids[cut:]
        question = Segment(
            ("question", k),
            np.concatenate([tail, rollout.ids]),
            np.concatenate([np.zeros(len(tail), bool), rollout.sampled]),
            (*shown[1:], *rollout.images),
        )
        return Path((Segment(("picture",), head, np.zeros(cut, bool), record.images), question), response=1)

    def _parts(self, rng: random.Random, record: Record) -> list[Box]:
        """What crops show: a loosely predicted box with some margin; sometimes the union with a second object."""
        size, box = record.images[0].size, record.regions[0].box
        slack = 0.12 * box.width
        moved = Box(*(v + rng.uniform(-slack, slack) for v in box))
        first = crop_box(moved, size, rng.choice((0.0, 0.1, 0.2, 0.3)))
        if rng.random() < 0.6:
            return [first]
        other = Box(*rng.choice(record.meta["objects"])["box"])
        union = Box(min(first.x1, other.x1), min(first.y1, other.y1), max(first.x2, other.x2), max(first.y2, other.y2))
        return [first, union]


def _drawn(rng: random.Random, shares: Mapping[T, float]) -> T:
    return rng.choices(list(shares), list(shares.values()))[0]
