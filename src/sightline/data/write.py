"""Writes Records in the library's own format: `records.jsonl` and `images/`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sightline.errors import UserError
from sightline.types import ImageRef, Record, Region

__all__ = ["row_of", "write_records"]

FILE = "records.jsonl"


def write_records(records: Iterable[Record], folder: str | Path) -> Path:
    """Writes the records and returns the JSONL file.

    Images held in memory become PNG files; images on disk are copied byte by byte, so their EXIF data and digest stay.
    One file serves all rows that show the same image. An existing file is never overwritten.

    Raises:
        UserError: the folder already holds records, or `meta` holds something that JSON cannot.
    """
    target = Path(folder)
    path = target / FILE
    if path.exists():
        raise UserError("already exists", where=str(path), hint="name a new folder")
    (target / "images").mkdir(parents=True, exist_ok=True)
    partial = target / f"{FILE}.partial"
    with partial.open("wb") as stream:
        for record in records:
            names = [_write_image(image, target) for image in record.images]
            stream.write(_line(record, names) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    return path


def _line(record: Record, names: list[str]) -> bytes:
    try:
        return json.dumps(row_of(record, names), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as problem:
        raise UserError(f"cannot be written as JSON: {problem}", where=f"record {record.id}") from problem


def row_of(record: Record, image_names: list[str]) -> dict[str, Any]:
    """The record as a row of our own format; empty keys are left out, boxes keep every digit."""
    row: dict[str, Any] = {
        "id": record.id,
        "images": image_names,
        "question": record.question,
        "answer": record.answer,
        "answer_kind": record.answer_kind,
        "options": list(record.options),
        "regions": [_region_row(region) for region in record.regions],
        "meta": dict(record.meta),
    }
    return {key: value for key, value in row.items() if value not in ([], {})}


def _region_row(region: Region) -> dict[str, Any]:
    row: dict[str, Any] = {"box": list(region.box)}
    if region.label is not None:
        row["label"] = region.label
    if region.role != "evidence":
        row["role"] = region.role
    if region.image:
        row["image"] = region.image
    return row


def _write_image(image: ImageRef, folder: Path) -> str:
    """Stores the image under its digest and returns the name relative to the folder."""
    suffix = Path(image.path).suffix.lower() if image.path is not None and image.pixels is None else ".png"
    name = f"images/{image.digest[:16]}{suffix}"
    path = folder / name
    if path.exists():
        return name
    partial = path.with_name(path.name + ".partial")
    if image.pixels is not None:
        from PIL import Image

        Image.fromarray(image.pixels).save(partial, format="PNG")
    elif image.path is not None:
        shutil.copyfile(image.path, partial)
    else:
        raise UserError("image has neither pixels nor a path", where=f"image {image.digest[:16]}")
    partial.replace(path)
    return name
