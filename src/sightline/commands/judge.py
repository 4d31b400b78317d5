"""`sightline eval --judge.kind ...`: who decides about answers that no rule covers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sightline.answers.judge import Judge
    from sightline.answers.judge_config import JudgeConfig

__all__ = ["JudgeOptions"]


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Accuracy where no rule decides: such records have none without a judge."""

    kind: Literal["none", "rules", "offline", "http"] = "none"
    """rules: mathematics too, what stays open is wrong; offline: word lists; http: an OpenAI-compatible server."""
    url: str = ""
    """http: base address of the server, ending in /v1."""
    model: str = ""
    """http: name of the model on the server."""
    key_file: str = ""
    """http: file that holds the API key."""

    def config(self) -> JudgeConfig | None:
        """The judge's section of a recipe; what does not fit is told before anything is loaded."""
        from sightline.commands.score import judge_config

        return None if self.kind == "none" else judge_config(asdict(self))

    @contextmanager
    def opened(self, cache: Path) -> Iterator[Judge | None]:
        """The judge, its verdicts kept in `cache`; None for none."""
        from sightline.answers.judge import build_judge

        config = self.config()
        if config is None:
            yield None
            return
        judge = build_judge(config.model_copy(update={"cache_path": str(cache)}))
        try:
            yield judge
        finally:
            judge.close()
