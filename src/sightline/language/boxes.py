"""Boxes in a text, in whatever form a model writes them. Never fails; what was normalised is named.

Read are, in this order of trust: the content of `<box>` tags (also `<bbox>` and `<|box_start|>`), values of JSON keys
such as `bbox_2d`, objects with `x1 y1 x2 y2`, lists of four numbers in brackets, and four whole numbers with commas
and nothing around them (as the detector of GRIT, arXiv 2505.15879, reads them). Numbers stay as they were written;
`sightline.language.parse` carries them to original pixels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from sightline.language.number_lists import (
    BY_NAME,
    CORNERS,
    RUN,
    FoundBox,
    bare_boxes,
    brackets,
    listed_boxes,
    matched_box,
)
from sightline.types import Span

__all__ = ["BOX_PROBLEMS", "FoundBox", "FoundBoxes", "find_boxes"]

BOX_PROBLEMS: Mapping[str, str] = {
    "spaces": "blanks between the numbers or brackets",
    "floats": "decimals where whole numbers are expected",
    "fractions": "decimals between 0 and 1, read as shares of the image",
    "json": "the value of a JSON key, or an object with x1, y1, x2, y2",
    "untagged": "in brackets, without tag or key",
    "bare": "four numbers with neither brackets nor tag",
    "parentheses": "round brackets",
    "no brackets": "numbers in a tag without brackets",
    "corners": "two points instead of four numbers",
    "several": "more than one box in the same tag or list",
    "extra numbers": "numbers are left over after groups of four",
    "unclosed tag": "the tag is not closed",
    "huge": "a number too large to be a coordinate",
    "negative": "a coordinate below 0",
    "reversed": "the first corner lies right of or below the second",
    "outside": "a coordinate beyond the image",
    "empty": "no area inside the image",
    "no image": "the image it refers to does not exist",
}
"""Every problem a box may carry, with its meaning."""

_TAG = re.compile(r"<\s*+(/?)\s*+(?:b?box)(?![\w-])([^<>]*+)>|<\|box_(?:start|(end))\|>", re.IGNORECASE)
_KEY = re.compile(
    r"[\"']?(?:bbox(?:_?2d)?|box(?:_?2d)?|bounding_box|b?boxes|coordinates?|coords?)(?:_?[0-9]+)?[\"']?\s*+[:=]\s*+[\[(\"'\s]*$",
    re.IGNORECASE,
)
_IMAGE = re.compile(
    r"(?:image|img|target_image)(?:_?(?:index|idx|id))?[\"']?\s*+[:=]\s*+[\"']?([0-9]{1,6})\b", re.IGNORECASE
)
_BETWEEN_SIBLINGS = re.compile(r"[\[\](),，\s]*")
_REACH = 200  # how far from a list its key and its image index may stand, characters


class FoundBoxes(NamedTuple):
    """All boxes of a text in order, and the box tags that hold none."""

    boxes: tuple[FoundBox, ...]
    unreadable: tuple[Span, ...]


class _TagRange(NamedTuple):
    span: Span
    content: Span
    is_closed: bool
    attributes: str


def find_boxes(text: str) -> FoundBoxes:
    """Finds every box in a text.

    Example:
        >>> found = find_boxes('the cup <box>[12, 30,40,58]</box> and {"bbox_2d": [1,2,3,4]} but <box>here</box>')
        >>> [(b.written, b.problems) for b in found.boxes]
        [((12.0, 30.0, 40.0, 58.0), ('spaces',)), ((1.0, 2.0, 3.0, 4.0), ('json',))]
        >>> found.unreadable
        (Span(start=65, end=80),)
    """
    out: list[FoundBox] = []
    unreadable: list[Span] = []
    start = 0
    for tag in _tag_ranges(text):
        out.extend(_outside(text, start, tag.span.start))
        inside, end = _inside(text, tag)
        out.extend(inside)
        if not inside:
            unreadable.append(tag.span if tag.is_closed else Span(tag.span.start, tag.content.start))
        start = end
    out.extend(_outside(text, start, len(text)))
    return FoundBoxes(tuple(out), tuple(unreadable))


def _tag_ranges(text: str) -> Iterable[_TagRange]:
    """Each opening box tag up to its closing tag, or up to the next tag if it is not closed."""
    matches = list(_TAG.finditer(text))
    for match, following in itertools.zip_longest(matches, matches[1:]):
        if match[1] or match[3]:
            continue
        attributes = match[2] or ""
        if following is not None and (following[1] or following[3]):
            yield _TagRange(
                Span(match.start(), following.end()), Span(match.end(), following.start()), True, attributes
            )
        else:
            end = following.start() if following else len(text)
            yield _TagRange(Span(match.start(), end), Span(match.end(), end), False, attributes)


def _inside(text: str, tag: _TagRange) -> tuple[list[FoundBox], int]:
    """The boxes of one tag and where reading goes on. An unclosed tag holds at most the list right behind it."""
    start, end = tag.content
    if not tag.is_closed:
        ahead = re.compile(r"[\s\[(]*+").match(text, start, end)
        run = RUN.match(text, ahead.end(), end) if ahead else None
        if run is None:
            return [], start
        end = brackets(text, Span(*run.span()), start, end).end
    found = [box for run in RUN.finditer(text, start, end) for box in listed_boxes(text, run, start, end)]
    if not found:
        found = [matched_box(m, "corners") for m in CORNERS.finditer(text, start, end)]
    if not found:
        found = [matched_box(m, "json") for m in BY_NAME.finditer(text, start, end)]
    if not found:
        return [], start if not tag.is_closed else tag.span.end
    extra = [] if tag.is_closed else ["unclosed tag"]
    if len(found) > 1:
        extra.append("several")
    image = _IMAGE.search(tag.attributes)
    found = [_noted(replace(b, image=int(image[1]) if image else 0), extra) for b in found]
    last = tag.span.end if tag.is_closed else end
    found[0] = replace(found[0], span=Span(tag.span.start, found[0].span.end))
    found[-1] = replace(found[-1], span=Span(found[-1].span.start, last))
    return found, last


def _outside(text: str, start: int, end: int) -> list[FoundBox]:
    """The boxes of a stretch without box tags."""
    out: list[FoundBox] = [
        _noted(matched_box(m, "json"), (), image=_image_near(text, Span(*m.span()), start, end))
        for m in BY_NAME.finditer(text, start, end)
    ]
    listed_until = -1  # end of the last list that belongs to a JSON key
    for run in RUN.finditer(text, start, end):
        outer = brackets(text, Span(*run.span()), start, end)
        before = max(start, outer.start - _REACH)
        key = _KEY.search(text, before, run.start())
        is_sibling = listed_until >= before and _BETWEEN_SIBLINGS.fullmatch(text, listed_until, run.start())
        if key or is_sibling:
            listed_until = outer.end
            found = [_noted(b, ("json",)) for b in listed_boxes(text, run, start, end)]
            if key:
                found[0] = replace(found[0], span=Span(key.start(), found[0].span.end))
            image = _image_near(text, outer, start, end)
            out.extend(replace(b, image=image) for b in found)
        elif outer.start < run.start():
            out.extend(_noted(b, ("untagged",)) for b in listed_boxes(text, run, start, end))
        else:
            out.extend(bare_boxes(text, run))
    return sorted(out, key=lambda box: box.span)


def _noted(box: FoundBox, problems: Iterable[str], image: int | None = None) -> FoundBox:
    merged = tuple(dict.fromkeys([*box.problems, *problems]))
    return replace(box, problems=merged, image=box.image if image is None else image)


def _image_near(text: str, span: Span, start: int, end: int) -> int:
    """The image index of the JSON object around a list; 0 if it names none."""
    opening = text.rfind("{", max(start, span.start - _REACH), span.start)
    closing = text.find("}", span.end, min(end, span.end + _REACH))
    if opening < 0:
        return 0
    found = _IMAGE.search(text, opening, closing if closing >= 0 else span.end)
    return int(found[1]) if found else 0
