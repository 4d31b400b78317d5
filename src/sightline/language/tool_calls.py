"""Tool calls in a reply: JSON objects in `<tool_call>` tags, as Qwen's chat format writes them. Total on every string.

The reading is tolerant: code fences, typographic or single quotes, trailing commas, missing closing brackets, Python's
constants, arguments given as a string of JSON, several objects in one tag, and a last tag that is not closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sightline.language.sections import scan
from sightline.types import Span

__all__ = ["ToolCall", "tool_calls"]

LONGEST = 20_000
"""Characters of one tag that are read; a longer one is broken."""
DEEPEST = 40
"""Brackets within brackets; deeper ones are broken, whatever follows."""

_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})
_TRAILING = re.compile(r",(\s*+[}\]])")
_CONSTANTS = re.compile(r"(?<=[:,\[\s])(True|False|None)(?=[,\]}\s])")
_AS_JSON = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call as it stands in a text.

    Attributes:
        name: the tool, `""` where none could be read.
        arguments: what it is given, empty where none could be read.
        span: characters of the text, tags included.
        problem: why the call cannot be read; `""` if it can.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    span: Span
    problem: str = ""


def tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Every tool call of a text, in order; a tag without a readable call gives one with a problem.

    Example:
        >>> found = tool_calls("<tool_call>{'name': 'zoom', 'arguments': {'bbox_2d': [1, 2, 3, 4],}</tool_call>")
        >>> [(call.name, call.arguments, call.problem) for call in found]
        [('zoom', {'bbox_2d': [1, 2, 3, 4]}, '')]
        >>> tool_calls("<tool_call>zoom in</tool_call>")[0].problem
        'broken JSON'
    """
    out: list[ToolCall] = []
    for span, content in _tags(text):
        objects = list(_objects(content)) if len(content) <= LONGEST else []
        out += [_call(found, span) for found in objects] or [ToolCall(name="", span=span, problem="broken JSON")]
    return tuple(out)


def _tags(text: str) -> Iterator[tuple[Span, str]]:
    """Each closed tag with its content, then one that the text opens last and never closes."""
    found = scan(text, ("tool_call",))
    end = 0
    for block in found.blocks.get("tool_call", ()):
        yield block.span, text[slice(*block.content)]
        end = block.span.end
    left_open = [tag for tag in found.opened("tool_call") if tag.span.start >= end]
    if left_open:
        yield Span(left_open[0].span.start, len(text)), text[left_open[0].span.end :]


def _objects(content: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of one tag, an outer list taken apart."""
    for value in _values(_FENCE.sub("", content)):
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Mapping):
                yield entry


def _values(content: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at = _opening(content, 0) if _depth(content) <= DEEPEST else None
    while at is not None:
        try:
            value, at = decoder.raw_decode(content, at)
        except ValueError:  # broken, or a number of more digits than Python converts
            mended = _mended(content[at:])
            if mended is not None:
                yield mended
            return
        yield value
        at = _opening(content, at)


def _opening(content: str, start: int) -> int | None:
    found = re.compile(r"[{\[]").search(content, start)
    return None if found is None else found.start()


def _depth(content: str) -> int:
    depth = deepest = 0
    for character in content:
        depth += (character in "{[") - (character in "}]" and depth > 0)
        deepest = max(deepest, depth)
    return deepest


def _mended(content: str) -> Any:
    """The value of JSON that is broken in a usual way; None if it stays broken."""
    plain = content.translate(_QUOTES).strip()
    quoted = plain if '"' in plain else plain.replace("'", '"')
    words = _CONSTANTS.sub(lambda match: _AS_JSON[match[1]], quoted)
    text = _TRAILING.sub(r"\1", _closed(words))
    try:
        return None if _depth(text) > DEEPEST else json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None


def _closed(text: str) -> str:
    """The text with every open bracket closed, each where its outer bracket closes or at the end."""
    out: list[str] = []
    open_brackets: list[str] = []
    is_quoted = is_escaped = False
    for character in text:
        if is_quoted:
            is_quoted = character != '"' or is_escaped
            is_escaped = character == "\\" and not is_escaped
        elif character == '"':
            is_quoted = True
        elif character in "{[":
            if len(open_brackets) == DEEPEST:
                return ""
            open_brackets.append("}" if character == "{" else "]")
        elif character in "}]":
            if character not in open_brackets:
                continue
            while open_brackets[-1] != character:
                out.append(open_brackets.pop())
            open_brackets.pop()
        out.append(character)
    return "".join([*out, '"' if is_quoted else "", *reversed(open_brackets)])


def _call(found: Mapping[str, Any], span: Span) -> ToolCall:
    name = found.get("name")
    arguments = next((found[key] for key in ("arguments", "parameters", "args") if key in found), {})
    if isinstance(arguments, str):
        arguments = next(_objects(arguments), None) if len(arguments) <= LONGEST else None
    if not isinstance(name, str) or not name:
        return ToolCall(name="", span=span, problem="no tool is named")
    if not isinstance(arguments, Mapping):
        return ToolCall(name=name, span=span, problem="the arguments are no JSON object")
    return ToolCall(name=name, arguments=arguments, span=span)
