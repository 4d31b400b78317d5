"""The words a reasoning text may use, and which of them mean the same.

A `Lexicon` is plain data. `ENGLISH` (in `english.py`) is the general one; a world with its own vocabulary extends it::

    SCENES = ENGLISH.extended("scenes", attributes={"color": {"lime": ("lime",)}}, nouns={"diamond": ("diamond",)})

A word of the extension leaves the entry it had before: `lime` above is no longer a kind of green.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

__all__ = ["Lexicon", "Term", "singulars", "word_list"]

Synonyms = Mapping[str, Iterable[str]]

_DIMENSION_WORDS = {"color": ("colour", "hue"), "count": ("number", "total", "amount")}


class Term(NamedTuple):
    """What a word or phrase is: its kind (`attribute`, `noun`, `generic`, `region`, `relation`, `number`, `silent`,
    `dimension`), its canonical value, and for an attribute its dimension."""

    kind: str
    value: str
    dimension: str = ""


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Word lists for the offline judge.

    Every mapping goes from a canonical name to the words and phrases (lower case, singular) that mean it.

    Attributes:
        name: shown in logs.
        attributes: dimension -> value -> words. An object has one value per dimension unless a text joins two by
            "and"; two values of one dimension contradict each other. A dimension without values is only a word.
        nouns: kind of object -> words. Nouns that are not listed are still read after an article or attribute.
        exclusive: groups of nouns that exclude each other (a square is no circle).
        generic: nouns that may stand for any object ("thing"); an attribute of dimension `shape` names them.
        parts: nouns of things found on other things; "it" prefers the owner to the part.
        regions: `top`, `bottom`, `left`, `right`, `center` -> words.
        relations: name -> phrases. `on` (the first is found on the second), `has` (the reverse) and `between` are
            known to the reader; any other name is a relation of two objects.
        inverses: relation -> its inverse; a relation and its inverse between the same objects contradict each other.
        symmetric: relations that hold both ways.
        numbers: number word -> value.
        soft: dimensions that contradict but are never missing or extra (large, dark: matters of taste).
        silent: nouns that name no object in the image (picture, answer, corner).
    """

    name: str
    attributes: Mapping[str, Synonyms] = field(default_factory=dict)
    nouns: Synonyms = field(default_factory=dict)
    exclusive: tuple[frozenset[str], ...] = ()
    generic: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    regions: Synonyms = field(default_factory=dict)
    relations: Synonyms = field(default_factory=dict)
    inverses: Mapping[str, str] = field(default_factory=dict)
    symmetric: frozenset[str] = frozenset()
    numbers: Mapping[str, int] = field(default_factory=dict)
    soft: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()

    @cached_property
    def phrases(self) -> Mapping[tuple[str, ...], Term]:
        """Every listed phrase as a tuple of words; where a word is listed twice the later entry wins."""
        return dict(self._entries())

    @cached_property
    def longest(self) -> int:
        """Words in the longest phrase."""
        return max((len(phrase) for phrase in self.phrases), default=1)

    def _entries(self) -> Iterator[tuple[tuple[str, ...], Term]]:
        for kind, table in (("noun", self.nouns), ("region", self.regions), ("relation", self.relations)):
            for value, words in table.items():
                for word in words:
                    yield tuple(word.split()), Term(kind, value)
        for dimension, values in self.attributes.items():
            for word in (dimension, *_DIMENSION_WORDS.get(dimension, ())):
                yield (word,), Term("dimension", dimension)
            for value, words in values.items():
                for word in words:
                    yield tuple(word.split()), Term("attribute", value, dimension)
        for word in self.numbers:
            yield (word,), Term("number", word)
        for word in self.generic:
            yield tuple(word.split()), Term("generic", "")
        for word in self.silent:
            yield tuple(word.split()), Term("silent", word)

    def look_up(self, words: tuple[str, ...]) -> tuple[Term, bool] | None:
        """The term of a phrase and whether it is a plural, None if the lexicon does not hold it.

        Example:
            >>> lexicon = Lexicon(name="two", nouns={"box": ("box", "crate")})
            >>> lexicon.look_up(("crates",)), lexicon.look_up(("bus",))
            ((Term(kind='noun', value='box', dimension=''), True), None)
        """
        if (term := self.phrases.get(words)) is not None:
            return term, False
        for singular in singulars(words[-1]):
            term = self.phrases.get((*words[:-1], singular))
            if term is not None and term.kind in {"noun", "generic", "silent"}:
                return term, True
        return None

    def are_exclusive(self, a: str, b: str) -> bool:
        """Whether one object cannot be both kinds."""
        return a != b and any(a in group and b in group for group in self.exclusive)

    def extended(
        self,
        name: str,
        *,
        attributes: Mapping[str, Synonyms] | None = None,
        nouns: Synonyms | None = None,
        relations: Synonyms | None = None,
        regions: Synonyms | None = None,
        numbers: Mapping[str, int] | None = None,
        exclusive: Iterable[frozenset[str]] = (),
        generic: Iterable[str] = (),
        parts: Iterable[str] = (),
        silent: Iterable[str] = (),
        soft: Iterable[str] = (),
    ) -> Lexicon:
        """A lexicon with further words. A word given here loses the meaning it had; `parts` etc. are added to.

        Example:
            >>> base = Lexicon(name="base", attributes={"color": {"green": ("green", "lime")}})
            >>> world = base.extended("world", attributes={"color": {"lime": ("lime",)}})
            >>> base.phrases[("lime",)].value, world.phrases[("lime",)].value
            ('green', 'lime')
        """
        added = attributes or {}
        tables = (*added.values(), nouns or {}, relations or {}, regions or {})
        taken = {word for table in tables for words in table.values() for word in words}
        kept = {d: _merged(values, added.get(d, {}), taken) for d, values in self.attributes.items()}
        return Lexicon(
            name=name,
            attributes={**kept, **{d: values for d, values in added.items() if d not in kept}},
            nouns=_merged(self.nouns, nouns or {}, taken),
            relations=_merged(self.relations, relations or {}, taken),
            regions=_merged(self.regions, regions or {}, taken),
            inverses=self.inverses,
            symmetric=self.symmetric,
            numbers={**self.numbers, **(numbers or {})},
            exclusive=(*self.exclusive, *exclusive),
            generic=(self.generic | frozenset(generic)) - taken,
            parts=self.parts | frozenset(parts),
            silent=(self.silent | frozenset(silent)) - taken,
            soft=self.soft | frozenset(soft),
        )


def _merged(base: Synonyms, added: Synonyms, taken: set[str]) -> dict[str, tuple[str, ...]]:
    merged = {value: tuple(w for w in words if w not in taken) for value, words in base.items()}
    for value, words in added.items():
        merged[value] = (*merged.get(value, ()), *words)
    return merged


def word_list(text: str) -> tuple[str, ...]:
    """The words of a table written as running text.

    Example:
        >>> word_list("red green")
        ('red', 'green')
    """
    return tuple(text.split())


def singulars(word: str) -> list[str]:
    """Possible singular forms of a plural, likely ones first.

    Example:
        >>> singulars("boxes"), singulars("berries"), singulars("glass")
        (['boxe', 'box'], ['berrie', 'berry'], [])
    """
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return []
    forms = [word[:-1]]
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("ies"):
        forms[1] = word[:-3] + "y"
    return forms
