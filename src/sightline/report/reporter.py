"""What the training loop speaks to: fills the run folder and passes every event on to console and trackers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError
from sightline.report.events import RunWriter
from sightline.report.rows import DecodePiece
from sightline.report.trackers import Sink
from sightline.types import Group, StepStats

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame

__all__ = ["Reporter"]


class Reporter:
    """The view of a run that rank 0 owns. The loop calls `start`, then `step` and `evaluation`, then `finish`.

    Args:
        folder: the run folder.
        sinks: the console and the trackers. One that fails is dropped with a warning; training goes on.
        log_every: groups are written on every step that this divides, and on the first and the last; 0 writes none.
        groups_per_step: how many groups a logged step keeps, the first ones, so that nothing is hand-picked.
        writes_page: `finish` also builds `report.html` (arms leave that to the run that holds them).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sinks: Sequence[Sink] = (),
        log_every: int = 10,
        groups_per_step: int = 4,
        writes_page: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._sinks = list(sinks)
        self._log_every, self._groups_per_step = log_every, groups_per_step
        self._writes_page = writes_page
        self._decode_piece: DecodePiece | None = None
        self._frame: Frame | None = None
        self._last_step: int | None = None
        self._is_first = True

    def start(
        self,
        manifest: Mapping[str, Any],
        *,
        resume_step: int | None = None,
        decode_piece: DecodePiece | None = None,
        frame: Frame | None = None,
    ) -> None:
        """Open the run folder.

        Args:
            manifest: method, model, seed, frame (one line), steps, versions, arms.
            resume_step: the first step that will run now, None for a run from the start; what the folder holds of
                it and of later steps is dropped.
            decode_piece: text or bytes of one token id, for the token strip.
            frame: the policy's coordinate frame, kept with the rollouts.
        """
        self._decode_piece, self._frame = decode_piece, frame
        self._last_step = int(manifest["steps"]) - 1 if manifest.get("steps") else None
        self._is_first = not resume_step
        self._writer = RunWriter(self.folder, resume_step=resume_step or 0)
        self._writer.manifest({"started": datetime.now(UTC).isoformat(timespec="seconds"), **manifest})
        self._tell(lambda sink: sink.start(manifest, resume_step))

    def step(self, stats: StepStats, groups: Sequence[Group] = ()) -> None:
        """Log one step; of its groups, the first few on logged steps, the first and the last."""
        is_end = stats.step == self._last_step or self._is_first
        if self._log_every and (is_end or stats.step % self._log_every == 0):
            chosen = groups[: self._groups_per_step]
            self._writer.groups(stats.step, chosen, decode_piece=self._decode_piece, frame=self._frame)
        self._is_first = False
        self._writer.step(stats)
        self._tell(lambda sink: sink.step(stats))

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Log one evaluation: step, label, mode, n, and metrics as mean, low, high."""
        self._writer.evaluation(row)
        self._tell(lambda sink: sink.evaluation(row))

    def finish(self) -> None:
        """Close the sinks and, unless this is an arm, write the page."""
        self._tell(lambda sink: sink.finish())
        if self._writes_page:
            from sightline.report.page import write_page

            write_page(self.folder)

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except SightlineError:
                raise
            except Exception as error:  # noqa: BLE001 - a tracker's own failure, of any kind, must not end a run
                self._sinks.remove(sink)
                warnings.warn(f"{type(sink).__name__} failed and is left out from now on: {error}", stacklevel=3)
