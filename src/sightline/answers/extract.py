"""Reading a final answer out of text: option letter, yes or no, number, or the answer as written.

Each rule either finds one answer or says None; None means undecided, never wrong. A letter or word is an answer only
where the text presents it as one: the first letter of a sentence, or a word inside another, is none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sightline.answers.numbers import number
from sightline.types import Reading

__all__ = ["final_answer", "normal_text", "number", "ocr_text", "option_letter", "yes_no"]

_LETTERS = "ABCDEFGHIJ"
_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z_]+>")
_CUE = (
    r"(?:answer|option|choice|choose|select|pick)s?(?:\s+(?:option|choice|letter))?"
    r"\s*(?:is|would be|should be|:|=|→|->)*\s*(?:option|choice)?\s*"
)
_CUED = re.compile(_CUE + r"[\"'*(\[{]*([A-J])(?![A-Za-z'])(?!\s+(?:or|and|/)\s)", re.IGNORECASE)
_LEADING = re.compile(r"^[(\[*\s]*([A-J])(?:[)\].:*]|\s*[-–]\s|\s*$)")
_BRACKETED = re.compile(r"[(\[]([A-J])[)\]]")
_LONE = re.compile(r"(?<![\w'])([B-HJ]|A(?!\s+[a-z])|I(?!['\s][a-z]))(?![\w'])")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_ARTICLES = frozenset(("a", "an", "the"))


def normal_text(text: str) -> str:
    """Case, accents' encoding, punctuation, articles and spacing removed from the comparison of two short answers.

    Example:
        >>> normal_text(" The  Red-car. "), normal_text("it's 2.5 m")
        ('red car', "it's 2.5 m")
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"(?<!\d)[.,](?!\d)|(?<=\d)[.,](?!\d)|(?<!\d)[.,](?=\D)|[^\w\s.,'%$/+]|_", " ", text)
    return " ".join(w for w in text.split() if w not in _ARTICLES)


def ocr_text(text: str) -> str:
    """A transcription without case, spacing and outer punctuation; inner punctuation is part of what was read.

    Example:
        >>> ocr_text(" 'EXIT 12-B'. ") == ocr_text("exit 12-b")
        True
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", "", text).strip(".,;:!?\"'`“”‘’")


def _answer_part(text: str) -> str:
    blocks = _ANSWER_BLOCK.findall(text)
    part = blocks[0] if blocks else text
    boxed = _BOXED.findall(part)
    return _TAG.sub(" ", boxed[-1] if boxed else part).strip()


def option_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter of the option a reply chooses, None where it chooses none or several.

    Args:
        text: a reply; where it holds an answer block, only that is read.
        options: texts of the options in order; they bound the letters and may be chosen by their text.

    Example:
        >>> [option_letter(s) for s in ("Answer: B", "Answer is (C).", "Based on the image, the answer is D.", "b")]
        ['B', 'C', 'D', 'B']
        >>> option_letter("the dog", ("a cat", "the dog")), option_letter("A dog"), option_letter("A or B")
        ('B', None, None)
    """
    part = _answer_part(text)
    allowed = _LETTERS[: len(options)] if options else _LETTERS
    by_text = {}
    for letter, option in zip(_LETTERS, options, strict=False):
        by_text.setdefault(_option_text(option, letter), []).append(letter)
    named = by_text.get(normal_text(part), []) if normal_text(part) else []
    if len(named) == 1 and len(normal_text(part)) > 1:
        return named[0]
    lone = part.strip(" ()[]{}.:*\"'")
    if len(lone) == 1 and lone.upper() in allowed:
        return lone.upper()
    rest = re.sub(r"\bnot\s+[(\[]?[A-J]\b[)\]]?", " ", part)
    if re.search(r"(?<![\w'])[A-J][)\]]?\s*(?:or|and|/|,)\s*[(\[]?[A-J](?![\w'])", rest):
        return None
    listed = set(re.findall(r"(?m)^\s*[(\[]?([A-J])[)\].:]\s", rest))
    cued = [m.upper() for m in _CUED.findall(rest) if m.isupper() or len(rest.split()) < 4]
    if cued:
        return cued[-1] if cued[-1] in allowed else None
    if len(listed) > 1:  # the list of options said again
        return None
    for pattern in (_LEADING, _BRACKETED, _LONE):
        letters = {m for m in pattern.findall(rest) if m in allowed}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


def _option_text(option: str, letter: str) -> str:
    return normal_text(re.sub(rf"^\s*[(\[]?{letter}[)\].:]\s*", "", option))


_YES = frozenset(("yes", "yeah", "yep", "true", "correct"))
_NO = frozenset(("no", "nope", "false", "incorrect"))


def yes_no(text: str) -> str | None:
    """`"yes"` or `"no"` where the reply opens or closes with it or names it as the answer, else None.

    Example:
        >>> yes_no("Yes, there is a dog."), yes_no("So the answer is no."), yes_no("There is no dog here"), yes_no("")
        ('yes', 'no', None, None)
    """
    words = re.findall(r"[a-z']+", _answer_part(text).lower())
    both = {"yes" for w in words if w == "yes"} | {"no" for w in words if w == "no"}
    if not words or ("yes" in both and "no" in both):
        return None
    cue = [words[i + 2] for i in range(len(words) - 2) if words[i] == "answer" and words[i + 1] in {"is", "was"}]
    for word in (*cue[-1:], words[0], words[-1]):
        if word in _YES:
            return "yes"
        if word in _NO:
            return "no"
    return None


def final_answer(reading: Reading) -> str:
    """The answer of a reply: its answer block; without any tag the whole reply; after a think block what follows it.

    Example:
        >>> final_answer(Reading(text="<answer> red </answer>", answer="red")), final_answer(Reading(text="red"))
        ('red', 'red')
    """
    if reading.answer is not None:
        return reading.answer.strip()
    if "<answer>" in reading.text:
        return ""
    if "</think>" in reading.text:
        return _TAG.sub(" ", reading.text.rsplit("</think>", 1)[1]).strip()
    return "" if "<think>" in reading.text else reading.text.strip()
