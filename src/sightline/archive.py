"""The archive: per Record, the best reference Rollout seen so far. It belongs to the trainer and to its checkpoint.

Source: iVGR (arXiv 2605.31096), the rollout archive. A Record is known by its content, so references survive a new row
order; what is stored is plain JSON with a schema version.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sightline.credit.config import Settings
from sightline.errors import UserError
from sightline.types import Box, Record, Reference

__all__ = ["Archive", "ArchiveConfig", "read_archive", "record_key", "reference_row"]

SCHEMA = 1
_COUNTS = ("offered", "added", "replaced", "reads", "hits", "age")


class ArchiveConfig(Settings):
    """Which reference of a Record is kept."""

    policy: Literal["best_so_far", "current_step", "max_age"] = Field(
        default="best_so_far",
        description="best_so_far keeps the best of all steps; current_step forgets (no archive); max_age in between",
    )
    max_age: int | None = Field(
        default=None, ge=0, description="steps after which a reference expires (policy max_age only)"
    )

    @model_validator(mode="after")
    def _age_belongs_to_its_policy(self) -> ArchiveConfig:
        if (self.policy == "max_age") != (self.max_age is not None):
            raise ValueError("max_age goes with policy max_age, and only with it")
        return self


def record_key(record: Record) -> str:
    """Content hash of a Record: its id, the content of its images, its question.

    Example:
        >>> a = Record(id="1", question="What is red?", answer="cup")
        >>> record_key(a) == record_key(Record(id="1", question="What is red?", answer="mug"))
        True
        >>> record_key(a) == record_key(Record(id="2", question="What is red?", answer="cup"))
        False
    """
    content = json.dumps([record.id, [image.digest for image in record.images], record.question])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class Archive:
    """At most one Reference per Record.

    A candidate replaces what is there iff its `rank` is lexicographically greater, so ties keep the older one; an
    expired reference is replaced by any candidate. One thread writes (the loop, between the two scoring phases).

    Example:
        >>> archive = Archive()
        >>> archive.offer(Reference(key="k", text="left", boxes=(), rank=(1.0, 0.5)))
        True
        >>> archive.offer(Reference(key="k", text="right", boxes=(), rank=(1.0, 0.5)))
        False
        >>> archive.get("k").text
        'left'
    """

    def __init__(self, config: ArchiveConfig | None = None) -> None:
        self.config = config or ArchiveConfig()
        self.step = 0
        self._references: dict[str, Reference] = {}
        self._counts = dict.fromkeys(_COUNTS, 0)

    def __len__(self) -> int:
        return sum(not self._is_expired(reference) for reference in self._references.values())

    def advance(self, step: int) -> None:
        """Moves to `step`: ages count from here, its counters start at zero, and what has expired is dropped."""
        if step != self.step:
            self.step = step
            self._counts = dict.fromkeys(_COUNTS, 0)
            self._references = {reference.key: reference for reference in self.references()}

    def get(self, key: str) -> Reference | None:
        """The reference of a Record, None if there is none that has not expired."""
        reference = self._references.get(key)
        return None if reference is None or self._is_expired(reference) else reference

    def read(self, key: str) -> Reference | None:
        """As `get`, and counted in the statistics of the step: scoring reads a Record's reference once."""
        reference = self.get(key)
        self._counts["reads"] += 1
        if reference is not None:
            self._counts["hits"] += 1
            self._counts["age"] += self.step - reference.step
        return reference

    def offer(self, reference: Reference) -> bool:
        """Keeps a candidate if it is better than what is there; says whether it was kept."""
        self._counts["offered"] += 1
        present = self.get(reference.key)
        if present is not None and not reference.rank > present.rank:
            return False
        self._counts["added" if present is None else "replaced"] += 1
        self._references[reference.key] = reference
        return True

    def of_step(self, step: int) -> tuple[Reference, ...]:
        """References that entered in `step`; several processes exchange these."""
        return tuple(reference for reference in self._references.values() if reference.step == step)

    def references(self) -> tuple[Reference, ...]:
        """All references that have not expired, in order of first arrival."""
        return tuple(reference for reference in self._references.values() if not self._is_expired(reference))

    def stats(self) -> dict[str, float]:
        """What the present step did, and what is held.

        `offered`, `added`, `replaced` count candidates; `hits` is the share of reads that found a reference and `age`
        its mean age in steps; `size`, `mean_age` and `mean_<score>` describe the references held.
        """
        held, counts = self.references(), self._counts
        stats = {name: float(counts[name]) for name in ("offered", "added", "replaced")}
        stats["size"] = float(len(held))
        if counts["reads"]:
            stats["hits"] = counts["hits"] / counts["reads"]
        if counts["hits"]:
            stats["age"] = counts["age"] / counts["hits"]
        if held:
            stats["mean_age"] = sum(self.step - reference.step for reference in held) / len(held)
        for name in dict.fromkeys(name for reference in held for name in reference.scores):
            values = [reference.scores[name] for reference in held if name in reference.scores]
            stats[f"mean_{name}"] = sum(values) / len(values)
        return stats

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as JSON-able data. The policy is configuration and is not part of it."""
        return {
            "schema": SCHEMA,
            "step": self.step,
            "counts": dict(self._counts),
            "references": [reference_row(reference) for reference in self._references.values()],
        }

    def load_state(self, state: Any, where: str = "archive") -> None:
        """Replaces the content by a saved state.

        Raises:
            UserError: the state has another schema version, or a reference lacks a field or has one of a wrong type.
        """
        if not isinstance(state, Mapping) or state.get("schema") != SCHEMA:
            found = state.get("schema") if isinstance(state, Mapping) else type(state).__name__
            raise UserError(
                f"schema version {found!r}, expected {SCHEMA}",
                where=where,
                hint="resume with the version that saved it",
            )
        try:
            step, counts = int(state["step"]), {name: int(state["counts"][name]) for name in _COUNTS}
            references = [_reference(row) for row in state["references"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"broken archive: {error!r}", where=where) from error
        self.step, self._counts = step, counts
        self._references = {reference.key: reference for reference in references}

    def save(self, path: str | Path) -> None:
        """Writes the state as JSON: to a temporary file first, flushed to disk, then renamed."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(self.state(), file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def export(self, path: str | Path) -> int:
        """Writes the references as JSONL, one a line; returns how many."""
        rows = [json.dumps(reference_row(reference), ensure_ascii=False) for reference in self.references()]
        Path(path).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        return len(rows)

    def _is_expired(self, reference: Reference) -> bool:
        if self.config.policy == "best_so_far":
            return False
        limit = 0 if self.config.policy == "current_step" else self.config.max_age or 0
        return self.step - reference.step > limit


def read_archive(path: str | Path, config: ArchiveConfig | None = None) -> Archive:
    """Reads what `Archive.save` wrote.

    Raises:
        UserError: the file is missing, is not JSON, or has another schema.
    """
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path), hint="an archive is saved with each checkpoint") from error
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path)) from error
    archive = Archive(config)
    archive.load_state(state, str(path))
    return archive


def reference_row(reference: Reference) -> dict[str, Any]:
    """A Reference as JSON-able data.

    Example:
        >>> reference_row(Reference(key="k", text="t", boxes=(Box(1, 2, 3, 4),), rank=(1.0,)))["boxes"]
        [[1, 2, 3, 4]]
    """
    return {
        "key": reference.key,
        "text": reference.text,
        "boxes": [list(box) for box in reference.boxes],
        "rank": list(reference.rank),
        "scores": dict(reference.scores),
        "step": reference.step,
    }


def _reference(row: Mapping[str, Any]) -> Reference:
    if not (isinstance(row["key"], str) and isinstance(row["text"], str)):
        raise TypeError("key and text of a reference must be strings")
    return Reference(
        key=row["key"],
        text=row["text"],
        boxes=tuple(Box(*_floats(box)) for box in row["boxes"]),
        rank=_floats(row["rank"]),
        scores={str(name): float(value) for name, value in row["scores"].items()},
        step=int(row["step"]),
    )


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
