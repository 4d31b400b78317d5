"""Rows of the EasyR1 family as iVGR and TreeVGR publish them.

Columns: `problem` (image marker, newline, question), `query` (the bare question), `answer`, `images` (paths, bytes or
dicts with bytes), `target_instances` (list of `{bbox, label, name}`, pixels of the stored image), `datasource`.
Rows with boxes train the paired streams and rows without the general one; no data set name decides that here.
Differences from the released loader: no rows are dropped by their data source, the number of images is free, and a
row keeps the id of its place in the file, so a filter upstream does not shift it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sightline.errors import UserError

__all__ = ["read"]

MARKER = "<image>"


def read(row: Mapping[str, Any]) -> dict[str, Any]:
    """Maps one row; instances without a box are dropped, as the released code does."""
    question = row.get("query") or _bare(row.get("problem"))
    if not question:
        raise UserError(
            "missing; `query` or `problem` must hold the question", where="query",
            hint="rows in this library's own form: --data.reader ours" if "question" in row else "",
        )  # fmt: skip
    if row.get("answer") is None:
        raise UserError("missing", where="answer")
    instances = _list(row.get("target_instances"), "target_instances")
    kept = {"datasource": row.get("datasource"), "question_type": row.get("question_type")}
    identity = row.get("id")
    return {
        **({"id": identity} if identity is not None else {}),
        "question": question,
        "answer": row["answer"],
        "images": [_image(image) for image in _list(row.get("images"), "images")],
        "regions": [_region(instance, number) for number, instance in enumerate(instances) if _has_box(instance)],
        "frame": "original_px",
        "meta": {key: value for key, value in kept.items() if value is not None},
    }


def _bare(problem: Any) -> str | None:
    return problem.replace(MARKER, "").strip() if isinstance(problem, str) else None


def _list(value: Any, key: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str | bytes | Mapping):
        return [value]
    try:
        return list(value)
    except TypeError as problem:
        raise UserError(f"expected a list, got {value!r}", where=key) from problem


def _image(image: Any) -> Any:
    if isinstance(image, bytes):
        return {"bytes": image}
    if isinstance(image, Mapping):
        return {key: image[key] for key in ("bytes", "path") if image.get(key) is not None}
    return image


def _has_box(instance: Any) -> bool:
    return isinstance(instance, Mapping) and instance.get("bbox") is not None


def _region(instance: Mapping[str, Any], number: int) -> dict[str, Any]:
    label = instance.get("label") or instance.get("name")
    box = _list(instance["bbox"], f"target_instances[{number}].bbox")
    return {"box": box, **({"label": str(label)} if label else {})}
