"""Noun phrases and region phrases in a sentence of classified words. Stateless: positions in, phrases out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sightline.answers.lexicon import singulars, word_list
from sightline.answers.words import Word

__all__ = ["NounPhrase", "RegionPhrase", "noun_phrase", "region_phrase"]

_NOUN_KINDS = frozenset(("noun", "generic", "silent"))
_FILLERS = frozenset(word_list("hand side corner edge half part portion quadrant region area section third most end"))
_JOINERS = frozenset(word_list("the of and - very"))
_BEFORE_SIDE = frozenset(word_list("the at on in to far extreme and , its top upper lower bottom center middle"))
_AFTER_SIDE = frozenset(word_list("of than hand side corner half edge third part portion quadrant area region section"))
_VERB_ENDINGS = ("ing", "ed", "ly")
_VERTICAL = frozenset(("top", "bottom"))


@dataclass(slots=True)
class NounPhrase:
    """A noun phrase as written; `end` is the position behind it.

    `is_silent` phrases name no object; `dimension` is set for "the color", "its size"; `hedges` counts alternatives.
    """

    end: int
    head: str = ""
    attributes: dict[str, frozenset[str]] = field(default_factory=dict)
    count: int | None = None
    is_plural: bool = False
    is_indefinite: bool = False
    is_another: bool = False
    is_silent: bool = False
    is_known: bool = True
    hedges: int = 0
    dimension: str = ""


@dataclass(slots=True)
class RegionPhrase:
    """Region words as written: which, whether only a half is meant, and whether an object follows ("left of")."""

    start: int
    end: int
    names: tuple[str, ...]
    is_half: bool = False
    is_direction: bool = False
    has_alternative: bool = False


def noun_phrase(words: Sequence[Word], i: int, *, is_owned: bool = False) -> NounPhrase | None:
    """The noun phrase that starts at `i`, None if none does.

    Args:
        words: one sentence.
        i: position of its first word.
        is_owned: a possessive stands before it, so that an unlisted word may be its noun.
    """
    phrase, j, unknown = NounPhrase(end=i), i, ""
    is_open = is_owned
    while j < len(words):
        word = words[j]
        if word.kind in {"article", "another", "no"} and not phrase.attributes and not unknown:
            phrase.is_indefinite |= word.text in {"a", "an", "some"}
            phrase.is_another |= word.kind == "another"
            phrase.count = 0 if word.kind == "no" else phrase.count
        elif word.kind == "number" and not phrase.attributes and not unknown:
            phrase.count = int(word.value)
        elif word.kind == "attribute":
            values = phrase.attributes.get(word.dimension, frozenset())
            phrase.attributes[word.dimension] = values | {word.value}
        elif word.kind in {"and", "or", "comma"} and _joins_attributes(words, i, j):
            phrase.hedges += word.kind == "or"
        elif word.kind == "unknown" and is_open and not (unknown and word.text.endswith(_VERB_ENDINGS)):
            unknown = word.text
        elif word.kind == "dimension" and not unknown:
            return _dimension_phrase(words, j, phrase)
        elif word.kind in _NOUN_KINDS:
            return _with_head(words, j, phrase)
        else:
            break
        is_open, j = True, j + 1
    if unknown:
        forms = singulars(unknown)
        phrase.end, phrase.is_known = j, False
        phrase.head, phrase.is_plural = forms[0] if forms else unknown, bool(forms)
        return phrase
    if phrase.attributes and j < len(words) and words[j].text in {"one", "ones"}:  # "the green one"
        phrase.end = j + 1
        return phrase
    return None


def _joins_attributes(words: Sequence[Word], i: int, j: int) -> bool:
    """An "and", "or" or comma between two attributes in front of one noun: a red and white umbrella."""
    return j > i and words[j - 1].kind == "attribute" and noun_follows(words, j + 1)


def noun_follows(words: Sequence[Word], j: int) -> bool:
    """Attributes at `j` stand in front of a noun."""
    if j >= len(words) or words[j].kind != "attribute":
        return False
    while j < len(words) and words[j].kind in {"attribute", "and", "or"}:
        j += 1
    return j < len(words) and words[j].kind in {*_NOUN_KINDS, "unknown"}


def _dimension_phrase(words: Sequence[Word], j: int, phrase: NounPhrase) -> NounPhrase | None:
    """ "the color of the mark" speaks of the mark; "of green color" is an attribute and no noun."""
    if phrase.attributes:
        return None
    phrase.end, phrase.dimension, phrase.is_silent = j + 1, words[j].value, True
    return phrase


def _with_head(words: Sequence[Word], j: int, phrase: NounPhrase) -> NounPhrase:
    run = []
    while j < len(words) and words[j].kind in _NOUN_KINDS:
        run.append(words[j])
        j += 1
    named = [w for w in run if w.kind == "noun"] or [w for w in run if w.kind == "generic"]
    phrase.end, phrase.is_silent = j, not named
    if named:
        phrase.head, phrase.is_plural = named[-1].value, named[-1].is_plural or run[-1].is_plural
    shape = phrase.attributes.get("shape", frozenset())
    if not phrase.head and len(shape) == 1 and not phrase.hedges:  # "a round object" is a circle
        phrase.head = next(iter(shape))
        del phrase.attributes["shape"]
    return phrase


def region_phrase(words: Sequence[Word], i: int) -> RegionPhrase | None:
    """The region words that start at `i`, None if none do."""
    if i >= len(words) or not _is_region(words, i):
        return None
    j, names, is_half = i, [], False
    while j < len(words) and (words[j].kind == "region" or _continues(words, j)):
        if words[j].kind == "region":
            names.append(words[j].value)
        is_half |= words[j].text == "half"
        j += 1
    phrase = RegionPhrase(start=i, end=j, names=tuple(names), is_half=is_half)
    if j < len(words) and words[j].text in {"of", "than"} and _names_object(words, j + 1):
        phrase.end, phrase.is_direction = j + 1, True
    elif j < len(words) and words[j].kind == "or":
        k = j + 1
        while k < len(words) and words[k].kind in {"article", "place", "relation"}:
            k += 1
        if (other := region_phrase(words, k)) is not None:
            phrase.end, phrase.has_alternative = other.end, True
    return phrase


def _is_region(words: Sequence[Word], j: int) -> bool:
    word = words[j]
    if word.kind != "region":
        return False
    before = words[j - 1] if j else None
    after = words[j + 1] if j + 1 < len(words) else None
    if word.text not in {"left", "right"}:
        return True
    return (
        before is None
        or before.text in _BEFORE_SIDE
        or before.kind in {"region", "located", "box"}
        or (after is not None and (after.text in _AFTER_SIDE or after.kind == "region"))
        or _is_said_of_an_object(words, j)
    )


def _is_said_of_an_object(words: Sequence[Word], j: int) -> bool:
    """ "the square is left", as against "two cups are left" (remain) and "that is right" (true)."""
    if j + 1 < len(words) and words[j + 1].kind not in {"comma", "and", "or", "but"}:
        return False
    k = j - 1
    while k >= 0 and words[k].kind == "not":
        k -= 1
    return k >= 1 and words[k].kind == "is" and words[k - 1].kind == "noun" and not words[k - 1].is_plural


def _continues(words: Sequence[Word], j: int) -> bool:
    """A filler ("corner"), or a joiner between region words of different axes ("the top, on the left" is two)."""
    if words[j].text in _FILLERS:
        return True
    if words[j].text not in _JOINERS:
        return False
    k = j
    while k < len(words) and words[k].text in _JOINERS:
        k += 1
    if k >= len(words) or words[k].kind != "region":
        return False
    seen = {w.value in _VERTICAL for w in words[max(0, j - 2) : j] if w.kind == "region"}
    return bool(seen) and (words[k].value in _VERTICAL) not in seen


def _names_object(words: Sequence[Word], j: int) -> bool:
    if j < len(words) and words[j].kind in {"pronoun", "possessive"}:
        return True
    phrase = noun_phrase(words, j)
    return phrase is not None and not phrase.is_silent
