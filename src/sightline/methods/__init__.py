"""The table of methods, and how a recipe's `method` section becomes one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.methods.base import Method, MethodConfig

__all__ = ["METHODS", "load_method", "load_method_config", "method_class", "method_config_class"]

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "faithful_mr1": "sightline.methods.faithful_mr1:FaithfulMR1",
        "grit": "sightline.methods.grit:GRIT",
        "deepeyes": "sightline.methods.deepeyes:DeepEyes",
        "ground_r1": "sightline.methods.ground_r1:GroundR1",
        "grpo": "sightline.methods.grpo:GRPO",
        "ivgr": "sightline.methods.ivgr:IVGR",
        "papo": "sightline.methods.papo:PAPO",
        "sayo": "sightline.methods.sayo:SAYO",
        "treevgr": "sightline.methods.treevgr:TreeVGR",
        "vppo": "sightline.methods.vppo:VPPO",
    }
)


def method_class(name: str) -> type[Method]:
    """The class of a method: a name of the table, or `package.module:Class` for one's own.

    Raises:
        UserError: nobody knows the name, the module cannot be imported, or the class is no Method.
    """
    from sightline.methods.base import Method

    path = METHODS.get(name, name)
    module_name, _, class_name = path.partition(":")
    if not class_name:
        import difflib

        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}; or package.module:Class"
        raise UserError(f"unknown method {name!r}", where="method.name", hint=hint)
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        hint = "write package.module:Class; the package must be importable where you start"
        raise UserError(f"cannot import {path!r}: {error}", where="method.name", hint=hint) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{path!r} is not a subclass of sightline.methods.base.Method", where="method.name")
    return found


def method_config_class(name: str) -> type[MethodConfig]:
    """The config class of a method."""
    return method_class(name).Config


def load_method_config(raw: Mapping[str, Any]) -> MethodConfig:
    """Validates a `method` section: explicit keys over the preset's over the defaults.

    Raises:
        UserError: no such method.
        pydantic.ValidationError: an unknown key, preset or value; the recipe loader turns it into one line per mistake.
    """
    return method_config_class(_name(raw)).model_validate(dict(raw))


def load_method(raw: Mapping[str, Any]) -> Method:
    """Builds the method that a `method` section describes, e.g. `{"name": "ivgr", "preset": "release"}`.

    Raises:
        UserError: names the key, what was expected, and the nearest valid word.
    """
    from pydantic import ValidationError

    kind = method_class(_name(raw))
    try:
        return kind(kind.Config.model_validate(dict(raw)))
    except ValidationError as error:
        from sightline.config.problems import user_error

        raise user_error(error, kind.Config, str, "method") from error


def _name(raw: Mapping[str, Any]) -> str:
    name = raw.get("name")
    if not isinstance(name, str) or not name:
        raise UserError("a method needs a name", where="method.name", hint=f"one of {', '.join(METHODS)}")
    return name
