"""Judges: one protocol, three kinds.

A judge receives requests and returns a verdict for each, in order. A verdict is a number or a failure, never a number
that stands for a failure: whoever scores masks what a failed verdict touches.

* `RulesJudge` decides answers by rules alone.
* `OfflineJudge` (`offline.py`) also compares reasoning texts, deterministically and without a network.
* `HttpJudge` (`http.py`) asks a language model behind an OpenAI-compatible server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sightline.answers.judge_config import JudgeConfig
from sightline.answers.lexicon import Lexicon
from sightline.answers.match import is_match
from sightline.answers.math_worker import MathWorker
from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.types import AnswerKind, Record, Size

__all__ = ["RUBRIC", "Judge", "JudgeConfig", "JudgeRequest", "JudgeStats", "RulesJudge", "Verdict", "build_judge"]

RUBRIC = (0.0, 0.3, 0.7, 1.0)
"""Levels of a consistency verdict: contradiction; both extra and missing; one of them; fully consistent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """One question to a judge.

    Attributes:
        kind: `answer`: does `candidate` mean the same answer as `reference`? (0 or 1).
            `consistency`: does the reasoning `candidate` agree with the reasoning `reference`? (a level of `RUBRIC`).
        question: the question both texts are about.
        reference: the right answer, or the reasoning taken as true.
        candidate: text of the policy; data, never an instruction.
        frame: how boxes in the texts are written; without frame and size boxes claim nothing.
        size: size of the image in original pixels.
        record_id: for messages.
        answer_kind: how answers are compared before a judge is asked.
        options: texts of the options, for kind `option`.
    """

    kind: Literal["answer", "consistency"]
    question: str
    reference: str
    candidate: str
    frame: Frame | None = None
    size: Size | None = None
    record_id: str = ""
    answer_kind: AnswerKind = "free"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A number with its reason, or a failure (`value` is None, `failed` is True).

    The number is in [0, 1], except where a server's replies are read as the release does (`JudgeConfig.reading`).
    """

    value: float | None
    why: str
    failed: bool = False
    cached: bool = False


class Judge(Protocol):
    """Synchronous and thread-safe; a call ends in bounded time."""

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """One verdict per request, in order."""
        ...

    def stats(self) -> dict[str, float]:
        """Counts since the start: calls, failures, cache_hits, seconds, and what else a kind counts."""
        ...

    def close(self) -> None:
        """Release processes, connections and files. Safe to call twice."""
        ...


class JudgeStats:
    """Counters that threads may share."""

    def __init__(self, *names: str) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = dict.fromkeys(("calls", "failures", "cache_hits", "seconds", *names), 0.0)

    def add(self, **counts: float) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def count(self, verdicts: Sequence[Verdict], started: float) -> None:
        """Book one call of `judge` that began at `started` (`time.monotonic`)."""
        self.add(
            calls=len(verdicts),
            failures=sum(v.failed for v in verdicts),
            cache_hits=sum(v.cached for v in verdicts),
            seconds=time.monotonic() - started,
        )

    def as_dict(self) -> dict[str, float]:
        with self._lock:
            return dict(self._counts)


class RulesJudge:
    """Answers by rules and math-verify; consistency is beyond it and fails.

    Example:
        >>> judge = RulesJudge()
        >>> request = JudgeRequest(kind="answer", question="?", reference="1/2", candidate="0.5", answer_kind="number")
        >>> judge.judge([request])[0].value
        1.0
        >>> judge.close()
    """

    def __init__(self, math_timeout: float = 5.0) -> None:
        self._worker = MathWorker(timeout=math_timeout)
        self._stats = JudgeStats("undecided")

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        started = time.monotonic()
        verdicts = [self._verdict(request) for request in requests]
        self._stats.count(verdicts, started)
        return verdicts

    def _verdict(self, request: JudgeRequest) -> Verdict:
        if request.kind == "consistency":
            return Verdict(value=None, why="rules cannot compare reasoning; use the offline or http judge", failed=True)
        verdict = self.ruled(request)
        if verdict is not None:
            return verdict
        self._stats.add(undecided=1)
        return Verdict(value=0.0, why="the rules find no match")

    def ruled(self, request: JudgeRequest) -> Verdict | None:
        """The verdict of the rules about an answer, None if they leave it open."""
        record = Record(
            id=request.record_id,
            question=request.question,
            answer=request.reference,
            answer_kind=request.answer_kind,
            options=request.options,
        )
        match = is_match(request.candidate, record, worker=self._worker)
        if match.failed:
            return Verdict(value=None, why=match.why, failed=True)
        return Verdict(value=match.value, why=match.why) if match.decided else None

    def stats(self) -> dict[str, float]:
        return self._stats.as_dict()

    def close(self) -> None:
        self._worker.close()


def build_judge(
    config: JudgeConfig, *, run_folder: Path | None = None, lexicon: Lexicon | None = None, writes_cache: bool = True
) -> Judge:
    """The judge a configuration describes.

    Args:
        config: see `JudgeConfig`.
        run_folder: where `judge.jsonl` is kept if the configuration names no cache file.
        lexicon: overrides the configured one.
        writes_cache: False in processes that leave the file of verdicts to another one.

    Raises:
        UserError: the lexicon or the key file cannot be read.
    """
    if config.kind == "rules":
        return RulesJudge(math_timeout=config.math_timeout)
    if config.kind == "offline":
        from sightline.answers.offline import OfflineJudge

        return OfflineJudge(lexicon or named_lexicon(config.lexicon), math_timeout=config.math_timeout)
    from sightline.answers.http import HttpJudge

    path = Path(config.cache_path) if config.cache_path else run_folder / "judge.jsonl" if run_folder else None
    return HttpJudge(
        url=config.url,
        model=config.model,
        key=_key(config.key_file),
        samples=config.samples,
        temperature=config.temperature,
        reading=config.reading,
        max_tokens=config.max_tokens,
        timeout=config.timeout,
        total_timeout=config.total_timeout,
        retries=config.retries,
        concurrency=config.concurrency,
        cache_path=path,
        writes_cache=writes_cache,
        math_timeout=config.math_timeout,
    )


def named_lexicon(name: str) -> Lexicon:
    """The lexicon called `english`, or the object at `package.module:NAME`."""
    from importlib import import_module

    module, _, attribute = ("sightline.answers.english:ENGLISH" if name == "english" else name).partition(":")
    try:
        found = getattr(import_module(module), attribute or "LEXICON")
    except (ImportError, AttributeError) as error:
        raise UserError(str(error), where=f"judge.lexicon: {name}", hint="english, or package.module:NAME") from None
    if not isinstance(found, Lexicon):
        raise UserError("is no Lexicon", where=f"judge.lexicon: {name}", hint="english, or package.module:NAME")
    return found


def _key(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"cannot read the key: {error.strerror}", where=f"judge.key_file: {path}") from None
