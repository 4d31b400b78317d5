"""The claims of a whole text, and what a question gives away."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.answers.claim_reader import ClaimReader
from sightline.answers.claims import Claims
from sightline.answers.lexicon import Lexicon
from sightline.answers.words import sentences
from sightline.types import Box, Size

__all__ = ["claims_of", "given_by"]


def claims_of(
    text: str,
    lexicon: Lexicon,
    *,
    boxes: Sequence[Box | None] = (),
    size: Size | None = None,
    given: Claims | None = None,
) -> Claims:
    """Everything `text` claims.

    Args:
        text: boxes replaced by `words.placeholder`.
        lexicon: the words to know.
        boxes: what the placeholders stand for, original pixels.
        size: size of the image in pixels; without it boxes claim nothing.
        given: entities of the question, which "it" and "the mark" may refer to.

    Example:
        >>> from sightline.answers.english import ENGLISH
        >>> claims = claims_of("A crimson square sits at the upper left; the dot on it is not green.", ENGLISH)
        >>> [(claims.name(i), [str(p) for p in e.places], e.denied) for i, e in enumerate(claims.entities)]
        [('red square', ['top left'], {}), ('mark', [], {'color': frozenset({'green'})})]
    """
    reader = ClaimReader(lexicon, size, given)
    for words, is_question in sentences(text, lexicon, boxes):
        if not is_question:
            reader.read(words)
    return reader.claims


def given_by(question: str, lexicon: Lexicon) -> Claims:
    """The objects a question names: what a text may refer to, and need not claim again.

    What a yes-or-no question asks ("is the square green?") is a hypothesis and is left out.
    """
    reader = ClaimReader(lexicon, None, None)
    is_hypothesis = False
    for words, _ in sentences(question, lexicon):
        is_hypothesis = is_hypothesis or words[0].kind == "is" or words[0].text in {"does", "do", "can", "has", "have"}
        reader.read(words, naming_only=True)
    claims = reader.claims
    claims.relations.clear()
    for entity in claims.entities:
        entity.is_given, entity.is_asserted, entity.count = True, False, None
        entity.given = frozenset(entity.attributes) | (frozenset(("place",)) if entity.places else frozenset())
        entity.denied, entity.denied_places, entity.hedges = {}, [], 0
        if is_hypothesis:
            entity.places, entity.given = [], entity.given - {"place"}
    claims.asked = 0 if claims.entities else None
    return claims
