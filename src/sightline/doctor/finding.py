"""What a probe found: a level, what was seen, what that means, and what to type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sightline.errors import UserError
from sightline.types import Box, ImageRef

__all__ = ["LEVELS", "Finding", "Level", "Picture", "failed", "worst"]

Level = Literal["pass", "warn", "fail"]
LEVELS: tuple[Level, ...] = ("pass", "warn", "fail")


PROGRAMS = ("sightline", "curl", "git", "hf", "mkdir", "nvidia-smi", "pip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Something to look at: an image with boxes on it, as `report/overlay.py` draws them.

    Attributes:
        title: one line above it.
        image: what is shown.
        boxes, labels, styles: in pixels of the image; run in parallel.
        note: one line below it.
    """

    title: str
    image: ImageRef
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one probe.

    Attributes:
        level: `pass`; `warn`: the run can start and may disappoint; `fail`: it would be wasted.
        what: what was seen, with its figures.
        meaning: what that means for the run.
        command: what to type, or the key to change; empty where nothing is to be done.
        details: further lines, e.g. one per image or record.
        shows_details: all of them are shown even if the probe passes.
        pictures: what a person would rather see.
        values: the figures by name, for programs.
    """

    level: Level
    what: str
    meaning: str
    command: str = ""
    details: tuple[str, ...] = ()
    shows_details: bool = False
    pictures: tuple[Picture, ...] = field(default=(), compare=False)
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def is_typed(self) -> bool:
        """Whether the command can be typed as it stands; else it says in words what to change."""
        return self.command.split(" ", 1)[0] in PROGRAMS


def failed(error: UserError, meaning: str) -> Finding:
    """Bad input that a probe met: its hint is what to type.

    Example:
        >>> failed(UserError("no such folder", where="model.name", hint="sightline recipe ls"), "nothing runs").command
        'sightline recipe ls'
    """
    return Finding(
        level="fail",
        what=f"{error.where}: {error.what}" if error.where else error.what,
        meaning=meaning,
        command=error.hint,
    )


def worst(levels: Sequence[Level]) -> Level:
    """The most serious level; `pass` of nothing.

    Example:
        >>> worst(["pass", "warn", "pass"]), worst([])
        ('warn', 'pass')
    """
    return LEVELS[max((LEVELS.index(level) for level in levels), default=0)]
