"""Readers: each turns a row of one external format into a mapping in the library's own format (`data/schema.py`).

A reader is one function of one argument. Images stay paths or bytes and boxes stay as they are: `frame` says what they
mean, and conversion happens once, for all readers, in `schema.record_of`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from sightline.errors import UserError

__all__ = ["READERS", "Reader", "load_reader"]

Reader = Callable[[Mapping[str, Any]], Mapping[str, Any]]

READERS: Mapping[str, str] = {
    "ours": "sightline.data.readers.ours:read",
    "ivgr": "sightline.data.readers.ivgr:read",
    "grit": "sightline.data.readers.grit:read",
    "ground_r1": "sightline.data.readers.ground_r1:read",
}


def load_reader(name: str) -> Reader:
    """A reader of the table, or a user's own as `package.module:function`."""
    target = READERS.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, READERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(READERS)}, or package.module:function"
        raise UserError(f"unknown reader {name!r}", where="data.reader", hint=hint)
    try:
        reader = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as problem:
        raise UserError(f"cannot load reader {name!r}: {problem}", where="data.reader") from problem
    if not callable(reader):
        raise UserError(f"reader {name!r} is not a function", where="data.reader")
    return cast(Reader, reader)
