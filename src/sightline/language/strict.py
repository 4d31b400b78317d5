"""Readings that agree to the letter with published releases. The presets that reproduce those releases use them.

They keep the oddities of the originals on purpose: numbers stay in model coordinates, nothing is repaired, and a box
written with blanks or decimals does not exist. `sightline.language.parse.read` is what everything else uses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["IntegerBox", "StrictReading", "comma_lists", "first_bracketed", "strict_read"]

IntegerBox = tuple[int, int, int, int]

_HUGE = 10**9  # stands for integers of more than 15 digits, which Python converts slowly or not at all


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictReading:
    """A reply as the released reward code of iVGR (arXiv 2605.31096) reads it.

    Attributes:
        text: the reply after white space around every `<`, `>` and `/` is deleted.
        is_formatted: the whole text is a think block, anything, an answer block.
        think: content of the first think block.
        answer: content of the first answer block.
        boxes: boxes in model coordinates, from tags that begin with `[d,d,d,d]`; reversed ones included.
        tags: number of box tags.
    """

    text: str
    is_formatted: bool
    think: str | None
    answer: str | None
    boxes: tuple[IntegerBox, ...]
    tags: int

    @property
    def valid_boxes(self) -> tuple[IntegerBox, ...]:
        """The boxes with x1 < x2 and y1 < y2."""
        return tuple(b for b in self.boxes if b[0] < b[2] and b[1] < b[3])

    @property
    def valid(self) -> int:
        """Number of valid boxes."""
        return len(self.valid_boxes)


def strict_read(text: str) -> StrictReading:
    """Reads a reply as the iVGR release does.

    Text before the think block or after the last answer tag breaks the format; repeated blocks, empty blocks and
    text between blocks do not. Boxes count wherever their tag stands; of a tag that holds several, the first counts.

    Example:
        >>> boxes = "<box>[1,2,30,40]</box> or <box>[1, 2,3,4]</box>"
        >>> r = strict_read(f"<think> {boxes} </think> <answer> x / y </answer>")
        >>> r.is_formatted, r.answer, r.boxes, r.tags, r.valid
        (True, 'x/y', ((1, 2, 30, 40),), 2, 1)
    """
    glued = _glued(text)
    contents = _blocks(glued, "box")
    found = (re.match(r"\[(\d+),(\d+),(\d+),(\d+)\]", content) for content in contents)
    return StrictReading(
        text=glued,
        is_formatted=_is_formatted(glued),
        think=next(iter(_blocks(glued, "think", limit=1)), None),
        answer=next(iter(_blocks(glued, "answer", limit=1)), None),
        boxes=tuple(_integers(m) for m in found if m),
        tags=len(contents),
    )


def comma_lists(text: str) -> tuple[IntegerBox, ...]:
    """Four whole numbers with commas, as the detector of GRIT (arXiv 2505.15879) finds them; signs are not seen.

    Example:
        >>> comma_lists("(1, 2, 3, 4), [10.5, 20, 30, 40.2], -9,8,7,6 and [0.1, 0.2, 0.3, 0.4]")
        ((1, 2, 3, 4), (5, 20, 30, 40), (9, 8, 7, 6))
    """
    pattern = r"\b(\d++),\s*+(\d++),\s*+(\d++),\s*+(\d++)\b"
    return tuple(_integers(m) for m in re.finditer(pattern, text))


def first_bracketed(text: str) -> tuple[float, float, float, float] | None:
    """The first bracketed list of four unsigned numbers, as Ground-R1 (arXiv 2505.20272) looks for its box.

    Example:
        >>> first_bracketed("<think> at [1, 2.5, 3, 4] </think><box>[5,6,7,8]</box>")
        (1.0, 2.5, 3.0, 4.0)
    """
    number = r"\s*+(\d++(?:\.\d++)?)\s*+"
    found = re.search(rf"\[{','.join([number] * 4)}\]", text)
    if found is None:
        return None
    x1, y1, x2, y2 = (float(t[:64]) for t in found.groups())
    return x1, y1, x2, y2


def _glued(text: str) -> str:
    """Same as replacing `\\s*([<>/])\\s*` by the character, in linear time."""
    first, *rest = re.split(r"([<>/])", text)
    if not rest:
        return text
    *middle, last = rest
    return first.rstrip() + "".join(part.strip() for part in middle) + last.lstrip()


def _is_formatted(glued: str) -> bool:
    """Same as a full match of `<think>.*</think>.*<answer>.*</answer>` with greedy dots, in linear time."""
    if not glued.startswith("<think>") or not glued.endswith("</answer>"):
        return False
    closed = glued.find("</think>", len("<think>"))
    opened = glued.find("<answer>", closed + len("</think>")) if closed >= 0 else -1
    return opened >= 0 and opened + len("<answer>") <= len(glued) - len("</answer>")


def _blocks(text: str, tag: str, limit: int | None = None) -> list[str]:
    """Contents of non-greedy blocks, as `findall` of `<tag>(.*?)</tag>` gives them, in linear time."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    out: list[str] = []
    start = text.find(opening)
    while start >= 0 and (limit is None or len(out) < limit):
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        out.append(text[start + len(opening) : end])
        start = text.find(opening, end + len(closing))
    return out


def _integers(match: re.Match[str]) -> IntegerBox:
    x1, y1, x2, y2 = (int(t) if len(t) <= 15 else _HUGE for t in match.groups())
    return x1, y1, x2, y2
