"""The library's own row format and how a row becomes a Record.

A row of a `.jsonl` or `.parquet` file::

    {"id": "kitchen-17", "images": ["kitchen/17.jpg"], "question": "What color is the cup?", "answer": "red",
     "regions": [{"box": [412, 230, 508, 310], "label": "cup"}]}

Only `question` and `answer` are required. Boxes are original pixels `xyxy` unless `frame` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sightline.data.coordinates import FRAMES, to_pixels
from sightline.errors import UserError
from sightline.types import AnswerKind, ImageRef, Record, Region

__all__ = ["ImageEntry", "Place", "RegionRow", "Row", "default_answer_kind", "parse_row", "record_of"]

MARKER = "<image>"
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?%?")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RegionRow(_Strict):
    """One gold region of a row."""

    box: Annotated[tuple[float, float, float, float], Field(strict=False)] = Field(
        description="four numbers in the row's frame; default x1, y1, x2, y2 in pixels of the original image"
    )
    label: str | None = Field(default=None, description="what the region shows")
    role: str = Field(default="evidence", description="evidence, or another role a method distinguishes")
    image: int = Field(default=0, ge=0, description="index into `images`")


class ImageEntry(_Strict):
    """An image stored in the row itself, as parquet files of the Hub hold it."""

    path: str | None = Field(default=None, description="file name; used where there are no bytes")
    content: bytes | None = Field(default=None, alias="bytes", description="the file itself (parquet only)")

    @model_validator(mode="after")
    def _holds_something(self) -> ImageEntry:
        if self.path is None and self.content is None:
            raise ValueError("needs a path or bytes")
        return self


class Row(_Strict):
    """A row in the library's own format, before its images are opened."""

    id: str | int | None = Field(default=None, description="unique name; default FILE-ROWNUMBER")
    question: str = Field(min_length=1, description="the question, without instructions to the model")
    answer: str | int | float = Field(description="the right answer; with options, a letter or an option's text")
    answer_kind: AnswerKind | None = Field(default=None, description="how answers are compared; null for the default")
    options: Annotated[tuple[str, ...], Field(strict=False)] = Field(default=(), description="choices, A first")
    images: Annotated[tuple[str | ImageEntry, ...], Field(strict=False)] = Field(
        default=(), description="paths relative to the file (or image_root)"
    )
    regions: Annotated[tuple[RegionRow, ...], Field(strict=False)] = Field(
        default=(), description="where the evidence is; may be empty"
    )
    frame: str | None = Field(default=None, description="frame of the boxes: " + ", ".join(FRAMES))
    meta: dict[str, Any] = Field(
        default_factory=dict, description="anything else; `aliases` lists further right answers"
    )

    @field_validator("images", mode="before")
    @classmethod
    def _list_of_images(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("options", "images", "regions", "meta", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any, info: Any) -> Any:
        return ({} if info.field_name == "meta" else ()) if value is None else value

    @field_validator("frame")
    @classmethod
    def _frame_is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in FRAMES:
            raise ValueError(f"unknown frame {value!r}; one of {', '.join(FRAMES)}")
        return value

    @model_validator(mode="after")
    def _numbers_agree(self) -> Row:
        markers = self.question.count(MARKER)
        if markers and markers != len(self.images):
            raise ValueError(f"question has {markers} {MARKER} markers but the row has {len(self.images)} images")
        for index, region in enumerate(self.regions):
            if region.image >= len(self.images):
                raise ValueError(f"regions[{index}].image is {region.image} but the row has {len(self.images)} images")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row stands, and what its file declares for it.

    Attributes:
        file: the data file.
        line: line of a JSONL file, row of a parquet file, counted from 1.
        image_root: folder that relative image paths start from.
        frame: frame of rows that declare none.
        id: the row's id once it is known.
    """

    file: Path
    line: int
    image_root: Path
    frame: str | None = None
    id: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" (id {self.id})" if self.id else "")

    @property
    def name(self) -> str:
        """The row's id, or the one it gets for lack of its own: the file's name and the line."""
        return self.id or f"{self.file.stem}-{self.line}"

    def error(self, what: str, *, key: str = "", hint: str = "") -> UserError:
        return UserError(what, where=f"{self}: {key}" if key else str(self), hint=hint)

    def image_path(self, name: str) -> Path:
        return self.image_root / name


def parse_row(values: Any, place: Place) -> Row:
    """Validates a mapping in our own format; one UserError line that names file, row and key."""
    if not isinstance(values, Mapping):
        raise place.error(f"a row must be an object with keys, got {type(values).__name__}")
    try:
        return Row.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise _explained(found, place) from error


def _explained(found: Any, place: Place) -> UserError:
    key = _key([part for part in found["loc"] if part not in ("str", "int", "float", "ImageEntry")])
    if found["type"] == "extra_forbidden":
        import difflib

        name = str(found["loc"][-1])
        near = difflib.get_close_matches(name, list(Row.model_fields), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "put columns of your own into `meta`"
        return place.error(f"unknown key {name!r}", key=key, hint=hint)
    if found["type"] in ("missing", "too_long") and "box" in found["loc"]:
        return place.error(f"needs four numbers, got {found['input']!r}", key=key.partition("box")[0] + "box")
    if found["type"] == "missing":
        return place.error("missing", key=key, hint="`sightline data check` lists every such row")
    if found["type"] == "value_error":
        return place.error(str(found["ctx"]["error"]), key=key)
    value = repr(found["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    problem = found["msg"][0].lower() + found["msg"][1:]
    return place.error(f"{problem}, got {shown}", key=key)


def _key(parts: Sequence[Any]) -> str:
    """`("regions", 0, "box")` as `regions[0].box`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def default_answer_kind(answer: str, options: Sequence[str] = ()) -> AnswerKind:
    """The kind of a row that declares none: options, then yes/no, then a number, then text.

    Example:
        >>> [default_answer_kind(a) for a in ("Yes", "1,200", "a red cup")]
        ['yes_no', 'number', 'text']
        >>> default_answer_kind("B", ("cat", "dog"))
        'option'
    """
    plain = answer.strip()
    if options:
        return "option"
    if plain.lower().rstrip(".") in ("yes", "no"):
        return "yes_no"
    return "number" if NUMBER.fullmatch(plain) else "text"


def record_of(row: Row, place: Place) -> Record:
    """Opens the row's images (headers and digests only) and converts its boxes to original pixels."""
    images = tuple(_image(entry, index, place) for index, entry in enumerate(row.images))
    frame = row.frame or place.frame or "original_px"
    regions = tuple(
        Region(box=to_pixels(r.box, frame, images[r.image].size), label=r.label, role=r.role, image=r.image)
        for r in row.regions
    )
    answer = str(row.answer)
    return Record(
        id=place.name,
        question=_without_markers(row.question),
        answer=answer,
        answer_kind=row.answer_kind or default_answer_kind(answer, row.options),
        images=images,
        options=row.options,
        regions=regions,
        meta=row.meta,
    )


def _image(entry: str | ImageEntry, index: int, place: Place) -> ImageRef:
    from sightline.images import image_ref

    path = entry if isinstance(entry, str) else entry.path
    content = None if isinstance(entry, str) else entry.content
    try:
        return image_ref(content if content is not None else str(place.image_path(str(path))))
    except UserError as problem:
        what = f"{problem.where}: {problem.what}" if problem.where else problem.what
        raise place.error(what, key=f"images[{index}]", hint=problem.hint) from problem


def _without_markers(question: str) -> str:
    """Leading markers go, since a Prompt shows the images first; inner ones become the image's number."""
    text, number = question, 1
    while text.lstrip().startswith(MARKER):
        text = text.lstrip()[len(MARKER) :]
        number += 1
    text = text.lstrip() if number > 1 else text
    while MARKER in text:
        text = text.replace(MARKER, f"image {number}", 1)
        number += 1
    return text
