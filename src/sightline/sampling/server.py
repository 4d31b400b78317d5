"""The server sampler: the same conversations as the local one, each turn of which a vLLM server samples.

Token ids go in with images and come out with the log-probability of each under the distribution they were drawn from
(`--logprobs-mode processed_logprobs`: temperature, nucleus and bans applied). Random numbers belong to a Rollout: its
seed is keyed by seed, step, record, stream and branch, not by server, process or order.

All turns of a Record go to one server while that is alive, whose prefix and image caches then hold what they share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from sightline.errors import UserError
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.server_client import ServerClient, ServerDown
from sightline.sampling.server_images import PictureBook
from sightline.sampling.server_pool import NoServers, ServerPool
from sightline.sampling.server_refresh import RESTARTED
from sightline.sampling.server_requests import PATHS, Api, Asked, Reply, asked_of, body, read_replies
from sightline.sampling.turns import Conversation

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.sampling.server_refresh import Refresher
    from sightline.types import Rollout

__all__ = ["ServerSampler"]

_Task = tuple[int, Conversation]

FRUITLESS = 1
"""Rounds without a single reply after which servers that come back are no longer believed."""


class ServerSampler:
    """Samples on vLLM servers.

    Args:
        policy: tokeniser, template, image processor and frame; its weights are what the servers are given.
        pool: the servers.
        refresher: brings the policy's weights to them.
        api: how they are asked; `auto` asks with token ids where all of them offer it.
    """

    def __init__(self, policy: Policy, pool: ServerPool, refresher: Refresher, *, api: str = "auto") -> None:
        self.policy, self.pool, self.refresher = policy, pool, refresher
        self._pictures = PictureBook(policy)
        self._api = api
        self._agreed: Api | None = None
        self._seconds = 0.0
        self._tokens = 0

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, *, seed: int, step: int
    ) -> list[list[Rollout]]:
        """`n` Rollouts for each Request, in the order given.

        Raises:
            UserError: all servers are down, a server reads another prompt than ours or refuses a request, or turns are
                asked of servers that take no token ids.
        """
        if not self.refresher.is_current:
            self.refresh(self.policy)
        self._check_turns(requests)
        begun = [Conversation.begin(self.policy, request) for request in requests]
        homes = {name: i for i, name in enumerate(dict.fromkeys(r.prompt.record.id for r in requests))}
        results: list[list[Rollout]] = [[] for _ in requests]
        todo: list[_Task] = list(enumerate(begun))
        fruitless = 0
        while todo:
            started, before = time.perf_counter(), self._tokens
            try:
                left, reasons = self._converse(todo, results, settings, homes, (seed, step))
            finally:
                self._seconds += time.perf_counter() - started
            # a request that ends every server that is given it would otherwise go round for ever
            fruitless = 0 if self._tokens > before else fruitless + 1
            if left and (fruitless > FRUITLESS or not self._is_revived()):
                raise self._none_left(reasons)
            todo = left
        return [sorted(group, key=lambda rollout: rollout.branch) for group in results]

    def refresh(self, policy: Policy) -> None:
        """Brings the policy's present weights to every server and verifies them; drained servers get a chance.

        Raises:
            UserError: no server holds the weights afterwards.
        """
        self.policy = policy
        try:
            self.refresher.refresh(policy, self.pool, self.fingerprint)
        except ServerDown as error:
            raise self._none_left(str(error)) from None

    def metrics(self) -> dict[str, float]:
        """What happened since the last call: servers, throughput, refreshes."""
        seconds, self._seconds = self._seconds, 0.0
        tokens, self._tokens = self._tokens, 0
        moved, self.pool.moved = self.pool.moved, 0
        found = {"server/alive": float(len(self.pool.alive)), "server/moved": float(moved)}
        if seconds:
            found["server/tokens_per_second"] = tokens / seconds
        return {**found, **self.refresher.metrics()}

    def alarms(self) -> tuple[str, ...]:
        """One line per server that takes no work."""
        return tuple(f"server {url} is drained: {why}" for url, why in self.pool.drained.items())

    def close(self) -> None:
        """Lets go of connections and of weights on the disk; does not wait for what is in flight."""
        self.pool.close()
        self.refresher.carrier.close()

    def fingerprint(self, client: ServerClient, request: Request, settings: SamplingSettings) -> list[Rollout]:
        """The Rollouts of one Request on one server, for the probe that follows a refresh."""
        conversation = Conversation.begin(self.policy, request)
        replies = self._ask(client, asked_of(conversation, settings, request.n, 0, 0), self._form(client))
        rows = conversation.forked()
        done = [row.replied(self.policy, r.ids, r.logprobs, r.finish) for row, r in zip(rows, replies, strict=True)]
        return [rollout for row in done for rollout in row.rollouts()]

    def _converse(
        self, todo: Sequence[_Task], results: list[list[Rollout]], settings: SamplingSettings, homes: dict[str, int],
        key: tuple[int, int],
    ) -> tuple[list[_Task], str]:  # fmt: skip
        """Carries conversations on, each at its own pace; returns those that no server was left for, and why."""
        waiting: dict[Future[list[Reply]], _Task] = {}
        left: list[_Task] = []
        reasons = ""

        def ask(i: int, conversation: Conversation) -> None:
            asked = asked_of(conversation, settings, len(conversation.forked()), *key)
            home = homes[conversation.request.prompt.record.id]
            waiting[self.pool.submit(lambda client: self._ask(client, asked, self._form(client)), home=home)] = (
                i, conversation,
            )  # fmt: skip

        for i, conversation in todo:
            ask(i, conversation)
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    i, conversation = waiting.pop(future)
                    try:
                        replies = future.result()
                    except NoServers as error:
                        left.append((i, conversation))
                        reasons = str(error)
                        continue
                    for row in self._told(conversation, replies):
                        if row.is_over:
                            results[i] += row.rollouts()
                        else:
                            ask(i, row)
        finally:
            for future in waiting:
                future.cancel()
        return left, reasons

    def _told(self, conversation: Conversation, replies: Sequence[Reply]) -> list[Conversation]:
        self._tokens += sum(len(reply.ids) for reply in replies)
        return [
            row.replied(self.policy, reply.ids, reply.logprobs, reply.finish).continued(self.policy)
            for row, reply in zip(conversation.forked(), replies, strict=True)
        ]

    def _ask(self, client: ServerClient, asked: Asked, api: Api) -> list[Reply]:
        sent = body(asked, api, self.refresher.model(client), self.policy, self._pictures)
        try:
            raw: Any = client.post(PATHS[api], sent)
        except UserError:
            if self.refresher.is_lost(client):  # started anew, it knows no adapter of this run
                raise ServerDown(RESTARTED) from None
            raise
        replies = read_replies(raw, asked, self.policy)
        self.refresher.check(replies)
        # replies of the chat form do not say which weights they come from, so the server is asked
        if api == "chat" and self.refresher.is_lost(client):
            raise ServerDown(RESTARTED)
        return replies

    def _form(self, client: ServerClient) -> Api:
        """How the servers are asked, found out once."""
        if self._agreed is None:
            if self._api == "auto":
                self._agreed = "tokens" if _takes_tokens(client) else "chat"
            else:
                self._agreed = "chat" if self._api == "chat" else "tokens"
        return self._agreed

    def _check_turns(self, requests: Sequence[Request]) -> None:
        alive = self.pool.alive
        if alive and any(r.turns is not None for r in requests) and self._form(alive[0]) == "chat":
            raise UserError(
                "conversations of several turns need servers that take token ids with images: a chat request would "
                "tokenise sampled text again, and the learner would score other ids than those that were sampled",
                where="sampling.server", hint="start vLLM 0.32 or newer with --enable-scale-out and set "
                "sampling.server.api to auto; or choose a method or mode of one turn",
            )  # fmt: skip

    def _is_revived(self) -> bool:
        """Whether a server that was started anew holds the weights by now and takes work again.

        Only of one process: the others of a run know nothing of this and would not help to gather the weights.
        """
        if self.refresher.world.size > 1 or not any(client.is_alive() for client in self.pool.clients):
            return False
        self.refresh(self.policy)
        return bool(self.pool.alive)

    def _none_left(self, reasons: str) -> UserError:
        return UserError(
            f"no server is left: {reasons}", where="sampling.server.urls",
            hint="start them as `sightline serve-help RECIPE` says, then type the same command again: a run goes on "
            "from its last checkpoint",
        )  # fmt: skip


def _takes_tokens(client: ServerClient) -> bool:
    """Whether the token endpoint is there: an empty request is refused for what it lacks, not for where it went."""
    try:
        client.post(PATHS["tokens"], {})
    except UserError as error:
        return not any(f"answered {status}" in error.what for status in (403, 404, 405))
    return True
