"""Mathematical equality in a worker process with our own time limit."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

__all__ = ["Equality", "MathWorker"]


class Equality(NamedTuple):
    """Whether two expressions are equal; `failed` if the worker could not tell (time limit, crash)."""

    is_equal: bool
    why: str
    failed: bool = False


class MathWorker:
    """Compares expressions through math-verify, in a child process that is killed and restarted when it hangs.

    The process starts on first use. Calls from several threads are served one after the other.

    Args:
        timeout: seconds for one comparison.
        start_timeout: seconds for the process to import its libraries.
    """

    def __init__(self, timeout: float = 5.0, start_timeout: float = 120.0) -> None:
        self.timeout, self.start_timeout = timeout, start_timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._end: weakref.finalize | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._known: dict[tuple[str, str], Equality] = {}
        self.restarts = 0

    def equality(self, gold: str, answer: str) -> Equality:
        """Compare two expressions; verdicts (failures too) are remembered, so a bad answer costs its time once."""
        with self._lock:
            key = (gold, answer)
            if key not in self._known:
                self._known[key] = self._ask(gold, answer)
            return self._known[key]

    def _ask(self, gold: str, answer: str) -> Equality:
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"gold": gold, "answer": answer}) + "\n")
            process.stdin.flush()
            reply = self._next_line(self.timeout)
        except TimeoutError:
            self._kill()
            return Equality(False, f"math check stopped after {self.timeout:g} s", failed=True)
        except (OSError, EOFError) as error:
            self._kill()
            return Equality(False, f"math check process ended ({type(error).__name__})", failed=True)
        if "error" in reply:
            return Equality(False, f"math check failed: {reply['error']}", failed=True)
        is_equal = bool(reply.get("equal"))
        return Equality(is_equal, "mathematically equal" if is_equal else "mathematically different")

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        # -P keeps the script's own folder off the import path: it holds modules named like standard ones.
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_process.py"))]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        self._process, self._lines = process, queue.SimpleQueue()
        self._end = weakref.finalize(self, _end, process)  # also when nobody calls close()
        threading.Thread(target=_forward, args=(process, self._lines), daemon=True).start()
        self._next_line(self.start_timeout)
        return process

    def _next_line(self, timeout: float) -> dict:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            raise EOFError
        return json.loads(line)

    def _kill(self) -> None:
        self.restarts += self._process is not None
        self._stop()

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def close(self) -> None:
        """End the process. A later call starts a new one."""
        with self._lock:
            self._stop()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            return


def _forward(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put(None)
