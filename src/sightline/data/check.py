"""Looks at every row of a data file before a model does, and says what a run would trip over.

An *error* stops training or makes a reward wrong; a *warning* is worth a look. `FINDINGS` explains each kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sightline.data.records import ScannedRow, scan_rows
from sightline.data.schema import Row, record_of
from sightline.errors import UserError
from sightline.geometry.boxes import repair
from sightline.types import Box, Reading, Record, Score

if TYPE_CHECKING:
    from rich.console import Console

    from sightline.geometry.frames import Frame

__all__ = ["FINDINGS", "Finding", "Report", "check", "gold_score"]

Severity = Literal["error", "warning"]
Rescore = Callable[[Record], Score]

FINDINGS: Mapping[str, tuple[Severity, str]] = {
    "row": ("error", "the row cannot be read: bad JSON, a missing or unknown key, a wrong type, unequal image markers"),
    "image": ("error", "an image is missing or damaged"),
    "id": ("error", "two rows have the same id"),
    "box": ("error", "a box is empty, reversed, or reaches outside its image"),
    "option": ("error", "the answer is none of the options"),
    "gold": ("error", "the row's own answer does not get full marks from the accuracy reward"),
    "tokens": ("error", "the images need more visual tokens than the budget"),
    "frame": ("warning", "the boxes look as if they were written in another frame"),
    "leak": ("warning", "the question contains the answer"),
}

SHOWN = 12  # rows per kind in the printed table; the report holds all of them
SLACK_PX = 1.0  # rounding of annotations to whole pixels may reach over the border by this much
MANY = 5  # rows that must agree before a whole file is suspected


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem of one row; `line` 0 stands for the whole file."""

    kind: str
    line: int
    id: str
    message: str

    @property
    def severity(self) -> Severity:
        return FINDINGS[self.kind][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `check` found."""

    path: Path
    rows: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def exit_status(self) -> int:
        """0 without errors (warnings allowed), else 2, as for every user error."""
        return 2 if self.errors else 0

    def counts(self) -> dict[str, int]:
        """Findings per kind, in the order of `FINDINGS`."""
        found = Counter(f.kind for f in self.findings)
        return {kind: found[kind] for kind in FINDINGS if found[kind]}

    def show(self, console: Console) -> None:
        """Prints a table with the first rows of each kind, and a summary line."""
        from rich.markup import escape
        from rich.table import Table

        table = Table("line", "id", "kind", "what", title=escape(str(self.path)))
        for kind, count in self.counts().items():
            colour = "red" if FINDINGS[kind][0] == "error" else "yellow"
            for finding in [f for f in self.findings if f.kind == kind][:SHOWN]:
                line = str(finding.line) if finding.line else "file"
                table.add_row(line, escape(finding.id), f"[{colour}]{kind}[/]", escape(finding.message))
            if count > SHOWN:
                table.add_row("", "", f"[{colour}]{kind}[/]", f"... and {count - SHOWN} more")
        if self.findings:
            console.print(table)
        warnings = len(self.findings) - len(self.errors)
        console.print(f"{self.rows} rows, {len(self.errors)} errors, {warnings} warnings", highlight=False)


def check(
    path: str | Path,
    reader: str = "ours",
    *,
    image_root: str | Path | None = None,
    frame: str | None = None,
    limit: int | None = None,
    model_frame: Frame | None = None,
    token_budget: int | None = None,
    rescore: Rescore | None = None,
    progress: Callable[[Iterable[ScannedRow]], Iterable[ScannedRow]] | None = None,
) -> Report:
    """Reads every row and reports what is wrong with it.

    Args:
        path, reader, image_root, frame, limit: as for `read_records`.
        model_frame: resize rule of a model; with it visual tokens are counted.
        token_budget: most visual tokens per row; needs `model_frame`.
        rescore: scores a Record's own answer, 1 = full marks; default `gold_score`.
        progress: wraps the rows, e.g. with a progress bar.
    """
    scanned = scan_rows(path, reader, image_root=image_root, frame=frame, limit=limit)
    judged = _Checker(model_frame, token_budget, rescore or gold_score)
    rows = 0
    findings: list[Finding] = []
    for one in progress(scanned) if progress else scanned:
        rows += 1
        findings += judged.findings(one)
    findings += judged.file_findings()
    if not rows:
        findings.append(Finding(kind="row", line=0, id="", message="the file holds no rows"))
    return Report(path=Path(path), rows=rows, findings=tuple(findings))


def gold_score(record: Record) -> Score:
    """The accuracy reward of a reply that gives the Record's own answer; masked where only a judge could tell."""
    from sightline.rewards.answer import accuracy

    return accuracy(Reading(text=f"<answer>{record.answer}</answer>", answer=record.answer), record)


class _Checker:
    """Checks row by row; remembers ids and extents for what only a whole file can tell."""

    def __init__(self, frame: Frame | None, budget: int | None, rescore: Rescore) -> None:
        self._frame, self._budget, self._rescore = frame, budget, rescore
        self._seen: dict[str, int] = {}
        self._frames = _FrameStatistics()

    def findings(self, scanned: ScannedRow) -> list[Finding]:
        line, identity = scanned.place.line, scanned.place.name
        pairs = self._problems(scanned)
        return [Finding(kind=kind, line=line, id=identity, message=message) for kind, message in pairs]

    def file_findings(self) -> list[Finding]:
        return [Finding(kind="frame", line=0, id="", message=message) for message in self._frames.suspicions()]

    def _problems(self, scanned: ScannedRow) -> Iterator[tuple[str, str]]:
        if scanned.row is None:
            problem = scanned.problem
            assert problem is not None
            key = problem.where.rpartition(": ")[2] if ": " in problem.where else ""
            yield "row", f"{key}: {problem.what}" if key else problem.what
            return
        yield from self._repeated_id(scanned)
        try:
            record = record_of(scanned.row, scanned.place)
        except UserError as problem:
            yield "image", problem.what
            return
        yield from _box_problems(record)
        if not scanned.row.frame and not scanned.place.frame:
            yield from self._frames.add(record)
        yield from _answer_problems(scanned.row, record)
        yield from self._gold_problems(record)
        yield from self._token_problems(record)

    def _repeated_id(self, scanned: ScannedRow) -> Iterator[tuple[str, str]]:
        first = self._seen.setdefault(scanned.place.name, scanned.place.line)
        if first != scanned.place.line:
            yield "id", f"id {scanned.place.name!r} stands in line {first} already"

    def _gold_problems(self, record: Record) -> Iterator[tuple[str, str]]:
        score = self._rescore(record)
        if not score.masked and score.value < 1:
            shown = f"answer {record.answer!r} of kind {record.answer_kind}"
            yield "gold", f"{shown} scores {score.value:g}: {score.why}"

    def _token_problems(self, record: Record) -> Iterator[tuple[str, str]]:
        if self._frame is None:
            return
        try:
            tokens = sum(self._frame.tokens(image.size) for image in record.images)
        except UserError as problem:
            yield "image", problem.what
            return
        if self._budget is not None and tokens > self._budget:
            yield "tokens", f"{tokens} visual tokens, the budget is {self._budget}"


def _box_problems(record: Record) -> Iterator[tuple[str, str]]:
    for index, region in enumerate(record.regions):
        size = record.images[region.image].size
        repaired = repair(region.box, size)
        reach = max(-region.box.x1, -region.box.y1, region.box.x2 - size.width, region.box.y2 - size.height)
        serious = [p for p in repaired.problems if p in ("reversed", "empty", "not a number")]
        if reach > SLACK_PX:
            serious.append(f"outside by {reach:g} px")
        if not repaired.is_valid and not serious:
            serious.append("empty")
        if serious:
            box = ", ".join(f"{number:g}" for number in region.box)
            yield "box", f"regions[{index}] [{box}] on {size.width}x{size.height}: {', '.join(serious)}"


def _answer_problems(row: Row, record: Record) -> Iterator[tuple[str, str]]:
    if record.options and record.answer_kind == "option":
        from sightline.answers.extract import option_letter

        if option_letter(record.answer, record.options) is None:
            yield "option", f"answer {record.answer!r} is none of {list(record.options)}"
    if record.answer_kind in ("option", "yes_no"):
        return
    words = r"\b" + re.escape(record.answer.strip().lower()) + r"\b"
    if len(record.answer.strip()) > 1 and re.search(words, row.question.lower()):
        yield "leak", f"the question contains the answer {record.answer!r}"


class _FrameStatistics:
    """Collects boxes that were read as original pixels `xyxy` because nothing was declared."""

    def __init__(self) -> None:
        self._boxes = 0
        self._fractions = 0
        self._reversed = 0
        self._small_on_large = 0
        self._largest = 0.0

    def add(self, record: Record) -> Iterator[tuple[str, str]]:
        for region in record.regions:
            box, size = region.box, record.images[region.image].size
            self._boxes += 1
            self._largest = max(self._largest, *box)
            self._reversed += box.x2 < box.x1 or box.y2 < box.y1
            self._small_on_large += min(size) > 1100
            if max(box) <= 1 and min(size) > 2:
                self._fractions += 1
                yield "frame", f"all numbers are <= 1: declare `frame: norm_1`? {_shown(box)}"
            elif _fits_thousand(box) and (box.x2 > size.width + SLACK_PX or box.y2 > size.height + SLACK_PX):
                yield "frame", f"fits 0..1000 but not the image: declare `frame: norm_1000`? {_shown(box)}"

    def suspicions(self) -> Iterator[str]:
        if self._boxes < MANY:
            return
        if self._largest <= 1000 and self._small_on_large == self._boxes and not self._fractions:
            yield (
                f"no coordinate exceeds 1000 although all {self._boxes} boxed images are larger than 1100 px: "
                "declare `frame: norm_1000`?"
            )
        if self._reversed * 10 >= self._boxes:
            yield (f"{self._reversed} of {self._boxes} boxes end before they begin: declare `frame: original_px_xywh`?")


def _fits_thousand(box: Box) -> bool:
    return min(box) >= 0 and max(box) <= 1000 and box.x1 < box.x2 and box.y1 < box.y2


def _shown(box: Box) -> str:
    return "[" + ", ".join(f"{number:g}" for number in box) + "]"
