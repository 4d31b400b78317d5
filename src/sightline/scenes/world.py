"""Procedural scenes: a few coloured shapes, each with one small round mark, drawn with Pillow.

Everything is measured in *view* pixels, those of the 96 x 96 image the embedded policy sees, and drawn in an original
that is `Level.scale` times larger. Boxes are integer pixels of the original, so what a box says is what was drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sightline.errors import UserError
from sightline.types import Box

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "COLORS",
    "GENERATOR",
    "LEVELS",
    "MARKS",
    "SHAPES",
    "VIEW",
    "Background",
    "Level",
    "Scene",
    "Split",
    "Thing",
    "draw",
    "level_of",
    "scene_at",
]

GENERATOR = 1
"""Version of the generator; it is part of the seed, so a change of the drawing never passes for the same data."""

VIEW = 96
"""Side of the policy's view in pixels."""

Split = Literal["train", "validation", "test"]
Background = Literal["plain", "gradient"]

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (30, 140, 50),
    "blue": (40, 70, 210),
    "yellow": (240, 215, 50),
    "purple": (130, 50, 170),
    "orange": (240, 140, 40),
}
MARKS: Mapping[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "pink": (255, 150, 200),
    "cyan": (60, 220, 230),
    "lime": (150, 255, 60),
    "brown": (110, 65, 30),
}
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard a scene is: number of objects, side of their boxes and radius of the marks in view pixels."""

    name: str
    scale: int
    objects: tuple[int, int]
    sides: tuple[int, int]
    radius: float


LEVELS: Mapping[str, Level] = {
    "easy": Level(name="easy", scale=2, objects=(2, 4), sides=(20, 36), radius=4.0),
    "hard": Level(name="hard", scale=2, objects=(4, 6), sides=(14, 26), radius=2.0),
    "zoom": Level(name="zoom", scale=6, objects=(3, 5), sides=(12, 18), radius=0.33),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object of a scene; no two of a scene share colour and shape."""

    color: str
    shape: str
    mark: str
    box: Box

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The objects of one picture, in drawing order; `key` names the picture uniquely."""

    key: str
    level: str
    side: int
    things: tuple[Thing, ...]
    background: Background = "plain"


def level_of(name: str) -> Level:
    """The level of that name, or a UserError that lists them."""
    if name not in LEVELS:
        raise UserError(f"unknown level {name!r}", where="scenes", hint=f"one of {', '.join(LEVELS)}")
    return LEVELS[name]


def scene_at(level: str, split: Split, seed: int, index: int, background: Background = "plain") -> Scene:
    """Scene number `index` of an endless sequence, without making those before it.

    Level, split, seed and index all enter the random seed as one string, so the splits cannot share a scene.

    Example:
        >>> scene_at("hard", "test", 0, 7) == scene_at("hard", "test", 0, 7)
        True
    """
    knobs = level_of(level)
    key = f"{level}-{split}-{seed}-{index}"
    rng = random.Random(f"sightline scene {GENERATOR} {key}")
    n = rng.randint(*knobs.objects)
    boxes = _place(rng, n, knobs)
    names = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], len(boxes))
    things = tuple(
        Thing(color=color, shape=shape, mark=rng.choice(list(MARKS)), box=box)
        for (color, shape), box in zip(names, boxes, strict=True)
    )
    return Scene(key=key, level=level, side=VIEW * knobs.scale, things=things, background=background)


def _place(rng: random.Random, n: int, knobs: Level) -> list[Box]:
    """`n` square boxes at least two view pixels apart; starts over when a draw leaves no room."""
    side, gap = VIEW * knobs.scale, 2 * knobs.scale
    low, high = (s * knobs.scale for s in knobs.sides)
    while True:
        boxes: list[Box] = []
        for _ in range(40 * n):
            s = rng.randint(low, high)
            x, y = rng.randint(1, side - s - 1), rng.randint(1, side - s - 1)
            if all(x + s + gap <= b.x1 or b.x2 + gap <= x or y + s + gap <= b.y1 or b.y2 + gap <= y for b in boxes):
                boxes.append(Box(x, y, x + s, y + s))
                if len(boxes) == n:
                    return boxes


def _outline(shape: str, box: Box) -> Sequence[tuple[float, float]]:
    cx, cy = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    if shape == "triangle":
        return [(cx, box.y1), (box.x2, box.y2), (box.x1, box.y2)]
    return [(cx, box.y1), (box.x2, cy), (cx, box.y2), (box.x1, cy)]


def draw(scene: Scene) -> np.ndarray:
    """The picture as uint8 pixels (side, side, 3).

    The gradient background tells the position in colour (red falls from left to right, green from top to bottom), for
    a vision tower that has no table of absolute positions.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    side, radius = scene.side, LEVELS[scene.level].radius * LEVELS[scene.level].scale
    if scene.background == "plain":
        image = Image.new("RGB", (side, side), (225, 225, 225))
    else:
        ramp = np.linspace(235, 95, side).round().astype(np.uint8)
        pixels = np.full((side, side, 3), 170, dtype=np.uint8)
        pixels[:, :, 0], pixels[:, :, 1] = ramp[None, :], ramp[:, None]
        image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        b, color = thing.box, COLORS[thing.color]
        corners = (b.x1, b.y1, b.x2 - 1, b.y2 - 1)
        if thing.shape == "circle":
            pen.ellipse(corners, fill=color)
        elif thing.shape == "square":
            pen.rectangle(corners, fill=color)
        else:
            pen.polygon(_outline(thing.shape, Box(*corners)), fill=color)
        cx, cy = (
            (corners[0] + corners[2]) / 2,
            corners[1] + (corners[3] - corners[1]) * (0.64 if thing.shape == "triangle" else 0.5),
        )
        pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=MARKS[thing.mark])
    return np.asarray(image)
