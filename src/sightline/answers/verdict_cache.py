"""Verdicts on disk: one JSON line each, written before the verdict is used."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.answers.judge import Verdict

__all__ = ["VerdictCache", "verdict_key"]


def verdict_key(prompt: str, model: str, parameters: Mapping[str, Any]) -> str:
    """sha256 of everything a verdict depends on.

    Example:
        >>> verdict_key("p", "m", {"temperature": 0.0})[:8] == verdict_key("p", "m", {"temperature": 0.5})[:8]
        False
    """
    text = json.dumps([prompt, model, dict(sorted(parameters.items()))], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class VerdictCache:
    """A dictionary of verdicts that survives the process. Failures are not kept: a server may come back.

    Args:
        path: JSONL file; created with its folder on the first write. None keeps verdicts in memory only.
        writes: False only reads the file; another process writes it, and is told by way of `news`.

    A line torn by a killed process is skipped and counted in `skipped`, and never joined with the next one.
    """

    def __init__(self, path: Path | None = None, *, writes: bool = True) -> None:
        self.path = path if writes else None
        self.skipped = 0
        self._lock = threading.Lock()
        self._known: dict[str, Verdict] = {}
        self._news: dict[str, Verdict] = {}
        self._ends_torn = False
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        content = path.read_bytes()
        self._ends_torn = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            try:
                row = json.loads(line)
                self._known[str(row["key"])] = Verdict(value=float(row["value"]), why=str(row["why"]))
            except (ValueError, KeyError, TypeError):
                self.skipped += 1

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Verdict | None:
        """The verdict stored under a key, marked as cached."""
        with self._lock:
            found = self._known.get(key)
        return None if found is None else Verdict(value=found.value, why=found.why, cached=True)

    def put(self, key: str, verdict: Verdict) -> None:
        """Store a verdict: on disk first, then in memory."""
        if verdict.failed or verdict.value is None:
            return
        row = json.dumps({"key": key, "value": verdict.value, "why": verdict.why}) + "\n"
        with self._lock:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n" + row if self._ends_torn else row)
                self._ends_torn = False
            self._known[key] = self._news[key] = verdict

    def news(self) -> dict[str, Verdict]:
        """What was stored since the last call."""
        with self._lock:
            news, self._news = self._news, {}
        return news

    def learn(self, verdicts: Mapping[str, Verdict]) -> None:
        """Stores what other processes found; what is known already stays."""
        for key, verdict in verdicts.items():
            if self.get(key) is None:
                self.put(key, verdict)
                with self._lock:
                    self._news.pop(key, None)
