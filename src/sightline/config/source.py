"""Where a value of a recipe was written, so that an error can point there: YAML lines and command-line overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sightline.errors import UserError

__all__ = ["Origin", "nested", "parse_overrides", "read_yaml"]

# `--model embedded:qwen3_vl` reads better than `--model.name ...`; only these sections have one obvious field.
SHORT = {"model": "model.name", "method": "method.name", "data": "data.train", "judge": "judge.kind"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-6` as text; this loader reads it as the number everybody means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Knows the place of each dotted key of a recipe.

    Attributes:
        name: the file, or another name for what was read.
        lines: line number per dotted key.
        command: dotted keys that came from the command line.
        arm: the arm that is being resolved; its own keys are looked up first.
    """

    name: str = "recipe"
    lines: Mapping[str, int] = field(default_factory=dict)
    command: frozenset[str] = frozenset()
    arm: str | None = None

    def where(self, key: str) -> str:
        """The place of `key`, e.g. `recipe.yaml:12: optim.lr` or `command line: optim.lr`."""
        if self.arm is not None:
            armed = f"arms.{self.arm}.{key}"
            if armed in self.command or self._line(armed):
                key = armed
        if self._is_command(key):
            return f"command line: {key}"
        line = self._line(key)
        place = f"{self.name}:{line}" if line else self.name
        return f"{place}: {key}" if key else place

    def _is_command(self, key: str) -> bool:
        return key in self.command or any(key.startswith(f"{given}.") for given in self.command)

    def _line(self, key: str) -> int | None:
        return self.lines.get(key)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Reads a mapping from a YAML file.

    Returns:
        The mapping, and the line of each dotted key. Duplicate keys are an error: YAML would keep the last silently.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"cannot be read: {problem}", where=str(path)) from problem
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is not None:
            _collect_lines(node, "", lines, path)
        values = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"is not valid YAML: {getattr(problem, 'problem', None) or problem}", where=where) from problem
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise UserError("must hold sections such as `method:` and `data:`", where=str(path))
    return values, lines


def _collect_lines(node: yaml.Node, prefix: str, lines: dict[str, int], path: Path) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        dotted = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        line = key_node.start_mark.line + 1
        if dotted in lines:
            raise UserError(
                f"key {dotted!r} occurs twice (first in line {lines[dotted]})",
                where=f"{path}:{line}",
                hint="keep one of them",
            )
        lines[dotted] = line
        _collect_lines(value_node, dotted, lines, path)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Command-line pairs `--a.b value` or `--a.b=value` as `{"a.b": parsed value}`, in order.

    Values are YAML: numbers, true, null, [1, 2], {a: 1}, else text. Dashes in keys read as underscores.

    Example:
        >>> parse_overrides(["--optim.lr", "1e-4", "--train.log-groups=2", "--model", "embedded:qwen3_vl"])
        {'optim.lr': 0.0001, 'train.log_groups': 2, 'model.name': 'embedded:qwen3_vl'}
    """
    given: dict[str, Any] = {}
    rest = list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UserError(
                f"expected a key such as --optim.lr, got {word!r}", where="command line", hint="write --KEY VALUE"
            )
        name, has_value, value = word[2:].partition("=")
        if not has_value:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise UserError("needs a value", where=f"command line: {word}", hint=f"write {word} VALUE")
            value = rest.pop(0)
        key = name.replace("-", "_")
        parsed = _parse_value(value, word)
        if key in SHORT and not isinstance(parsed, dict):
            key = SHORT[key]
        given[key] = parsed
    return given


def _parse_value(value: str, word: str) -> Any:
    loader = _Loader(value)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as problem:
        raise UserError(
            f"value {value!r} is not valid YAML", where=f"command line: {word}", hint="quote it once more"
        ) from problem
    finally:
        loader.dispose()


def nested(values: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Spells dotted keys out as nested mappings.

    Example:
        >>> nested({"optim.lr": 0.1, "optim": {"epochs": 2}})
        {'optim': {'lr': 0.1, 'epochs': 2}}
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        parts = str(key).split(".")
        if not all(parts):
            raise UserError(f"{key!r} is not a dotted key", where=name, hint="write section.key")
        inner = nested(value, name) if isinstance(value, Mapping) else value
        for part in reversed(parts[1:]):
            inner = {part: inner}
        _merge_into(result, parts[0], inner)
    return result


def _merge_into(target: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(target.get(key), dict) and isinstance(value, dict):
        for inner_key, inner in value.items():
            _merge_into(target[key], inner_key, inner)
    else:
        target[key] = value
