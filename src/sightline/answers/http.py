"""A judge behind an OpenAI-compatible server.

Synchronous to its callers; inside, one private event loop on a thread of its own keeps up to `concurrency` requests in
flight. Rules decide answers first (not with reading `release`). Every call ends: requests have a time limit, retries a
maximum, and a call as a whole has a limit of its own. What cannot be had in time, or cannot be read, is a failed
verdict.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sightline.answers.judge import JudgeRequest, JudgeStats, RulesJudge, Verdict
from sightline.answers.judge_prompts import READERS, judge_messages
from sightline.answers.verdict_cache import VerdictCache, verdict_key
from sightline.errors import UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["HttpJudge"]

_GRACE = 5.0  # seconds for the loop to cancel what ran out of time


class HttpJudge:
    """Asks a chat model for verdicts.

    Args:
        url: base address, ending in `/v1`.
        model: name of the model on the server.
        key: API key; empty for servers without one.
        samples: replies per consistency request, averaged; answers take one at temperature 0.
        temperature: for consistency.
        reading: `strict`, or `release` to read replies as the released iVGR code does and to ask about everything.
        max_tokens: length of a reply.
        timeout: seconds per attempt.
        total_timeout: seconds per call of `judge`.
        retries: further attempts after a connection error, a time-out or a server error, with growing pauses.
        concurrency: requests in flight at once, over all threads.
        cache_path: JSONL file of verdicts.
        writes_cache: False where another process of the run writes that file.
        math_timeout: seconds per mathematical comparison.

    Raises:
        UserError: the `openai` package is missing.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        *,
        samples: int = 1,
        temperature: float = 0.0,
        reading: Literal["strict", "release"] = "strict",
        max_tokens: int = 16,
        timeout: float = 60.0,
        total_timeout: float = 600.0,
        retries: int = 3,
        concurrency: int = 32,
        cache_path: Path | None = None,
        writes_cache: bool = True,
        math_timeout: float = 5.0,
    ) -> None:
        self.model, self.samples, self.temperature, self.max_tokens = model, samples, temperature, max_tokens
        self.url, self.total_timeout, self.reading = url, total_timeout, reading
        self.cache = VerdictCache(cache_path, writes=writes_cache)
        self._settings = {
            "base_url": url,
            "api_key": key or "none",
            "timeout": timeout,
            "max_retries": retries,
        }
        self._concurrency = concurrency
        self._rules = RulesJudge(math_timeout=math_timeout)
        self._stats = JudgeStats("requests", "replies", "unreadable", "rules")
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncOpenAI | None = None
        _require_openai()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """One verdict per request; equal requests are sent once. Returns within `total_timeout` and a few seconds."""
        started = time.monotonic()
        verdicts: list[Verdict | None] = [self._known(request) for request in requests]
        keys = [self._key(request) for request in requests]
        missing = {key: r for key, r, v in zip(keys, requests, verdicts, strict=True) if v is None}
        fetched = self._fetch(missing) if missing else {}
        done = [v if v is not None else fetched[key] for key, v in zip(keys, verdicts, strict=True)]
        self._stats.count(done, started)
        return done

    def _known(self, request: JudgeRequest) -> Verdict | None:
        ruled = self._ruled(request) if self.reading == "strict" else None
        return ruled or self.cache.get(self._key(request))

    def _ruled(self, request: JudgeRequest) -> Verdict | None:
        """What needs no model."""
        if request.kind == "answer":
            ruled = self._rules.ruled(request)
            # A math check that broke is a question for the model.
            if ruled is not None and not ruled.failed:
                self._stats.add(rules=1)
                return ruled
        elif not request.candidate.strip():
            return Verdict(value=0.0, why="no reasoning")
        return None

    def _parameters(self, request: JudgeRequest) -> dict[str, Any]:
        is_answer = request.kind == "answer"
        return {
            "temperature": 0.0 if is_answer else self.temperature,
            "n": 1 if is_answer else self.samples,
            "max_tokens": self.max_tokens,
        }

    def _key(self, request: JudgeRequest) -> str:
        prompt = "\n".join(message["content"] for message in judge_messages(request))
        reading = {} if self.reading == "strict" else {"reading": self.reading}
        return verdict_key(prompt, self.model, self._parameters(request) | reading)

    # -- the loop's side ------------------------------------------------------------------------------------------

    def _fetch(self, missing: dict[str, JudgeRequest]) -> dict[str, Verdict]:
        future = asyncio.run_coroutine_threadsafe(self._fetch_all(missing), self._running_loop())
        try:
            return future.result(self.total_timeout + _GRACE)
        except TimeoutError:
            future.cancel()
            return {key: self._too_late() for key in missing}

    async def _fetch_all(self, missing: dict[str, JudgeRequest]) -> dict[str, Verdict]:
        tasks = {key: asyncio.create_task(self._one(key, request)) for key, request in missing.items()}
        _, late = await asyncio.wait(tasks.values(), timeout=self.total_timeout)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_GRACE / 2)
        return {
            key: self._too_late() if task in late or task.cancelled() else task.result() for key, task in tasks.items()
        }

    def _too_late(self) -> Verdict:
        return Verdict(value=None, why=f"no verdict within {self.total_timeout:g} s", failed=True)

    async def _one(self, key: str, request: JudgeRequest) -> Verdict:
        from openai import OpenAIError

        assert self._client is not None
        async with self._semaphore:
            self._stats.add(requests=1)
            try:
                completion = await self._client.chat.completions.create(
                    model=self.model,
                    messages=judge_messages(request),  # type: ignore[arg-type]
                    **self._parameters(request),
                )
                replies = [choice.message.content or "" for choice in completion.choices or ()]
            except OpenAIError as error:
                return Verdict(value=None, why=f"judge request failed: {type(error).__name__}", failed=True)
            except (AttributeError, TypeError, ValueError) as error:  # a reply that is no completion at all
                return Verdict(value=None, why=f"judge reply is malformed: {type(error).__name__}", failed=True)
        verdict = self._read(replies, request.kind)
        self.cache.put(key, verdict)
        return verdict

    def _read(self, replies: Sequence[str], kind: str) -> Verdict:
        levels = [found for reply in replies if (found := READERS[self.reading](reply, kind)) is not None]
        self._stats.add(replies=len(replies), unreadable=len(replies) - len(levels))
        if not levels:
            return Verdict(value=None, why=f"none of {len(replies)} judge replies is a verdict", failed=True)
        value = sum(levels) / len(levels)
        listed = ", ".join(f"{found:g}" for found in levels)
        return Verdict(value=value, why=f"{self.model}: {listed}" + ("" if len(levels) == 1 else f", mean {value:.3g}"))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                ready = threading.Event()
                self._thread = threading.Thread(target=self._serve, args=(self._loop, ready), daemon=True)
                self._thread.start()
                ready.wait()
            return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
        from openai import AsyncOpenAI

        asyncio.set_event_loop(loop)
        self._client = AsyncOpenAI(**self._settings)
        self._semaphore = asyncio.Semaphore(self._concurrency)
        ready.set()
        loop.run_forever()

    # -- the rest of the protocol ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counts since the start; `unreadable` of `replies` were no verdict, `rules` answers needed no model."""
        return self._stats.as_dict() | {"cache_skipped": float(self.cache.skipped)}

    def close(self) -> None:
        """End the connections and the loop's thread."""
        self._rules.close()
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        assert self._client is not None
        asyncio.run_coroutine_threadsafe(self._client.close(), loop).result(_GRACE)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(_GRACE)
        loop.close()


def _require_openai() -> None:
    from importlib.util import find_spec

    if find_spec("openai") is None:
        raise UserError("the http judge needs the openai package", hint="pip install 'sightline[judge]'")
