"""The tagged sections of a reply: where each block stands, and what is odd about the tags.

A block runs from an opening tag to the first closing tag of the same name after it. Blocks may hold blocks of other
names. Tags may carry spaces or capitals (noted); `<Focus>` in exactly this spelling is a marker token, not a tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sightline.types import Span

__all__ = ["TAGS", "Block", "Tag", "TagScan", "blocks", "scan"]

TAGS = (
    *("think", "rethink", "answer", "box", "tool_call", "reflection"),
    *("belief", "evidence", "focus", "cases", "relevant", "rule", "apply"),
)
"""The sections known to `read`."""

_MARKER = "<Focus>"


class Tag(NamedTuple):
    """One tag as it stands in the text."""

    name: str
    is_closing: bool
    span: Span
    attributes: str


class Block(NamedTuple):
    """A closed block: all of it, and the part between the tags."""

    span: Span
    content: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class TagScan:
    """The tags of a text in order, and the closed blocks of each name that has one."""

    text: str
    tags: tuple[Tag, ...]
    blocks: Mapping[str, tuple[Block, ...]]

    def opened(self, name: str) -> tuple[Tag, ...]:
        return tuple(t for t in self.tags if t.name == name and not t.is_closing)

    def closed(self, name: str) -> tuple[Tag, ...]:
        return tuple(t for t in self.tags if t.name == name and t.is_closing)

    def content(self, name: str) -> str | None:
        """What the first closed block of that name holds."""
        found = self.blocks.get(name)
        return self.text[slice(*found[0].content)] if found else None


def scan(text: str, names: Sequence[str] = TAGS) -> TagScan:
    """Finds the tags of the given names and pairs them into blocks.

    Example:
        >>> found = scan("<think> a cat </think> <answer> yes")
        >>> found.content("think"), found.content("answer"), len(found.tags)
        (' a cat ', None, 3)
    """
    # Possessive quantifiers: a long run of blanks after "<" must not be tried in every split.
    pattern = rf"<\s*+(/?)\s*+({'|'.join(map(re.escape, names))})(?![\w-])([^<>]*+)>"
    tags = tuple(
        Tag(m[2].lower(), bool(m[1]), Span(*m.span()), m[3].strip())
        for m in re.finditer(pattern, text, re.IGNORECASE)
        if m[0] != _MARKER
    )
    found = {name: _pairs(tags, name) for name in names}
    return TagScan(text=text, tags=tags, blocks={name: pairs for name, pairs in found.items() if pairs})


def blocks(text: str, name: str) -> tuple[str, ...]:
    """Contents of every closed block of one name, in order.

    Example:
        >>> blocks("<case>a</case> and <case id='2'>b</case>", "case")
        ('a', 'b')
    """
    return tuple(text[slice(*block.content)] for block in scan(text, (name,)).blocks.get(name, ()))


def _pairs(tags: Sequence[Tag], name: str) -> tuple[Block, ...]:
    found: list[Block] = []
    opening: Tag | None = None
    for tag in tags:
        if tag.name != name:
            continue
        if tag.is_closing and opening is not None:
            span = Span(opening.span.start, tag.span.end)
            found.append(Block(span, Span(opening.span.end, tag.span.start)))
            opening = None
        elif not tag.is_closing and opening is None:
            opening = tag
    return tuple(found)
