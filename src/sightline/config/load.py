"""Finds, loads, compares and explains recipes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sightline.config.problems import expected, schema_fields
from sightline.config.recipe import Recipe, build_recipe, merge, resolved
from sightline.config.source import Origin, nested, parse_overrides, read_yaml
from sightline.errors import UserError

__all__ = ["Difference", "FieldLine", "diff", "explain", "load_recipe", "recipe_names", "recipe_path"]

SUFFIXES = (".yaml", ".yml")


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the library."""
    folder = resources.files("sightline") / "recipes"
    return tuple(sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a shipped recipe, of a path, or of a run folder (its resolved recipe)."""
    text = str(name_or_path)
    if text in recipe_names():
        return Path(str(resources.files("sightline") / "recipes" / f"{text}.yaml"))
    path = Path(text)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or path.parent != Path():
        raise UserError("no such recipe file", where=text, hint="`sightline recipe ls` lists the shipped ones")
    near = difflib.get_close_matches(text, recipe_names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`sightline recipe ls` lists them"
    raise UserError(f"no recipe named {text!r}", hint=hint)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads and validates a recipe.

    Args:
        name_or_path: a shipped recipe, a YAML file, or a run folder.
        overrides: command-line words, `--a.b value` or `--a.b=value`.

    Raises:
        UserError: names file and line, or the command line, the dotted key, and what was expected.
    """
    path = recipe_path(name_or_path)
    values, lines = read_yaml(path)
    given = parse_overrides(overrides)
    origin = Origin(name=str(name_or_path), lines=lines, command=frozenset(given))
    return build_recipe(merge(nested(values, str(path)), nested(given, "command line")), origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key whose value differs between two recipes; None where one of them lacks the key."""

    key: str
    a: Any
    b: Any


def diff(a: Recipe, b: Recipe) -> tuple[Difference, ...]:
    """Differences of the resolved values, by dotted key, in the order of `a`."""
    left, right = _flat(resolved(a)), _flat(resolved(b))
    keys = [*left, *(key for key in right if key not in left)]
    return tuple(
        Difference(key=key, a=left.get(key), b=right.get(key)) for key in keys if left.get(key) != right.get(key)
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            result.update(_flat(value, dotted))
        else:
            result[dotted] = value
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldLine:
    """One line of `recipe show`."""

    key: str
    value: Any
    default: Any
    expected: str
    description: str

    @property
    def is_default(self) -> bool:
        return self.value == self.default


def explain(recipe: Recipe) -> tuple[FieldLine, ...]:
    """Every field with its value, default, type with limits, and description; the method's and judge's included."""
    values = _flat(resolved(recipe))
    lines: list[FieldLine] = []
    for key, schema, root in schema_fields(Recipe):
        if key in ("method", "judge"):
            config = getattr(recipe, f"{key}_config")
            lines += [_line(f"{key}.{inner}", node, top, values) for inner, node, top in schema_fields(type(config))]
        elif key != "arms":
            lines.append(_line(key, schema, root, values))
    return tuple(lines)


def _line(key: str, schema: Mapping[str, Any], root: dict, values: Mapping[str, Any]) -> FieldLine:
    value = values[key] if key in values else _under(values, key)
    return FieldLine(
        key=key,
        value=value,
        default=schema.get("default"),
        expected=expected(dict(schema), root),
        description=schema.get("description", ""),
    )


def _under(values: Mapping[str, Any], key: str) -> Any:
    """Values below `key`, for fields that hold free mappings."""
    return {k[len(key) + 1 :]: v for k, v in values.items() if k.startswith(f"{key}.")} or None
