"""What a reasoning text claims about an image: objects, their attributes and places, relations, counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from sightline.types import Box, Size

__all__ = ["COLUMNS", "ROWS", "Claims", "Entity", "Place", "Relation", "place_of_box", "place_of_words"]

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")

# A box names a neighbouring cell too if its centre is this near to the border, as a share of the image side.
LEAST_TOLERANCE, MOST_TOLERANCE = 1 / 24, 1 / 9
WHOLE_SIDE = 2 / 3  # a box that covers more of a side than this says nothing about the position along it


@dataclass(frozen=True, slots=True)
class Place:
    """A location claim: the 3 x 3 cells it allows, each axis on its own.

    Attributes:
        rows: allowed names among `top middle bottom`; None if the claim leaves the row open.
        columns: allowed names among `left center right`, or None.
        centre: centre of the box behind the claim, as shares of the image's width and height.
    """

    rows: frozenset[str] | None = None
    columns: frozenset[str] | None = None
    centre: tuple[float, float] | None = None

    def excludes(self, other: Place) -> bool:
        """Both cannot be true."""
        return _disjoint(self.rows, other.rows) or _disjoint(self.columns, other.columns)

    def covers(self, other: Place) -> bool:
        """`other` names every axis that this claim names; an open axis counts as the middle one."""
        return _named(self.rows, other.rows, "middle") and _named(self.columns, other.columns, "center")

    def joined(self, other: Place) -> Place | None:
        """One place out of two claims in words that name different axes; None if they do not."""
        if self.centre or other.centre or (self.rows and other.rows) or (self.columns and other.columns):
            return None
        return Place(rows=self.rows or other.rows, columns=self.columns or other.columns)

    def within(self, other: Place) -> bool:
        """Every cell this claim allows is allowed by `other`."""
        return all(
            b is None or (a is not None and a <= b) for a, b in ((self.rows, other.rows), (self.columns, other.columns))
        )

    def extent(self, axis: int) -> tuple[float, float] | None:
        """Lowest and highest position along an axis (0 for x, 1 for y), as shares; None if the claim leaves it open."""
        if self.centre is not None:
            return self.centre[axis], self.centre[axis]
        names, order = self._axes()[1 - axis]
        if not names:
            return None
        cells = [order.index(name) for name in names]
        return min(cells) / 3, (max(cells) + 1) / 3

    def __str__(self) -> str:
        names = ["/".join(n for n in order if n in axis) for axis, order in self._axes() if axis and len(axis) < 3]
        return " ".join(names) or "anywhere"

    def _axes(self) -> tuple[tuple[frozenset[str] | None, tuple[str, ...]], ...]:
        return (self.rows, ROWS), (self.columns, COLUMNS)


def _disjoint(a: frozenset[str] | None, b: frozenset[str] | None) -> bool:
    return a is not None and b is not None and not a & b


def _named(mine: frozenset[str] | None, theirs: frozenset[str] | None, neutral: str) -> bool:
    return mine is None or theirs is not None or neutral in mine


def place_of_box(box: Box, size: Size) -> Place:
    """The cells a box may be said to lie in, by its centre.

    A centre near a border belongs to both cells, because both names are honest there: the tolerance is a quarter of
    the box's side, at least 1/24 and at most 1/9 of the image (a cell is 1/3). Along an axis of which the box covers
    more than two thirds, every name is allowed: a box around everything is no location.

    Example:
        >>> str(place_of_box(Box(10, 12, 30, 32), Size(96, 96))), str(place_of_box(Box(22, 40, 42, 60), Size(96, 96)))
        ('top left', 'middle left/center')
    """
    rows = _cells(box.y1, box.y2, size.height, ROWS)
    centre = ((box.x1 + box.x2) / 2 / max(size.width, 1), (box.y1 + box.y2) / 2 / max(size.height, 1))
    return Place(rows=rows, columns=_cells(box.x1, box.x2, size.width, COLUMNS), centre=centre)


def _cells(low: float, high: float, side: int, names: tuple[str, ...]) -> frozenset[str]:
    share = (high - low) / max(side, 1)
    if share > WHOLE_SIDE:
        return frozenset(names)
    centre = (low + high) / 2 / max(side, 1)
    tolerance = min(max(share / 4, LEAST_TOLERANCE), MOST_TOLERANCE)
    return frozenset(n for i, n in enumerate(names) if i / 3 - tolerance < centre < (i + 1) / 3 + tolerance)


def place_of_words(names: Iterable[str], *, is_half: bool = False) -> Place:
    """The cells named by region words (`top bottom left right center`).

    Example:
        >>> [str(place_of_words(names)) for names in (["top", "left"], ["center", "right"], ["center"])]
        ['top left', 'middle right', 'middle center']
    """
    named = set(names)
    rows, columns = named & {"top", "bottom"}, named & {"left", "right"}
    if "center" in named:
        if not rows:
            rows = {"middle"}
        if not columns:
            columns = {"center"}
    elif is_half:  # the left half reaches into the middle column
        rows |= {"middle"} if rows else set()
        columns |= {"center"} if columns else set()
    return Place(rows=frozenset(rows) or None, columns=frozenset(columns) or None)


@dataclass(slots=True)
class Entity:
    """One object of a text, with everything the text says of it.

    Attributes:
        head: kind of object; empty for "thing" and the like.
        attributes: dimension -> one set of values per statement.
        denied: dimension -> values the text denies.
        owner: index of the entity it is part of or found on.
        places: location claims, in order.
        denied_places: places where the text says it is not.
        count: how many the text says there are; 0 if it says there is none.
        is_plural: written in the plural, so a count of 1 would be wrong.
        hedges: claims with alternatives ("red or blue"); they say nothing, at length.
        is_given: the question names it.
        is_asserted: the text says that it exists (not merely "the ...").
        is_known: the noun stands in the lexicon.
        given: dimensions whose value the question gives.
    """

    head: str
    attributes: dict[str, list[frozenset[str]]] = field(default_factory=dict)
    denied: dict[str, frozenset[str]] = field(default_factory=dict)
    owner: int | None = None
    places: list[Place] = field(default_factory=list)
    denied_places: list[Place] = field(default_factory=list)
    count: int | None = None
    is_plural: bool = False
    hedges: int = 0
    is_given: bool = False
    is_asserted: bool = False
    is_known: bool = True
    given: frozenset[str] = frozenset()

    def values(self, dimension: str) -> frozenset[str]:
        """All values stated of one dimension."""
        return frozenset().union(*self.attributes.get(dimension, ()))

    def conflicts(self, attributes: dict[str, frozenset[str]], ignore: frozenset[str] = frozenset()) -> str:
        """The first dimension in which `attributes` differs from what is stated; empty if none does."""
        for dimension, values in attributes.items():
            mine = self.values(dimension)
            if dimension not in ignore and mine and values and not mine & values:
                return dimension
        return ""

    def copy(self) -> Entity:
        return replace(
            self,
            attributes={d: list(v) for d, v in self.attributes.items()},
            denied=dict(self.denied),
            places=list(self.places),
            denied_places=list(self.denied_places),
        )


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject` stands in relation `name` to `object`; `is_denied` if the text says it does not."""

    subject: int
    name: str
    object: int
    is_denied: bool = False


@dataclass(slots=True)
class Claims:
    """Everything one text says. `asked` is the entity the question is about, where it names one."""

    entities: list[Entity] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    asked: int | None = None

    def name(self, index: int) -> str:
        """A short name for messages: its values and kind."""
        entity = self.entities[index]
        words = [v for d in sorted(entity.attributes) for v in sorted(entity.values(d))]
        return " ".join((*words, entity.head or "object"))

    def places(self, index: int) -> list[Place]:
        """Location claims of an entity; failing that of what it is on, failing that of its parts."""
        entity = self.entities[index]
        if entity.places:
            return entity.places
        if entity.owner is not None and self.entities[entity.owner].places:
            return self.entities[entity.owner].places
        return [p for part in self.entities if part.owner == index for p in part.places]
