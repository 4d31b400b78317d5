"""Real vLLM servers of the embedded checkpoints, started by the command that `serve-help` prints; two at most."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sightline.commands.serve_help import serve_command
from sightline.config import load_recipe
from sightline.sampling.server_client import ServerClient

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 300.0
"""Seconds that a server may take to start, on a busy machine."""


@dataclass
class Vllm:
    """A server: its address, and how to end it and start it again."""

    model: str
    url: str
    log: Path
    overrides: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        recipe = load_recipe("demo", ("--model.name", self.model, *self.overrides))
        variables, words = serve_command(recipe, self.url)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(ROOT / words[0]), *words[1:]], stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **variables, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        client = ServerClient(self.url)
        deadline = time.monotonic() + PATIENCE
        while not client.is_alive():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.5)
        client.close()

    def kill(self) -> None:
        """Without warning, with all its processes."""
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Vllm]]:
    """Starts servers; all of them end with the tests."""
    if not (ROOT / ".vllm" / ".installed").exists():
        pytest.skip("make vllm-env comes first")
    started: list[Vllm] = []

    def begin(model: str, *overrides: str) -> Vllm:
        for old in [s for s in started if s.process is not None][:-1]:
            old.kill()  # never more than two
        log = tmp_path_factory.mktemp("vllm") / "server.log"
        started.append(Vllm(model, f"http://127.0.0.1:{free_port()}", log, overrides))
        started[-1].start()
        return started[-1]

    yield begin
    for server in started:
        server.kill()


@pytest.fixture(scope="session", params=["qwen3_vl", "qwen2_5_vl"])
def server(request: pytest.FixtureRequest, launch: Callable[..., Vllm]) -> Iterator[Vllm]:
    """One server per family, which also takes adapters."""
    found = launch(f"embedded:{request.param}", "--model.lora.rank", "8")
    yield found
    found.kill()
