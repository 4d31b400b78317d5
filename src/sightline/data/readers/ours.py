"""The library's own format: nothing to translate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["read"]


def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row itself. Parquet fills absent keys of nested rows with null; those count as absent."""
    kept = {key: value for key, value in row.items() if value is not None}
    if isinstance(kept.get("regions"), list):
        kept["regions"] = [_without_nulls(region) for region in kept["regions"]]
    return kept


def _without_nulls(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value
