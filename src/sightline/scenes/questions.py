"""Questions about a scene, as Records: mark colour, count, relation, region."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from sightline.errors import UserError
from sightline.geometry.grid import region_name
from sightline.scenes.world import COLORS, GENERATOR, SHAPES, Scene, Thing, draw
from sightline.types import ImageRef, Record, Region, Size

__all__ = ["TYPES", "QuestionType", "ask", "picture", "plural"]

QuestionType = Literal["mark", "count", "relation", "region"]
TYPES: tuple[QuestionType, ...] = ("mark", "count", "relation", "region")
SIDES = ("left of", "right of", "above", "below")


def plural(word: str) -> str:
    return f"{word} objects" if word in COLORS else f"{word}s"


def picture(scene: Scene) -> ImageRef:
    """The drawn scene as an image in memory."""
    from sightline.images import image_ref

    return image_ref(draw(scene))


def ask(scene: Scene, kind: QuestionType, number: int = 0, image: ImageRef | None = None) -> Record:
    """Question `number` of one type about a scene; `number` 0, 1, ... go through the objects in a shuffled order.

    `meta` holds the truth: `objects` (colour, shape, mark, box, region words of each), `targets` (indices of those the
    question needs), `type`, `level`, `side`.
    """
    rng = random.Random(f"sightline question {GENERATOR} {scene.key} {kind}")
    order = rng.sample(range(len(scene.things)), len(scene.things))
    first = order[number % len(order)]
    if kind == "mark":
        name = scene.things[first].name
        words, answer, targets = f"What color is the mark on the {name}?", scene.things[first].mark, [first]
    elif kind == "region":
        row, column = region_name(scene.things[first].box, Size(scene.side, scene.side))
        words, answer, targets = f"Where is the {scene.things[first].name}?", f"{row} {column}", [first]
    elif kind == "count":
        words, answer, targets = _count(scene, rng, number)
    elif kind == "relation":
        words, answer, targets = _relation(scene, rng, order, number)
    else:
        raise UserError(f"unknown question type {kind!r}", where="scenes", hint=f"one of {', '.join(TYPES)}")
    regions = tuple(
        Region(box=t.box, label=t.name, role="evidence") for t in (scene.things[i] for i in sorted(set(targets)))
    )
    return Record(
        id=f"{scene.key}-{kind}-{number}",
        question=words,
        answer=answer,
        answer_kind={"count": "number", "relation": "yes_no"}.get(kind, "text"),  # type: ignore[arg-type]
        images=(image or picture(scene),),
        regions=regions,
        meta={
            "type": kind,
            "level": scene.level,
            "side": scene.side,
            "targets": targets,
            "objects": [_truth(t, scene.side) for t in scene.things],
        },
    )


def _count(scene: Scene, rng: random.Random, number: int) -> tuple[str, str, list[int]]:
    words = rng.sample([*COLORS, *SHAPES], len(COLORS) + len(SHAPES))
    present = [w for w in words if any(w in (t.color, t.shape) for t in scene.things)]
    word = words[number % len(words)] if rng.random() < 0.2 else present[number % len(present)]
    targets = [i for i, t in enumerate(scene.things) if word in (t.color, t.shape)]
    return f"How many {plural(word)} are there?", str(len(targets)), targets


def _relation(scene: Scene, rng: random.Random, order: Sequence[int], number: int) -> tuple[str, str, list[int]]:
    i, j = order[number % len(order)], order[(number + 1) % len(order)]
    a, b = scene.things[i], scene.things[j]
    dx, dy = (a.box.x1 + a.box.x2) - (b.box.x1 + b.box.x2), (a.box.y1 + a.box.y2) - (b.box.y1 + b.box.y2)
    side = rng.choice(SIDES[:2] if abs(dx) >= abs(dy) else SIDES[2:])  # ask along the clearer axis
    holds = {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[side]
    return f"Is the {a.name} {side} the {b.name}?", "yes" if holds else "no", [i, j]


def _truth(thing: Thing, side: int) -> dict[str, object]:
    return {
        "color": thing.color,
        "shape": thing.shape,
        "mark": thing.mark,
        "box": list(thing.box),
        "region": list(region_name(thing.box, Size(side, side))),
    }
