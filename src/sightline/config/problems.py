"""Turns pydantic's findings into one clear line each: place, dotted key, value, what was expected, what to try."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from sightline.errors import UserError

__all__ = ["expected", "schema_fields", "user_error"]

Where = Callable[[str], str]


def user_error(error: ValidationError, model: type[BaseModel], where: Where, prefix: str = "") -> UserError:
    """All mistakes in one line, separated by semicolons.

    Args:
        error: what pydantic raised.
        model: the class that was validated; its schema says what was expected and which keys exist.
        where: gives the place of a dotted key, e.g. `Origin.where`.
        prefix: dotted key of the section that was validated, `""` for a whole recipe.
    """
    schema = model.model_json_schema()
    problems = [_one(found, schema, where, prefix) for found in error.errors(include_url=False)]
    if len(problems) == 1:
        return problems[0]
    return UserError("; ".join(str(problem) for problem in problems))


def _one(found: Mapping[str, Any], schema: dict, where: Where, prefix: str) -> UserError:
    keys = [str(part) for part in found["loc"]]
    parent, last, name = schema, schema, ""
    for depth, part in enumerate(keys):
        step = _child(last, part, schema)
        if step is None:  # a tag that pydantic adds for unions, or the unknown key itself
            keys = keys[:depth]
            break
        parent, last, name = last, step, part
    key = ".".join(filter(None, [prefix, *keys]))
    if found["type"] == "extra_forbidden":
        unknown = str(found["loc"][-1])
        hint = _suggestion(unknown, last, schema, key, prefix)
        return UserError(f"unknown key {unknown!r}", where=where(f"{key}.{unknown}" if key else unknown), hint=hint)
    if found["type"] == "missing":
        return UserError(f"missing; expected {expected(last, schema)}", where=where(key))
    if found["type"] == "value_error":
        return UserError(str(found["ctx"]["error"]) if "ctx" in found else found["msg"], where=where(key))
    hint = ""
    value = found.get("input")
    choices = _choices(last, schema)
    if isinstance(value, str) and choices:
        hint = _closest(value, choices)
    elif parent is not last and isinstance(value, str) and name:
        hint = "remove the quotes" if _is_quoted_number(value, last, schema) else ""
    return UserError(f"expected {expected(last, schema)}, got {value!r}", where=where(key), hint=hint)


def _is_quoted_number(value: str, node: dict, root: dict) -> bool:
    return value.replace(".", "", 1).lstrip("-").isdigit() and "number" in expected(node, root)


def _resolve(node: dict, root: dict) -> dict:
    """Follows `$ref`, `allOf` of one, and the non-null branch of a nullable field."""
    if "$ref" in node:
        return _resolve({**root["$defs"][node["$ref"].rsplit("/", 1)[-1]], **_own(node)}, root)
    if len(node.get("allOf", ())) == 1:
        return _resolve(node["allOf"][0], root)
    branches = [b for b in node.get("anyOf", ()) if b.get("type") != "null"]
    return _resolve({**branches[0], **_own(node)}, root) if len(branches) == 1 else node


def _own(node: dict) -> dict:
    return {key: node[key] for key in ("default", "description") if key in node}


def _child(node: dict, part: str, root: dict) -> dict | None:
    node = _resolve(node, root)
    if part in node.get("properties", {}):
        return node["properties"][part]
    if part.isdigit() and "prefixItems" in node:
        return node["prefixItems"][min(int(part), len(node["prefixItems"]) - 1)]
    if part.isdigit() and isinstance(node.get("items"), dict):
        return node["items"]
    extra = node.get("additionalProperties")
    return extra if isinstance(extra, dict) else None


def schema_fields(model: type[BaseModel]) -> Iterator[tuple[str, dict, dict]]:
    """Every leaf field as (dotted key, its schema, the schema it may refer to), in order of declaration."""
    root = model.model_json_schema()
    yield from _leaves(root, "", root)


def _leaves(node: dict, prefix: str, root: dict) -> Iterator[tuple[str, dict, dict]]:
    for name, child in _resolve(node, root).get("properties", {}).items():
        key = f"{prefix}.{name}" if prefix else name
        if _resolve(child, root).get("properties"):
            yield from _leaves(child, key, root)
        else:
            yield key, child, root


def _suggestion(unknown: str, parent: dict, root: dict, key: str, prefix: str) -> str:
    siblings = list(_resolve(parent, root).get("properties", {}))
    near = _closest(unknown, siblings)
    if near:
        return near
    elsewhere = [leaf for leaf, _, _ in ((k, s, r) for k, s, r in _leaves(root, "", root))]
    exact = [leaf for leaf in elsewhere if leaf.rsplit(".", 1)[-1] == unknown]
    if exact:
        return f"did you mean {'.'.join(filter(None, [prefix, exact[0]]))!r}?"
    listed = ", ".join(siblings)
    return f"keys of {key or 'a recipe'}: {listed}" if siblings else ""


def _closest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def _choices(node: dict, root: dict) -> list[str]:
    node = _resolve(node, root)
    return [str(choice) for choice in node.get("enum", [node["const"]] if "const" in node else [])]


def expected(node: dict, root: dict) -> str:
    """A field's type and limits in words.

    Example:
        >>> expected({"type": "integer", "minimum": 1}, {})
        'a whole number >= 1'
        >>> expected({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, {})
        'a number > 0, or null'
    """
    branches = node.get("anyOf", ())
    if branches:
        words = [expected(branch, root) for branch in branches if branch.get("type") != "null"]
        is_nullable = len(words) < len(branches)
        return " or ".join(words) + (", or null" if is_nullable else "")
    node = _resolve(node, root)
    choices = _choices(node, root)
    if choices:
        return "one of " + ", ".join(choices) if len(choices) > 1 else choices[0]
    kind = node.get("type")
    if kind == "array":
        return _expected_list(node, root)
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "object": "a section of keys",
    }.get(str(kind), "a value")
    limits = [
        f"{sign} {node[name]:g}"
        for name, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if name in node
    ]
    pattern = f" of the form {node['pattern']}" if "pattern" in node else ""
    return " ".join([words, " and ".join(limits)]).strip() + pattern


def _expected_list(node: dict, root: dict) -> str:
    if "prefixItems" in node:
        return "a list [" + ", ".join(expected(item, root) for item in node["prefixItems"]) + "]"
    items = node.get("items")
    return f"a list, each {expected(items, root)}" if items else "a list"
