"""Groups of four numbers in a text: lists with or without brackets, two points, and `x1 y1 x2 y2` by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sightline.types import Span

__all__ = ["BY_NAME", "CORNERS", "LIMIT", "RUN", "FoundBox", "bare_boxes", "brackets", "listed_boxes", "matched_box"]

LIMIT = 1e9
"""Coordinates are cut here; beyond it they could not be stored or drawn."""

_NUMBER = r"[-+−]?(?:[0-9]++(?:\.[0-9]++)?|\.[0-9]++)"
_GAP = r"(?:\s*+[,，、;；]\s*+|\s++)"
RUN = re.compile(rf"(?<![\w.]){_NUMBER}(?:(?:{_GAP}){_NUMBER}){{3,}}")
_POINT = rf"[(\[（]\s*+({_NUMBER}){_GAP}({_NUMBER})\s*+[)\]）]"
CORNERS = re.compile(rf"{_POINT}[\s,，;]*+{_POINT}")
_PART = r"[\"']?%s[\"']?\s*+[:=]\s*+[\"']?({number})[\"']?\s*+,?\s*+".replace("{number}", _NUMBER)
BY_NAME = re.compile(
    "".join(_PART % name for name in (r"x_?(?:1|min)", r"y_?(?:1|min)", r"x_?(?:2|max)", r"y_?(?:2|max)")),
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBox:
    """Four numbers in a text, as written, with the characters that hold them."""

    written: tuple[float, float, float, float]
    span: Span
    problems: tuple[str, ...] = ()
    image: int = 0


def listed_boxes(text: str, run: re.Match[str], start: int, end: int) -> list[FoundBox]:
    """Groups of four numbers of one list; the first and the last span take in the brackets."""
    numbers = list(re.finditer(_NUMBER, run[0]))
    outer = brackets(text, Span(*run.span()), start, end)
    problems = []
    if re.search(r"\s", text[outer.start : outer.end]):
        problems.append("spaces")
    if outer.start == run.start():
        problems.append("no brackets")
    elif text[outer.start] in "(（":
        problems.append("parentheses")
    groups = [numbers[i : i + 4] for i in range(0, len(numbers) - 3, 4)]
    if len(groups) > 1:
        problems.append("several")
    if len(numbers) % 4:
        problems.append("extra numbers")
    out = []
    for place, group in enumerate(groups):
        first = outer.start if place == 0 else run.start() + group[0].start()
        last = outer.end if place == len(groups) - 1 else run.start() + group[-1].end()
        out.append(_numbers([m[0] for m in group], Span(first, last), problems))
    return out


def bare_boxes(text: str, run: re.Match[str]) -> list[FoundBox]:
    """Groups of four whole numbers, each followed by a comma, in a list without brackets."""
    out: list[FoundBox] = []
    group: list[re.Match[str]] = []
    for number in re.finditer(_NUMBER, run[0]):
        gap = run[0][group[-1].end() : number.start()] if group else ","
        if not re.fullmatch(r",\s*", gap) or "." in number[0]:
            group = []
        is_whole = "." not in number[0] and not re.match(r"\w", text[run.start() + number.end() :][:1])
        group = [*group, number] if is_whole else []
        if len(group) == 4:
            span = Span(run.start() + group[0].start(), run.start() + group[3].end())
            spaces = ["spaces"] if re.search(r"\s", text[span.start : span.end]) else []
            out.append(_numbers([m[0] for m in group], span, [*spaces, "bare"]))
            group = []
    return out


def matched_box(match: re.Match[str], problem: str) -> FoundBox:
    return _numbers(match.groups(), Span(match.start(), match.end(4)), (problem,))


def _numbers(texts: Sequence[str], span: Span, problems: Sequence[str]) -> FoundBox:
    # 64 characters decide every number that could be a coordinate.
    values = [float(t.replace("−", "-")[:64]) for t in texts]
    extra = ["floats"] if any("." in t for t in texts) else []
    if max(map(abs, values)) > LIMIT:
        extra.append("huge")
    x1, y1, x2, y2 = (min(max(v, -LIMIT), LIMIT) for v in values)
    return FoundBox(written=(x1, y1, x2, y2), span=span, problems=tuple(dict.fromkeys([*problems, *extra])))


def brackets(text: str, run: Span, start: int, end: int) -> Span:
    """The list with its brackets and the blanks inside them, as far as they are there."""
    left, right = run
    while left > start and text[left - 1].isspace():
        left -= 1
    while right < end and text[right].isspace():
        right += 1
    has_left = left > start and text[left - 1] in "[(（"
    has_right = right < end and text[right] in "])）"
    return Span(left - 1 if has_left else run.start, right + 1 if has_right else run.end)
