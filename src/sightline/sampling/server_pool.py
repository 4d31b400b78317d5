"""Several servers as one: requests in flight on all of them, and the work of a dead one moves to the others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

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
        self._threads = ThreadPoolExecutor(concurrency * len(self._seats), thread_name_prefix="sample")
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
        return self._threads.submit(self._run, work, home)

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
        """Waits for what is in flight, then ends threads and connections."""
        self._threads.shutdown(cancel_futures=True)
        for seat in self._seats:
            seat.client.close()

    def _run(self, work: Callable[[ServerClient], Result], home: int) -> Result:
        while True:
            seat = self._taken(home)
            try:
                return work(seat.client)
            except ServerDown as error:
                self.drain(seat.client, str(error))
                with self._room:
                    self.moved += 1
            finally:
                with self._room:
                    seat.busy -= 1
                    self._room.notify_all()

    def _taken(self, home: int) -> _Seat:
        """A place on the home server if it is alive, otherwise on the one that follows; waits until one is free."""
        with self._room:
            while True:
                alive = [seat for seat in self._seats if not seat.drained]
                if not alive:
                    raise NoServers("; ".join(f"{s.client.url}: {s.drained}" for s in self._seats))
                seat = alive[home % len(alive)]
                if seat.busy < self.concurrency:
                    seat.busy += 1
                    return seat
                self._room.wait()

    def _seat(self, client: ServerClient) -> _Seat:
        return next(seat for seat in self._seats if seat.client is client)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
