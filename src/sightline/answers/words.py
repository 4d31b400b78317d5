"""Text -> classified words: the first step of reading claims.

Grammar words (articles, pronouns, negations) are English; everything about the world comes from the `Lexicon`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sightline.answers.lexicon import Lexicon, word_list
from sightline.types import Box

__all__ = ["Word", "placeholder", "sentences"]

_GRAMMAR: dict[str, str] = {
    **dict.fromkeys(
        ("a", "an", "the", "this", "that", "these", "those", "each", "every", "both", "some", "any"), "article"
    ),
    **dict.fromkeys(("another", "other", "further", "additional"), "another"),
    **dict.fromkeys(
        ("it", "he", "she", "they", "them", "him", "itself", "which", "who", "colored", "coloured", "painted"),
        "pronoun",
    ),
    **dict.fromkeys(("its", "their", "whose", "his", "her", "'s"), "possessive"),
    **dict.fromkeys(("is", "are", "was", "were", "be", "being", "appears", "appear", "looks", "seems", "lies"), "is"),
    **dict.fromkeys(("located", "situated", "positioned", "placed", "found", "lying", "sits", "has been"), "located"),
    **dict.fromkeys(("not", "never", "nor", "neither"), "not"),
    **dict.fromkeys(("no", "without", "none", "zero"), "no"),
    **dict.fromkeys(("and", "&", "plus", "also"), "and"),
    **dict.fromkeys(("or", "either"), "or"),
    **dict.fromkeys(("but", "however", "while", "whereas", "although", "though"), "but"),
    **dict.fromkeys((",", ":", "(", ")", "-", "–", "—"), "comma"),
    **dict.fromkeys(
        ("at", "to", "from", "toward", "towards", "into", "across", "around", "far", "very", "than"), "place"
    ),
    "of": "of",
    "there": "there",
    "here": "there",
}
_REJECTING = ("rather than", "instead of", "unlike", "as opposed to", "other than", "not the")
_PLAIN = frozenset(
    word_list(
        "i we you let lets me my our us see sees look find notice observe identify check can could may might will "
        "would should do does did what where how many much if so then thus therefore hence because since as when only "
        "just exactly total altogether now first second third finally next final more most quite clearly indeed "
        "visible shown seen present exists exist called named need have to for about get gets given based according "
        "means maybe perhaps probably possibly likely please yes ok okay well too again still yet"
    )
)
_CONTRACTIONS = (
    (re.compile(r"\b(is|are|was|were|do|does|did|has|have|could|would|should)n['’]t\b"), r"\1 not"),
    (re.compile(r"\bcan['’]?t\b|\bcannot\b"), "can not"),
    (re.compile(r"\bwon['’]t\b"), "will not"),
    (re.compile(r"\b(it|there|that|he|she|here|what|where)['’]s\b"), r"\1 is"),
    (re.compile(r"\b(they|there|we|you)['’]re\b"), r"\1 are"),
    (re.compile(r"['’]s\b"), " 's"),
    (re.compile(r"s['’](?=\s)"), "s 's"),
    (re.compile(r"(?<=\w)-(?=\w)"), " "),
)
_PIECE = re.compile(r"\ue000\d+\ue001|'s|[a-z]+|\d+|[.!?;:,()\-–—&\n]")


@dataclass(frozen=True, slots=True)
class Word:
    """One classified word or phrase.

    `kind` is a kind of `Term` or one of: article, another, pronoun, possessive, is, located, not, no, and, or, but,
    comma, place, of, there, reject, box, plain (a grammar word without a role), unknown.
    """

    text: str
    kind: str
    value: str = ""
    dimension: str = ""
    is_plural: bool = False
    box: Box | None = None


def sentences(text: str, lexicon: Lexicon, boxes: Sequence[Box | None] = ()) -> list[tuple[list[Word], bool]]:
    """Split a text into sentences of classified words; the flag says whether a sentence is a question.

    Args:
        text: may hold placeholders made by `placeholder`, one per entry of `boxes`.
        lexicon: the words to know.
        boxes: box of each placeholder, original pixels; None for one that cannot be used.

    Example:
        >>> from sightline.answers.english import ENGLISH
        >>> [[(w.kind, w.value) for w in words] for words, _ in sentences("A crimson disc.", ENGLISH)]
        [[('article', ''), ('attribute', 'red'), ('noun', 'circle')]]
    """
    text = text.lower()
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    pieces = _PIECE.findall(text)
    found: list[tuple[list[Word], bool]] = []
    current: list[str] = []
    for piece in [*pieces, "."]:
        if piece in {".", "!", "?", ";", "\n"}:
            if current:
                found.append((_classified(current, lexicon, boxes), piece == "?"))
            current = []
        else:
            current.append(piece)
    return found


def placeholder(index: int) -> str:
    """Stands in a text for box number `index`; made of private-use characters, which `sentences` alone reads."""
    return f" \ue000{index}\ue001 "


def _classified(pieces: list[str], lexicon: Lexicon, boxes: Sequence[Box | None]) -> list[Word]:
    words: list[Word] = []
    i = 0
    while i < len(pieces):
        word, length = _next_word(pieces, i, lexicon, boxes)
        words.append(word)
        i += length
    return words


def _next_word(pieces: list[str], i: int, lexicon: Lexicon, boxes: Sequence[Box | None]) -> tuple[Word, int]:
    piece = pieces[i]
    if piece.startswith("\ue000"):
        index = int(piece[1:-1])
        return Word(piece, "box", box=boxes[index] if index < len(boxes) else None), 1
    for phrase in _REJECTING:
        n = phrase.count(" ") + 1
        if " ".join(pieces[i : i + n]) == phrase and not (phrase == "not the" and i and pieces[i - 1] in {"is", "are"}):
            return Word(phrase, "reject"), n
    if piece.isdigit():
        return Word(piece, "number", value=piece[:9]), 1
    for length in range(min(lexicon.longest, len(pieces) - i), 0, -1):
        phrase = tuple(pieces[i : i + length])
        if length == 1 and piece in _GRAMMAR and piece not in {"of"}:
            break
        if (hit := lexicon.look_up(phrase)) is not None:
            term, is_plural = hit
            value = str(lexicon.numbers[term.value]) if term.kind == "number" else term.value
            return Word(" ".join(phrase), term.kind, value, term.dimension, is_plural), length
    if piece in _GRAMMAR:
        return Word(piece, _GRAMMAR[piece]), 1
    return Word(piece, "plain" if piece in _PLAIN else "unknown"), 1
