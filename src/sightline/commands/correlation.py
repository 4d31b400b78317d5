"""`sightline eval --correlation.judge ...`: do the boxes of the replies fit their words?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sightline.errors import UserError
from sightline.types import Record

if TYPE_CHECKING:
    from sightline.evaluate.correlation import Correlation, PairJudge
    from sightline.evaluate.runner import Evaluation
    from sightline.geometry.frames import Frame

__all__ = ["CorrelationOptions"]

_WRITES_BOXES = ("grit", "grounded")


@dataclass(frozen=True, kw_only=True)
class CorrelationOptions:
    """Cross-modal correlation: how often a judge picks a reasoning's own boxes against random ones of equal sizes."""

    judge: Literal["none", "scene", "http"] = "none"
    """scene: the truth of the scenes decides; http: a model that sees images, behind an OpenAI-compatible server."""
    repetitions: int = 3
    """How often random boxes and the order of the two pictures are drawn."""
    url: str = ""
    """http: base address of the server, ending in /v1."""
    model: str = ""
    """http: name of the model on the server."""
    key_file: Path | None = None
    """http: file that holds the API key."""

    def check(self, modes: Sequence[str]) -> None:
        """What does not fit is told before anything is loaded."""
        if self.judge == "none":
            return
        if self.repetitions < 1:
            raise UserError(f"must be at least 1, got {self.repetitions}", where="--correlation.repetitions")
        if self.judge == "http" and not (self.url and self.model):
            hint = "--correlation.url http://localhost:8000/v1 --correlation.model NAME"
            raise UserError("http needs url and model", where="--correlation.judge", hint=hint)
        if not set(modes) & set(_WRITES_BOXES):
            raise UserError("needs replies with boxes", where="--correlation.judge", hint="--modes grit, or grounded")

    def run(
        self, evaluation: Evaluation, records: Sequence[Record], frame: Frame, *, seed: int, cache: Path
    ) -> dict[str, Correlation]:
        """The correlation of every mode that writes boxes; nothing without a judge, or for a mode without any box."""
        from sightline.evaluate.correlation import chains_in, correlate

        if self.judge == "none":
            return {}
        found = {}
        with self._opened(cache) as judge:
            for mode in (mode for mode in evaluation.estimates if mode in _WRITES_BOXES):
                chains = chains_in(evaluation.rows, records, frame, mode)
                without = sum(row.mode == mode for row in evaluation.rows) - len(chains)
                if chains:
                    found[mode] = correlate(chains, judge, repetitions=self.repetitions, seed=seed, without=without)
        return found

    @contextmanager
    def _opened(self, cache: Path) -> Iterator[PairJudge]:
        from sightline.evaluate.pair_judges import HttpPairJudge, SceneJudge

        if self.judge == "scene":
            yield SceneJudge()
            return
        key = "" if self.key_file is None else _key(self.key_file)
        judge = HttpPairJudge(self.url, self.model, key, cache_path=cache)
        try:
            yield judge
        finally:
            judge.close()


def _key(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"cannot read the key: {error.strerror}", where=f"--correlation.key-file {path}") from None
