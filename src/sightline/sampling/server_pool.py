"""Several servers as one: requests in flight on all of them, and the work of a dead one moves to the others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from sightline.sampling.server_client import ServerClient, ServerDown

__all__ = ["NoServers", "ServerPool"]

Result = TypeVar("Result")


class NoServers(ServerDown):
    """Every server is drained; the text lists why."""


@dataclass(slots=True)
class _Seat:
    """One server, what is in flight on it, and why it was drained (empty while it works)."""

    client: ServerClient
    busy: int = 0
    drained: str = ""


class ServerPool:
    """Runs work on servers that are alive.

    Args:
        clients: the servers.
        concurrency: requests in flight per server.
        tell: called with one line when a server is drained or comes back; prints it to stderr by default.
    """

    def __init__(
        self, clients: Sequence[ServerClient], *, concurrency: int = 64, tell: Callable[[str], None] | None = None
    ) -> None:
        self._seats = [_Seat(client) for client in clients]
        self._room = threading.Condition()
        self._tell = tell or _print
        self.concurrency = concurrency
        self._threads = _Threads(concurrency * len(self._seats))
        self._is_closed = False
        self.moved = 0

    @property
    def alive(self) -> list[ServerClient]:
        """Servers that take work."""
        return [seat.client for seat in self._seats if not seat.drained]

    @property
    def drained(self) -> dict[str, str]:
        """Address of each server that takes no work -> why."""
        return {seat.client.url: seat.drained for seat in self._seats if seat.drained}

    @property
    def clients(self) -> list[ServerClient]:
        """All servers, drained ones too."""
        return [seat.client for seat in self._seats]

    def submit(self, work: Callable[[ServerClient], Result], *, home: int = 0) -> Future[Result]:
        """Runs `work` on a server; again on another one where that server goes down.

        Args:
            work: what to do; it raises `ServerDown` where the server is at fault.
            home: work with one home goes to one server while that is alive, so that what it has cached is used.

        Returns:
            A Future that raises `NoServers` when none is left.
        """
        return self._threads.submit(lambda: self._run(work, home))

    def drain(self, client: ServerClient, why: str) -> None:
        """Takes a server out, and says so once."""
        with self._room:
            seat = self._seat(client)
            is_new, seat.drained = not seat.drained, seat.drained or why
            left = sum(not other.drained for other in self._seats)
            self._room.notify_all()
        if is_new:
            self._tell(f"server {client.url} is drained: {why}; {left} of {len(self._seats)} left")

    def readmit(self, client: ServerClient) -> None:
        """Gives a drained server work again."""
        with self._room:
            seat = self._seat(client)
            was_drained, seat.drained = bool(seat.drained), ""
            self._room.notify_all()
        if was_drained:
            self._tell(f"server {client.url} is back")

    def close(self) -> None:
        """Ends connections; what is in flight is given up, not waited for: a server may be silent for hours."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()
        self._threads.close()
        for seat in self._seats:
            seat.client.close()

    def _run(self, work: Callable[[ServerClient], Result], home: int) -> Result:
        while True:
            seat = self._taken(home)
            try:
                return work(seat.client)
            except ServerDown as error:
                if self._is_closed:
                    raise
                self.drain(seat.client, str(error))
                with self._room:
                    self.moved += 1
            finally:
                with self._room:
                    seat.busy -= 1
                    self._room.notify_all()

    def _taken(self, home: int) -> _Seat:
        """A place on the home server if it is alive, otherwise on one of those that are; waits until one is free."""
        with self._room:
            while True:
                if self._is_closed:
                    raise NoServers("the sampler is closed")
                alive = [seat for seat in self._seats if not seat.drained]
                if not alive:
                    raise NoServers("; ".join(f"{s.client.url}: {s.drained}" for s in self._seats))
                seat = self._seats[home % len(self._seats)]
                if seat.drained:  # the others keep their own
                    seat = alive[home // len(self._seats) % len(alive)]
                if seat.busy < self.concurrency:
                    seat.busy += 1
                    return seat
                self._room.wait()

    def _seat(self, client: ServerClient) -> _Seat:
        return next(seat for seat in self._seats if seat.client is client)


class _Threads:
    """Runs work in as many threads as are needed up to a limit; the end of this process does not wait for them."""

    def __init__(self, limit: int) -> None:
        self._limit, self._started = limit, 0
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Called from one thread only."""
        future: Future[Result] = Future()
        self._waiting.put((future, work))
        if self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._run, name="sample", daemon=True).start()
        return future

    def close(self) -> None:
        """Ends the threads that wait for work."""
        for _ in range(self._started):
            self._waiting.put(None)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
