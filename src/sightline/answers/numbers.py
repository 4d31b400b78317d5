"""Numbers as people write them: digits, thousands commas, fractions, percent, number words, units.

Only what a short final answer needs; expressions belong to the math rules.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from sightline.answers.lexicon import word_list

__all__ = ["NUMBER_WORDS", "Quantity", "number", "quantities", "word_number"]

_ONES = word_list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = word_list("twenty thirty forty fifty sixty seventy eighty ninety")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}

NUMBER_WORDS: dict[str, int] = {
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 20 + 10 * i for i, word in enumerate(_TENS)},
    "none": 0,
    "dozen": 12,
}

# Unit -> (dimension, size in the base unit of the dimension).
_UNITS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("mm", "millimeter", "millimetre"), ("length", 1e-3)),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), ("length", 1e-2)),
    **dict.fromkeys(("m", "meter", "metre"), ("length", 1.0)),
    **dict.fromkeys(("km", "kilometer", "kilometre"), ("length", 1e3)),
    **dict.fromkeys(("ft", "foot", "feet"), ("length", 0.3048)),
    **dict.fromkeys(("inch", "inches"), ("length", 0.0254)),
    **dict.fromkeys(("g", "gram"), ("mass", 1e-3)),
    **dict.fromkeys(("kg", "kilogram"), ("mass", 1.0)),
    **dict.fromkeys(("s", "sec", "second"), ("time", 1.0)),
    **dict.fromkeys(("min", "minute"), ("time", 60.0)),
    **dict.fromkeys(("h", "hr", "hour"), ("time", 3600.0)),
    **dict.fromkeys(("%", "percent"), ("share", 1.0)),
    **dict.fromkeys(("°", "degree", "deg"), ("angle", 1.0)),
}

_DIGITS = re.compile(
    r"(?<![\w.,])(?P<sign>[-+−]\s?)?[$€£]?(?:(?P<top>\d+)\s?/\s?(?P<bottom>\d+)"
    r"|(?P<plain>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<power>[eE][-+]?\d{1,3})?)(?![\d,]*\d)"
)
_UNIT = re.compile(r"\s?([%°]|[A-Za-z]+)")
_WORD = re.compile(r"[a-z]+")
_CUE = re.compile(r"(?:answer|total|count|result)\s*(?:is|:|=|of)+\s*", re.IGNORECASE)


class Quantity(NamedTuple):
    """A number with the known unit that follows it (`""` if none does)."""

    value: float
    unit: str = ""

    def matches(self, other: Quantity) -> bool:
        """Equal within one part in a million; units count only where both sides name one, and are converted."""
        mine, theirs = _UNITS.get(self.unit), _UNITS.get(other.unit)
        if mine is None or theirs is None:
            return _is_close(self.value, other.value)
        return mine[0] == theirs[0] and _is_close(self.value * mine[1], other.value * theirs[1])


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def word_number(words: list[str]) -> int | None:
    """The value of a run of number words, None if they do not form one number.

    Example:
        >>> word_number(["one", "hundred", "and", "five"]), word_number("twenty one".split()), word_number(["red"])
        (105, 21, None)
    """
    total, current, last = 0, 0, math.inf
    for word in words:
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                current = max(current, 1) * 100
            else:
                total, current = total + max(current, 1) * scale, 0
            last = scale
        elif word in NUMBER_WORDS:
            value = NUMBER_WORDS[word]
            if last < 20 or (last < 100 and value > 9):  # "two three" is two numbers, "twenty three" is one
                return None
            current, last = current + value, value
        elif word != "and" or words[-1] == "and":
            return None
    return total + current if words and words[0] != "and" else None


def quantities(text: str) -> list[Quantity]:
    """Every number in `text`, in order of appearance, digits and words alike.

    Example:
        >>> quantities("about 1,234 cm, or twenty-one of 1/2")
        [Quantity(value=1234.0, unit='cm'), Quantity(value=21.0, unit=''), Quantity(value=0.5, unit='')]
    """
    found: list[tuple[int, Quantity]] = []
    for match in _DIGITS.finditer(text):
        value = _digits_value(match)
        if value is not None:
            found.append((match.start(), Quantity(value, _unit_after(text, match.end()))))
    lowered = text.lower()
    run: list[re.Match[str]] = []
    for word in [*_WORD.finditer(lowered), None]:
        adjacent = bool(word and run) and lowered[run[-1].end() : word.start()] in {" ", "-"}  # type: ignore[union-attr]
        text_of = word.group() if word else ""
        extended = [*(m.group() for m in run), text_of]
        if adjacent and (text_of == "and" or word_number(extended) is not None) and word:
            run.append(word)
            continue
        while run and run[-1].group() == "and":
            run.pop()
        if run and (value := word_number([m.group() for m in run])) is not None:
            found.append((run[0].start(), Quantity(float(value), _unit_after(text, run[-1].end()))))
        run = [word] if word and (text_of in NUMBER_WORDS or text_of in _SCALES) else []
    return [quantity for _, quantity in sorted(found, key=lambda pair: pair[0])]


def _digits_value(match: re.Match[str]) -> float | None:
    if match["plain"] is not None:
        value = float(match["plain"].replace(",", "") + (match["power"] or ""))
    elif float(match["bottom"]) == 0:
        return None
    else:
        value = float(match["top"]) / float(match["bottom"])
    if not math.isfinite(value):
        return None
    sign = (match["sign"] or "").strip()
    return -value if sign in {"-", "−"} else value


def _unit_after(text: str, end: int) -> str:
    match = _UNIT.match(text, end)
    word = match.group(1).lower() if match else ""
    for unit in (word, word.removesuffix("s")):
        if unit in _UNITS:
            return unit
    return ""


def number(text: str) -> Quantity | None:
    """The one number a short answer states, None if it states none or several different ones.

    A number after "answer is" or "total is" wins over others; repeated equal numbers are one.

    Example:
        >>> number("Three dogs.").value, number("2 cats and 3 dogs"), number("2 + 3, so the answer is 5").value
        (3.0, None, 5.0)
    """
    cues = list(_CUE.finditer(text))
    rest = text[cues[-1].end() :] if cues else text
    found = quantities(rest)
    if cues and found and not re.search(r"\bor\b", rest):
        return found[0]
    if not found or any(not q.matches(found[0]) for q in found[1:]):
        return None
    return found[0]
