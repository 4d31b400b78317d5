"""Comparing what two texts claim: what agrees, what contradicts, what is missing, what is extra.

The four rubric levels: any contradiction 0; both missing and extra claims 0.3; one of the two 0.7; neither 1. A text
that agrees in no claim the question did not already give earns 0, so silence and an echo of the question earn nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from sightline.answers.claims import Claims, Entity, Place
from sightline.answers.lexicon import Lexicon

__all__ = ["Agreement", "agreement"]


@dataclass(slots=True)
class Agreement:
    """The claims of a candidate text against those of a reference, as short phrases."""

    agreed: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @property
    def level(self) -> float:
        """The rubric level, one of 0, 0.3, 0.7, 1."""
        if self.contradictions or not self.agreed:
            return 0.0
        return (1.0, 0.7, 0.3)[bool(self.missing) + bool(self.extra)]

    @property
    def why(self) -> str:
        """One line that names what decided the level."""
        if self.contradictions:
            return f"contradicts: {_listed(self.contradictions)}"
        if not self.agreed:
            return "no claim of the reference is confirmed"
        parts = [f"missing: {_listed(self.missing)}"] if self.missing else []
        parts += [f"extra: {_listed(self.extra)}"] if self.extra else []
        return "; ".join(parts) or f"agrees: {_listed(self.agreed)}"


def _listed(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def agreement(reference: Claims, candidate: Claims, lexicon: Lexicon) -> Agreement:
    """Compare two texts that were read against the same question.

    Args:
        reference: claims taken as true.
        candidate: claims to be judged.
        lexicon: tells soft dimensions, inverse relations and kinds that exclude each other.
    """
    return _Comparison(reference, candidate, lexicon).result()


class _Comparison:
    def __init__(self, reference: Claims, candidate: Claims, lexicon: Lexicon) -> None:
        self.r, self.c, self.lexicon = reference, candidate, lexicon
        self.found = Agreement()
        self.pairs: dict[int, int] = {}

    def result(self) -> Agreement:
        self._pair()
        for i, j in self.pairs.items():
            self._attributes(i, j)
            self._denials(i, j)
            self._counts(i, j)
            self._places(i, j)
        self._unpaired()
        self._relations()
        return self.found

    # -- which object of one text is which of the other -------------------------------------------------------------

    def _pair(self) -> None:
        """Best match first; owners before what they own, so that a part is matched on the right object."""
        given = min(sum(e.is_given for e in self.r.entities), sum(e.is_given for e in self.c.entities))
        self.pairs = {i: i for i in range(given)}
        for owned in (False, True):
            options = [
                (self._likeness(i, j), -abs(i - j), -i, -j)
                for i, a in enumerate(self.r.entities)
                for j, b in enumerate(self.c.entities)
                if i >= given and j >= given and (a.owner is not None or b.owner is not None) == owned
            ]
            for likeness, _, minus_i, minus_j in sorted(options, reverse=True):
                i, j = -minus_i, -minus_j
                if likeness > 0 and i not in self.pairs and j not in self.pairs.values():
                    self.pairs[i] = j

    def _likeness(self, i: int, j: int) -> float:
        a, b = self.r.entities[i], self.c.entities[j]
        if a.head != b.head and a.head and b.head:
            return 0.0
        mine = {d: a.values(d) for d in a.attributes}
        if b.conflicts(mine) or (a.count == 0) != (b.count == 0):
            return 0.0
        if a.owner is not None and b.owner is not None and self.pairs.get(a.owner, b.owner) != b.owner:
            return 0.0
        shared = sum(bool(v & b.values(d)) for d, v in mine.items())
        places = [not p.excludes(q) for p in self.r.places(i) for q in self.c.places(j)]
        return 1.0 + (a.head == b.head) + shared + (0.5 if any(places) else -0.5 if places else 0.0)

    # -- claims about one object ----------------------------------------------------------------------------------

    def _attributes(self, i: int, j: int) -> None:
        a, b = self.r.entities[i], self.c.entities[j]
        if b.hedges:
            self.found.extra.append(f"alternatives for the {self.c.name(j)}")
        for dimension in sorted({*a.attributes, *b.attributes}):
            mine, theirs = a.values(dimension), b.values(dimension)
            wrong = [v for v in b.attributes.get(dimension, ()) if mine and not v & mine]
            subject, is_soft = a.head or "object", dimension in self.lexicon.soft
            if wrong:
                self.found.contradictions.append(f"{subject} {_words(wrong[0])} instead of {_words(mine)}")
            elif mine & theirs and not (dimension in a.given and mine == theirs):
                self.found.agreed.append(f"{subject} {_words(mine & theirs)}")
            if not wrong and not is_soft and mine - theirs:
                self.found.missing.append(f"{subject} {_words(mine - theirs)}")
            if not wrong and not is_soft and theirs - mine:
                self.found.extra.append(f"{subject} {_words(theirs - mine)}")

    def _denials(self, i: int, j: int) -> None:
        a, b = self.r.entities[i], self.c.entities[j]
        for stated, denied, text in ((a, b, "denies"), (b, a, "claims")):
            for dimension, values in denied.denied.items():
                if clash := stated.values(dimension) & values:
                    self.found.contradictions.append(f"{text} that the {a.head or 'object'} is {_words(clash)}")
        for places, denied, text in ((a.places, b, "denies"), (b.places, a, "claims")):
            for place in places:
                if any(place.within(d) for d in denied.denied_places):
                    self.found.contradictions.append(f"{text} that the {a.head or 'object'} is at the {place}")

    def _counts(self, i: int, j: int) -> None:
        a, b = self.r.entities[i], self.c.entities[j]
        mine, theirs = _count(a), _count(b)
        name = a.head or "object"
        if (theirs == 0 and mine is None and _says(self.r, i)) or (mine == 0 and theirs is None and _says(self.c, j)):
            self.found.contradictions.append(f"{'no' if theirs == 0 else 'a'} {name}")
        elif mine is not None and theirs is not None:
            if mine != theirs:
                self.found.contradictions.append(f"{theirs} x {name} instead of {mine}")
            elif a.count is not None and b.count is not None and (mine != 1 or a.is_plural):
                self.found.agreed.append(f"{mine} x {name}")
        elif a.count is not None and a.count != 1:
            if b.is_plural or b.is_given:
                self.found.missing.append(f"number of {name}")
            else:
                self.found.contradictions.append(f"one {name} instead of {mine}")
        elif b.count is not None and b.count != 1:
            if a.is_plural or a.is_given:
                self.found.extra.append(f"number of {name}")
            else:
                self.found.contradictions.append(f"{theirs} x {name} instead of one")

    def _places(self, i: int, j: int) -> None:
        a, b = self.r.entities[i], self.c.entities[j]
        name = self.r.name(i)
        # a box and words for the same spot are one place; places that exclude each other are several objects
        is_several = a.is_plural or a.count not in (None, 1) or any(p.excludes(q) for p, q in pairwise(a.places))
        if len(a.places) > 1 and is_several:
            self._instances(name, a.places, b.places)
            return
        mine = a.places or (self.r.places(i) if b.places else [])
        theirs = b.places or (self.c.places(j) if a.places else [])
        wrong = [q for q in theirs if any(p.excludes(q) for p in mine)]
        if wrong:
            self.found.contradictions.append(f"{name} at the {wrong[0]} instead of {mine[0]}")
        elif mine and theirs:
            if "place" not in a.given and any(_says_something(p) and _says_something(q) for p in mine for q in theirs):
                self.found.agreed.append(f"{name} at the {theirs[0]}")
            if a.places and not any(p.covers(q) for p in mine for q in theirs):
                self.found.missing.append(f"exact place of the {name}")
            if b.places and not any(q.covers(p) for p in mine for q in theirs):
                self.found.extra.append(f"exact place of the {name}")
        elif mine:
            if any(_says_something(p) for p in mine):
                self.found.missing.append(f"place of the {name}")
        elif theirs:
            self.found.extra.append(f"place of the {name}")

    def _instances(self, name: str, mine: list[Place], theirs: list[Place]) -> None:
        """Several places for one kind of object: as many as possible are matched one to one."""
        free = list(mine)
        unmatched = 0
        for place in sorted(theirs, key=lambda q: sum(not q.excludes(p) for p in mine)):
            fit = next((p for p in free if not p.excludes(place)), None)
            if fit is None:
                unmatched += 1
            else:
                free.remove(fit)
        if len(theirs) > unmatched:
            self.found.agreed.append(f"{len(theirs) - unmatched} places of the {name}")
        if unmatched and free:
            self.found.contradictions.append(f"{unmatched} of the places of the {name}")
        elif unmatched:
            self.found.extra.append(f"{unmatched} places of the {name}")
        elif free:
            self.found.missing.append(f"{len(free)} places of the {name}")

    # -- objects that only one text names ---------------------------------------------------------------------------

    def _unpaired(self) -> None:
        mine = [i for i, e in enumerate(self.r.entities) if i not in self.pairs and _matters(e, self.r)]
        theirs = [j for j, e in enumerate(self.c.entities) if j not in self.pairs.values() and _matters(e, self.c)]
        silent = [i for i, j in self.pairs.items() if _says(self.r, i) and not _says(self.c, j)]
        for j in theirs:
            rival = next((i for i in (*mine, *silent) if self._rivals(i, j)), None)
            if rival is None:
                self.found.extra.append(self.c.name(j))
                continue
            self.found.contradictions.append(f"{self._label(self.c, j)} instead of {self._label(self.r, rival)}")
            mine = [i for i in mine if i != rival]
        self.found.missing.extend(self.r.name(i) for i in mine)
        for i, j in self.pairs.items():
            if not self.r.entities[i].is_given and self._is_confirmed(i, j):
                self.found.agreed.append(self.r.name(i))

    def _rivals(self, i: int, j: int) -> bool:
        """Objects that stand for the same thing and cannot be the same: a blue square for the red one."""
        a, b = self.r.entities[i], self.c.entities[j]
        if (a.count == 0) != (b.count == 0):
            return a.head == b.head and not b.conflicts({d: a.values(d) for d in a.attributes})
        attributes = {d: a.values(d) for d in a.attributes if d not in self.lexicon.soft}
        if a.head == b.head and a.head:
            moved = a.owner is not None and b.owner is not None and self.pairs.get(a.owner) != b.owner
            return bool(b.conflicts(attributes)) or moved
        shares = any(v & b.values(d) for d, v in attributes.items())
        return self.lexicon.are_exclusive(a.head, b.head) and (shares or not (attributes and b.attributes))

    def _label(self, claims: Claims, index: int) -> str:
        entity = claims.entities[index]
        owner = f" on the {claims.name(entity.owner)}" if entity.owner is not None else ""
        return ("no " if entity.count == 0 else "") + claims.name(index) + owner

    def _is_confirmed(self, i: int, j: int) -> bool:
        return _matters(self.r.entities[i], self.r) and _matters(self.c.entities[j], self.c)

    # -- relations --------------------------------------------------------------------------------------------------

    def _relations(self) -> None:
        mine = {self._normal(x.subject, x.name, x.object, x.is_denied) for x in self.r.relations}
        back = {j: i for i, j in self.pairs.items()}
        theirs, foreign = set(), 0
        for x in self.c.relations:
            if x.subject in back and x.object in back:
                theirs.add(self._normal(back[x.subject], x.name, back[x.object], x.is_denied))
            else:
                foreign += 1
        for key in sorted(theirs):
            self._relation(key, mine)
        for key in sorted(mine - theirs):
            subject, name, target, denied = key
            if (subject, name, target, not denied) in theirs or self._opposite(key) in theirs:
                continue  # reported as a contradiction already
            if self._implied(self.c, self.pairs.get(subject), name, self.pairs.get(target)) is not (not denied):
                self.found.missing.append(self._phrase(key))
        if foreign:
            self.found.extra.append(f"{foreign} relations to objects the reference does not name")

    def _relation(self, key: tuple[int, str, int, bool], mine: set[tuple[int, str, int, bool]]) -> None:
        subject, name, target, denied = key
        implied = self._implied(self.r, subject, name, target)
        if key in mine or implied is (not denied):
            self.found.agreed.append(self._phrase(key))
        elif (subject, name, target, not denied) in mine or self._opposite(key) in mine or implied is denied:
            self.found.contradictions.append(self._phrase(key))
        elif not denied:
            self.found.extra.append(self._phrase(key))

    def _opposite(self, key: tuple[int, str, int, bool]) -> tuple[int, str, int, bool] | None:
        """The statement that cannot be true beside a plain one: the two objects exchanged."""
        subject, name, target, denied = key
        if denied or name not in self.lexicon.inverses:
            return None
        return self._normal(target, name, subject, False)

    def _normal(self, subject: int, name: str, target: int, denied: bool) -> tuple[int, str, int, bool]:
        inverse = self.lexicon.inverses.get(name)
        if inverse is not None and inverse < name:
            return target, inverse, subject, denied
        if name in self.lexicon.symmetric and target < subject:
            return target, name, subject, denied
        return subject, name, target, denied

    def _implied(self, claims: Claims, subject: int | None, name: str, target: int | None) -> bool | None:
        """Whether the places of two objects settle left, right, above or below; None if they do not."""
        if subject is None or target is None or name not in {"left", "right", "above", "below"}:
            return None
        places = [claims.places(k) for k in (subject, target)]
        if any(len(p) != 1 for p in places):
            return None
        a, b = (p[0].extent(int(name in {"above", "below"})) for p in places)
        if a is None or b is None or a == b:
            return None
        if name in {"right", "below"}:
            a, b = b, a
        return True if a[1] <= b[0] else False if a[0] >= b[1] else None

    def _phrase(self, key: tuple[int, str, int, bool]) -> str:
        subject, name, target, denied = key
        return f"{self.r.name(subject)} {'not ' if denied else ''}{name} {self.r.name(target)}"


def _words(values: frozenset[str]) -> str:
    return " and ".join(sorted(values))


def _count(entity: Entity) -> int | None:
    """How many there are: as stated, or as many as have a box of their own."""
    boxes = sum(p.centre is not None for p in entity.places)
    return boxes if entity.count is None and boxes > 1 and entity.is_plural else entity.count


def _says_something(place: Place) -> bool:
    return any(axis is not None and len(axis) < 3 for axis in (place.rows, place.columns))


def _says(claims: Claims, index: int) -> bool:
    """The text says something of this object that the question does not give."""
    e = claims.entities[index]
    stated = bool(set(e.attributes) - e.given) or (bool(e.places) and "place" not in e.given)
    return stated or e.count is not None or any(index in {r.subject, r.object} for r in claims.relations)


def _matters(entity: Entity, claims: Claims) -> bool:
    """A claim, not a way of speaking: "the surroundings" without any attribute names nothing."""
    stated = bool(entity.attributes or entity.places) or entity.count is not None
    if not entity.head:
        return stated
    return (
        stated
        or entity.is_known
        or entity.is_asserted
        or any(claims.entities[i] is entity for r in claims.relations for i in (r.subject, r.object))
    )
