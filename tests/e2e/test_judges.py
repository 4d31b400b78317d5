"""A judge that is down, slow or talks garbage: the run ends, affected terms are masked and counted, nothing hangs."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.config import load_recipe
from sightline.report.reporter import Reporter
from sightline.train.loop import train

OVERRIDES = [
    *("--train.steps", "2", "--data.records_per_step", "6", "--evaluation.n", "2", "--evaluation.modes", "[textual]"),
    *(
        "--train.log_groups_every",
        "1",
        "--train.log_groups",
        "6",
        "--data.train",
        "scenes:easy",
        "--judge.kind",
        "http",
    ),
    *("--judge.model", "judge", "--judge.retries", "1", "--judge.total_timeout", "6", "--judge.timeout", "1"),
    *("--method.weights.consistency", "1.0"),
]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every request with `reply`, after `delay` seconds."""

    reply: str = "1.0"
    delay: float = 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.delay)
        body = {
            "id": "1", "object": "chat.completion", "created": 0, "model": "judge",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.reply}}],
        }  # fmt: skip
        data = json.dumps(body).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Configured", (Handler,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", handler
        running.shutdown()


def run(url: str, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Trains two steps of iVGR with that judge; returns events and logged rollouts of the textual stream."""
    recipe = load_recipe("demo", [*OVERRIDES, "--judge.url", url]).arm_recipes()["ivgr"]
    started = time.monotonic()
    train(recipe, folder, Reporter(folder, log_every=1, groups_per_step=6, writes_page=False))
    assert time.monotonic() - started < 60
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    return events, [r for row in rows for r in row["rollouts"] if r["stream"] == "textual" and row["reference"]]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["down", "slow", "garbage"])
def test_a_failing_judge_masks_and_is_counted(tmp_path: Path, server: tuple[str, type[Handler]], fault: str) -> None:
    url, handler = server
    if fault == "down":
        url = "http://127.0.0.1:9/v1"
    elif fault == "slow":
        handler.delay = 30.0
    else:
        handler.reply = "I would say it is quite consistent, maybe 0.9?"
    events, textual = run(url, tmp_path / "run")
    assert len(events) == 2
    assert textual, "no grounded rollout became a reference, so the judge was never asked"
    assert all(r["terms"]["consistency"]["masked"] for r in textual)
    assert all(r["advantage"] == 0 for r in textual)
    assert max(e["metrics"]["judge/failures"] for e in events) > 0


@pytest.mark.slow
def test_a_working_judge_scores(tmp_path: Path, server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.reply = "0.7"
    events, textual = run(url, tmp_path / "run")
    assert textual
    assert {r["terms"]["consistency"]["value"] for r in textual} == {0.7}
    assert events[-1]["metrics"]["judge/failures"] == 0
    verdicts = (tmp_path / "run" / "judge.jsonl").read_text().splitlines()
    assert verdicts
