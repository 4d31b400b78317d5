"""Checks what a text says about a scene against what was drawn, word by word.

This is the measuring side: it knows the scene and shares no code with the judges that give rewards, so that a metric
cannot be gamed through a judge's blind spot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sightline.types import Record

__all__ = ["Claim", "claims", "right_region", "true_share"]

_ROWS: Mapping[str, str] = {"top": "top", "upper": "top", "middle": "middle", "bottom": "bottom", "lower": "bottom"}
_COLUMNS: Mapping[str, str] = {"left": "left", "center": "center", "centre": "center", "right": "right"}
_TAG = re.compile(r"</?[A-Za-z_]+>|\[[\d\s.,-]*\]|\{[^{}]*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing a text says about one object: `kind` is `region` or `mark`; `holds` is what the scene says to it."""

    subject: str
    kind: str
    value: str
    holds: bool


def claims(text: str, record: Record) -> tuple[Claim, ...]:
    """The checkable claims of a text: where named objects are, and the colour of their marks.

    An object is named by its colour and shape; `it` stands for the last one named. A name that the scene does not hold
    makes its claims false.

    Example:
        >>> truth = {"color": "red", "shape": "square", "mark": "lime", "region": ["top", "left"], "box": [0, 0, 9, 9]}
        >>> record = Record(id="s", question="?", answer="lime", meta={"objects": [truth], "targets": [0]})
        >>> [(c.kind, c.holds) for c in claims("The red square is at the top right. The mark on it is lime.", record)]
        [('region', False), ('mark', True)]
    """
    things = {f"{t['color']} {t['shape']}": t for t in record.meta.get("objects", ())}
    colors, shapes, marks = _vocabulary()
    found: list[Claim] = []
    subject = ""
    for sentence in _sentences(text):
        words = re.findall(r"[a-z]+", sentence)
        named = [f"{a} {b}" for a, b in pairwise(words) if a in colors and b in shapes]
        subject = named[0] if named else subject
        if subject:
            found.extend(_of_sentence(words, subject, things.get(subject), marks))
    return tuple(found)


def right_region(text: str, record: Record) -> bool | None:
    """Whether the text names the right one of nine regions for every object the question needs.

    Each needed object must be placed, each time rightly; None for a Record without scene truth or without such objects.

    Example:
        >>> truth = {"color": "red", "shape": "square", "mark": "lime", "region": ["top", "left"], "box": [0, 0, 9, 9]}
        >>> record = Record(id="s", question="?", answer="lime", meta={"objects": [truth], "targets": [0]})
        >>> right_region("The red square in the upper left has a lime mark.", record)
        True
    """
    things, targets = record.meta.get("objects"), record.meta.get("targets")
    if not things or not targets:
        return None
    said = [c for c in claims(text, record) if c.kind == "region"]
    for i in set(targets):
        own = [c for c in said if c.subject == f"{things[i]['color']} {things[i]['shape']}"]
        if not own or not all(c.holds for c in own):
            return False
    return True


def true_share(text: str, record: Record) -> float | None:
    """Share of the claims that hold, None if there are none."""
    found = claims(text, record)
    return sum(c.holds for c in found) / len(found) if found else None


def _sentences(text: str) -> Iterator[str]:
    for part in re.split(r"[.!?;\n]+", _TAG.sub(" ", text.lower())):
        if part.strip():
            yield part


def _vocabulary() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    from sightline.scenes.world import COLORS, MARKS, SHAPES

    return frozenset(COLORS), frozenset(SHAPES), frozenset(MARKS)


def _of_sentence(
    words: list[str], subject: str, thing: Mapping[str, Any] | None, marks: frozenset[str]
) -> Iterator[Claim]:
    rows = {_ROWS[w] for w in words if w in _ROWS}
    columns = {_COLUMNS[w] for w in words if w in _COLUMNS}
    if rows or columns:
        if not rows and "center" in columns:  # "in the center" alone is the middle of the picture
            rows = {"middle"}
        if not columns and "middle" in rows:
            columns = {"center"}
        is_right = thing is not None and rows == {thing["region"][0]} and columns == {thing["region"][1]}
        said = " ".join([*sorted(rows), *sorted(columns)])
        yield Claim(subject=subject, kind="region", value=said, holds=is_right)
    if "mark" in words:
        for word in words:
            if word in marks:
                holds = thing is not None and thing["mark"] == word
                yield Claim(subject=subject, kind="mark", value=word, holds=holds)
