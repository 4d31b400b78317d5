"""`sightline recipe ls | show | copy | diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional, Suppress

from sightline.errors import UserError

__all__ = ["Copy", "Diff", "List", "Show"]


@dataclass(frozen=True, kw_only=True)
class List:
    """List the recipes that come with the library."""

    def run(self) -> int:
        from sightline.config import load_recipe, recipe_names

        width = max(map(len, recipe_names()))
        for name in recipe_names():
            print(f"{name:<{width}}  {load_recipe(name).summary}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print a recipe with every default filled in; overrides such as `--optim.lr 1e-4` are applied.

    The output is a recipe: save it, change it, train it.
    """

    recipe: Positional[str]
    """Name of a shipped recipe, a YAML file, or a run folder."""
    explain: bool = False
    """Say of each key what it means and which values it takes."""
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from sightline.config import explain, load_recipe, resolved_yaml

        recipe = load_recipe(self.recipe, self.overrides)
        if not self.explain:
            print(resolved_yaml(recipe), end="")
            return 0
        for line in explain(recipe):
            mark = "" if line.is_default else f"   (default {_written(line.default)})"
            print(f"{line.key}: {_written(line.value)}{mark}\n    {line.expected}. {line.description}".rstrip())
        return 0


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Copy a recipe, comments included, to a file of your own."""

    recipe: Positional[str]
    """Name of a shipped recipe, a YAML file, or a run folder."""
    target: Positional[Path]
    """The new file."""

    def run(self) -> int:
        from sightline.config import recipe_path

        source = recipe_path(self.recipe)
        target = self.target / source.name if self.target.is_dir() else self.target
        if target.exists():
            raise UserError("exists already", where=str(target), hint="choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        print(f"{target}: edit it, then run: sightline train {target}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Diff:
    """The keys in which two recipes differ, defaults filled in; overrides apply to the second."""

    first: Positional[str]
    """A recipe: name, file or run folder."""
    second: Positional[str]
    """Another one."""
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from sightline.config import diff, load_recipe

        differences = diff(load_recipe(self.first), load_recipe(self.second, self.overrides))
        for difference in differences:
            print(f"{difference.key}: {_written(difference.a)} -> {_written(difference.b)}")
        if not differences:
            print("the two recipes are equal")
        return 0


def _written(value: Any) -> str:
    """A value as it is written in a recipe, on one line."""
    import json

    return json.dumps(value, ensure_ascii=False)
