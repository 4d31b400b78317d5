"""Reading claims out of a reasoning text: a small, deterministic reader of simple descriptive English.

It walks through each sentence once and keeps the subject, the object named last, and a pending relation. It is no
grammar: what it does not understand it skips, so a text it cannot read claims little rather than something wrong.
"""

from __future__ import annotations

from sightline.answers.claims import Claims, Entity, Place, Relation, place_of_box, place_of_words
from sightline.answers.lexicon import Lexicon
from sightline.answers.phrases import NounPhrase, RegionPhrase, noun_follows, noun_phrase, region_phrase
from sightline.answers.words import Word
from sightline.types import Size

__all__ = ["ClaimReader"]


_DIRECTIONS = {"top": "above", "bottom": "below", "center": "on"}
_REFERRING = frozenset(("it", "he", "she", "they", "them", "him", "itself"))  # others continue: "which", "colored"


class ClaimReader:
    """Reads sentences one after the other into `claims`.

    Args:
        lexicon: the words to know.
        size: size of the image in pixels; without it boxes claim nothing.
        given: entities of the question, which "it" and "the mark" may refer to.
    """

    def __init__(self, lexicon: Lexicon, size: Size | None, given: Claims | None) -> None:
        self.lexicon, self.size = lexicon, size
        entities = [e.copy() for e in given.entities] if given else []
        self.claims = Claims(entities=entities, asked=given.asked if given else None)
        self.recent: list[int] = []  # entities by mention, latest last
        self.naming_only = False

    # -- one sentence ---------------------------------------------------------------------------------------------

    def read(self, words: list[Word], *, naming_only: bool = False) -> None:
        self.naming_only = naming_only
        self.words = words
        self.subjects: list[int] = []
        self.last: int | None = None
        self.link: tuple[int, str, bool] | None = None  # source, relation, denied
        self.owner: int | None = None
        self.negated = self.rejected = self.predicated = self.is_pronoun = False
        self.shared: dict[str, frozenset[str]] = {}  # what "two red objects: ..." says of each that follows
        self.waiting_places: list[Place] = []
        self.waiting_values: dict[str, frozenset[str]] = {}
        i = 0
        while i < len(words):
            i = self._step(i)

    def _step(self, i: int) -> int:
        word, self.start = self.words[i], i
        region = region_phrase(self.words, i)
        if region is not None:
            return self._place_region(region)
        phrase = noun_phrase(self.words, i, is_owned=self.owner is not None)
        if phrase is not None:
            return self._place_phrase(phrase)
        if word.kind == "attribute":
            return self._predicate(i)
        handler = getattr(self, f"_on_{word.kind}", None)
        if handler is not None:
            handler(i, word)
        return i + 1

    def _on_box(self, _: int, word: Word) -> None:
        if word.box is None or self.size is None:
            return
        place = place_of_box(word.box, self.size)
        if self.last is None:
            self.waiting_places.append(place)
        else:
            self._locate(self.last, place)

    def _on_number(self, i: int, word: Word) -> None:
        target = self._current() if self._current() is not None else self._group()
        following = self.words[i + 1] if i + 1 < len(self.words) else None
        is_instance = word.text in {"one", "1"} and following is not None and following.kind not in {"comma", "and"}
        if target is None or self.naming_only:
            return
        if is_instance and (group := self._group()) is not None:  # "one at the top left and one at the bottom"
            self.subjects, self.last, self.predicated = [group], group, True
        elif not is_instance:
            self._set_count(target, int(word.value))

    def _on_no(self, _: int, word: Word) -> None:
        target = self._current() if self._current() is not None else self.claims.asked
        if word.text in {"none", "zero"} and target is not None and not self.naming_only:
            self._set_count(target, 0)

    def _on_another(self, _: int, __: Word) -> None:
        if (group := self._group()) is not None:
            self.subjects, self.last = [group], group

    def _on_pronoun(self, _: int, word: Word) -> None:
        if word.text not in _REFERRING:
            if self.last is not None:
                self.subjects = [self.last]
            return
        referent = self._antecedent(self.link[0] if self.link else None)
        if referent is not None:
            self.is_pronoun = self.link is None
            self._use(referent)

    def _on_possessive(self, _: int, word: Word) -> None:
        self.owner = self.last if word.text in {"'s", "whose"} else self._antecedent(None)

    def _on_is(self, _: int, __: Word) -> None:
        self.predicated = True
        if self.subjects:
            self.last = self.subjects[-1]

    def _on_not(self, _: int, __: Word) -> None:
        self.negated = True

    def _on_reject(self, _: int, __: Word) -> None:
        self.rejected = True

    def _on_located(self, _: int, __: Word) -> None:
        self._on_is(_, __)

    def _on_article(self, i: int, word: Word) -> None:
        following = self.words[i + 1] if i + 1 < len(self.words) else None
        is_relative = following is not None and (following.kind == "is" or following.value == "has")
        if word.text == "that" and is_relative and self.last is not None:  # "a mark that is green"
            self.subjects = [self.last]

    def _on_but(self, _: int, __: Word) -> None:
        self.negated = self.rejected = False
        self.link = self.owner = None

    def _on_comma(self, i: int, word: Word) -> None:
        self._on_but(i, word)
        group = self._current()
        if word.text == ":" and group is not None and self.claims.entities[group].is_plural:
            self.shared = {d: v[0] for d, v in self.claims.entities[group].attributes.items()}
            self.predicated = True

    def _on_relation(self, i: int, word: Word) -> None:
        is_fronted = i == 0 or self.words[i - 1].kind in {"comma", "and"}
        if word.value == "on" and is_fronted and i + 1 < len(self.words) and self.words[i + 1].text in _REFERRING:
            self.owner = self._antecedent(None)  # "on it is a green mark"
            return
        verb = word.value == "has" and word.text in {"has", "have", "had"}
        source = self.subjects[-1] if verb and self.subjects else self.last
        if source is not None and i + 1 < len(self.words):
            self.link = (source, word.value, self.negated)

    # -- phrases --------------------------------------------------------------------------------------------------

    def _place_phrase(self, phrase: NounPhrase) -> int:
        owner, self.owner = self.owner, None
        if phrase.dimension:
            return self._place_dimension(phrase, owner)
        if phrase.is_silent or self.rejected:
            self.link = None
            return phrase.end
        if self.negated and not self.predicated and self.link is None and not phrase.is_indefinite:
            return phrase.end  # "not the blue circle"
        if self.negated and phrase.is_indefinite and self.link is None and not self.subjects:
            phrase.count = 0  # "there is not a circle"
            self.negated = False
        if self.link is not None and self.link[1] == "has":
            owner = self.link[0] if owner is None else owner
        end = phrase.end
        is_owned = owner is not None
        if phrase.head and not phrase.is_plural and not is_owned:
            phrase.attributes = {**self.shared, **phrase.attributes}
        if owner is None and (found := self._owner_after(end, phrase)) is not None:
            owner, end = found
        self._use(self._mention(phrase, owner), is_owned=is_owned)
        return end

    def _place_dimension(self, phrase: NounPhrase, owner: int | None) -> int:
        if owner is not None:
            self._use(owner)
        elif phrase.end < len(self.words) and self.words[phrase.end].text in {"of", "on", "for"}:
            return phrase.end + 1
        elif not self.subjects and self.claims.asked is not None and not self.naming_only:
            self._use(self.claims.asked)
        return phrase.end

    def _owner_after(self, end: int, phrase: NounPhrase) -> tuple[int, int] | None:
        """What "on the red square" or "on it" directly after a noun refers to, and where the words end."""
        if end + 1 >= len(self.words) or self.words[end].value != "on" or self._region_ahead(end + 1):
            return None
        after = self.words[end + 1]
        if after.kind == "pronoun":
            exclude = {i for i, e in enumerate(self.claims.entities) if e.head == phrase.head and e.head}
            referent = self._antecedent(*exclude)
            return None if referent is None else (referent, end + 2)
        inner = noun_phrase(self.words, end + 1)
        if inner is None or inner.is_silent or inner.dimension:
            return None
        return self._mention(inner, None), inner.end

    def _region_ahead(self, j: int) -> bool:
        while j < len(self.words) and self.words[j].kind in {"article", "place"}:
            j += 1
        return region_phrase(self.words, j) is not None

    def _place_region(self, region: RegionPhrase) -> int:
        self.link = None  # the "in" of "in the top left" relates to no object
        owner, self.owner = self.owner, None
        if owner is not None and self.last is not None:  # "in its center", "on its left"
            self._relate(self.last, _DIRECTIONS.get(region.names[0], region.names[0]), owner, self.negated)
            return region.end
        if region.is_direction:
            self._direct(region)
        elif region.has_alternative:
            for subject in self.subjects:
                self.claims.entities[subject].hedges += 1
        elif not self.rejected:
            place = place_of_words(region.names, is_half=region.is_half)
            self.predicated = bool(self.subjects)
            if not self.subjects:
                self.waiting_places.append(place)
            for subject in self.subjects:
                self._locate(subject, place)
        return region.end

    def _direct(self, region: RegionPhrase) -> None:
        """ "(to the) left of" the next object is a relation; "in the center of" it means found on it."""
        source = self.subjects[-1] if self.predicated and self.subjects else self.last
        if source is None:
            return
        before = {w.text for w in self.words[max(0, region.start - 2) : region.start]}
        name = _DIRECTIONS.get(region.names[0], region.names[0])
        if len(region.names) > 1 or before & {"in", "at"}:
            name = "on"
        self.link = (source, name, self.negated)

    # -- what is said of whom -------------------------------------------------------------------------------------

    def _current(self) -> int | None:
        return self.subjects[-1] if self.subjects else self.last

    def _antecedent(self, *excluded: int | None) -> int | None:
        candidates = [i for i in reversed(self.recent) if i not in excluded]
        candidates += [i for i, e in enumerate(self.claims.entities) if e.is_given and i not in excluded]
        whole = [i for i in candidates if not self._is_part(i)]
        return (whole or candidates or [None])[0]

    def _is_part(self, index: int) -> bool:
        entity = self.claims.entities[index]
        return entity.owner is not None or entity.head in self.lexicon.parts

    def _group(self) -> int | None:
        """The latest entity of which there are several."""
        for i in reversed(self.recent):
            if self.claims.entities[i].is_plural or (self.claims.entities[i].count or 0) > 1:
                return i
        return None

    def _use(self, index: int, *, is_owned: bool = False) -> None:
        """Make an entity the object of the pending relation, or else the subject."""
        if self.link is not None and self.link[0] != index:
            source, name, denied = self.link
            self._relate(source, name, index, denied)
        elif self.subjects and not self.predicated and not is_owned and self._after_and():
            self.subjects.append(index)
        else:
            self.subjects, self.predicated = [index], False
        self.last, self.link = index, None
        self.recent.append(index)
        for place in self.waiting_places:
            self._locate(index, place)
        if self.waiting_values:
            self._attribute(index, self.waiting_values, 0)
        self.waiting_places, self.waiting_values = [], {}

    def _after_and(self) -> bool:
        return self.start > 0 and self.words[self.start - 1].kind == "and" and self.last == self.subjects[-1]

    def _relate(self, source: int, name: str, target: int, denied: bool) -> None:
        entities = self.claims.entities
        if (
            name == "on"
            and not denied
            and entities[source].owner in {None, target}
            and entities[target].owner != source
        ):
            entities[source].owner = target
        elif name != "has" and not self.naming_only:
            self.claims.relations.append(Relation(source, name, target, denied))

    def _mention(self, phrase: NounPhrase, owner: int | None) -> int:
        index = self._known(phrase, owner)
        if index is None:
            self.claims.entities.append(Entity(phrase.head, is_known=phrase.is_known, owner=owner))
            index = len(self.claims.entities) - 1
        entity = self.claims.entities[index]
        entity.head = entity.head or phrase.head
        entity.owner = owner if entity.owner is None and owner != index else entity.owner
        entity.is_plural |= phrase.is_plural
        entity.hedges += phrase.hedges
        entity.is_asserted |= phrase.is_indefinite or phrase.count is not None
        if phrase.is_another:
            entity.count, entity.is_plural = (entity.count or 1) + max(phrase.count or 1, 1), True
        elif phrase.count is not None:
            self._set_count(index, phrase.count)
        for dimension, values in phrase.attributes.items():
            if not phrase.hedges and values not in entity.attributes.get(dimension, ()):
                entity.attributes.setdefault(dimension, []).append(values)
        return index

    def _known(self, phrase: NounPhrase, owner: int | None) -> int | None:
        """The entity already named that a phrase refers to."""
        order = list(dict.fromkeys([*reversed(self.recent), *range(len(self.claims.entities))]))
        for i in order:
            entity = self.claims.entities[i]
            same = entity.head == phrase.head or (not phrase.head and not self._is_part(i)) or not entity.head
            owned = owner is None or entity.owner is None or entity.owner == owner
            # One of several: "the red square" of a question about squares is an object of its own.
            adds = bool(phrase.head and not entity.head) or not phrase.attributes.keys() <= entity.attributes.keys()
            same = same and not (entity.is_plural and adds and not phrase.is_plural)
            fits = phrase.hedges or not entity.conflicts(phrase.attributes)
            if same and owned and fits and i != owner:
                return i
        return None

    def _set_count(self, index: int, count: int) -> None:
        self.claims.entities[index].count = count
        self.claims.entities[index].is_plural |= count > 1

    def _predicate(self, i: int) -> int:
        """Attributes without a noun: "is green", "green and white", "green or blue"."""
        values: dict[str, frozenset[str]] = {}
        hedges, j = 0, i
        while j < len(self.words):
            word = self.words[j]
            following = self.words[j + 1].kind if j + 1 < len(self.words) else ""
            if word.kind == "attribute":
                values[word.dimension] = values.get(word.dimension, frozenset()) | {word.value}
            elif (
                word.kind in {"and", "or", "comma"} and following == "attribute" and not noun_follows(self.words, j + 1)
            ):
                hedges += word.kind == "or"
            elif word.kind != "dimension":
                break
            j += 1
        if self.rejected or (self.naming_only and self.predicated):
            return j
        if not self.subjects:
            self.waiting_values = values if not hedges else {}
        for subject in self.subjects:
            self._attribute(subject, values, hedges)
        self._on_is(i, self.words[i])
        return j

    def _attribute(self, index: int, values: dict[str, frozenset[str]], hedges: int) -> None:
        entity = self.claims.entities[index]
        if self.is_pronoun and entity.conflicts(values):  # "it is green" of a red square speaks of its mark
            parts = [i for i, e in enumerate(self.claims.entities) if e.owner == index and not e.conflicts(values)]
            entity = self.claims.entities[parts[0]] if parts else entity
        for dimension, found in values.items():
            if hedges:
                entity.hedges += 1
            elif self.negated:
                entity.denied[dimension] = entity.denied.get(dimension, frozenset()) | found
            elif found not in entity.attributes.get(dimension, ()):
                entity.attributes.setdefault(dimension, []).append(found)

    def _locate(self, index: int, place: Place) -> None:
        entity = self.claims.entities[index]
        known = entity.denied_places if self.negated else entity.places
        if known and (joined := known[-1].joined(place)) is not None:  # "at the top, on the left" is one place
            known[-1] = joined
        elif place not in known:
            known.append(place)
