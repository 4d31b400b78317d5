"""Refresh of the servers' weights: delivered, named, and verified by what the servers then say.

After each delivery every server samples a probe (a drawn picture, a fixed question, temperature 0.7) and the learner
scores the very ids: the mean difference of their log-probs must stay within a tolerance. The temperature is not 1, so
that a server which reports other log-probs than those it draws from is found out as well. In half precision a single
update moves log-probs by less than engines differ: there, a server that keeps its old weights is known by replies that
stay the same to the last bit while the learner's log-probs of them change.

Every delivery also gives the weights a name, which vLLM repeats with each reply: a server that was started anew in
between answers under another name, and its replies are not used.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float

from sightline.errors import SightlineError, UserError
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.server_client import ServerClient, ServerDown

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.sampling.server_pool import ServerPool
    from sightline.sampling.server_requests import Reply
    from sightline.sampling.server_weights import Carrier
    from sightline.types import Rollout

__all__ = ["RESTARTED", "Everyone", "Refresher", "learner_logprobs", "probe"]

PROBE = SamplingSettings(temperature=0.7, max_new_tokens=16)
HALF_TOLERANCE, TOLERANCE = 0.05, 1e-4
MOVED = 0.1
"""Share of the tolerance by which the learner may move while a server stays the same to the last bit."""

RESTARTED = "it was started anew and does not hold the weights of this run"

_Fingerprint = Callable[[ServerClient, Request, SamplingSettings], "list[Rollout]"]


class Everyone(Protocol):
    """The processes of a run."""

    @property
    def is_main(self) -> bool: ...
    @property
    def size(self) -> int: ...

    def broadcast(self, value: Any) -> Any:
        """The main process's value, in every process."""
        ...


class _Alone:
    is_main, size = True, 1

    def broadcast(self, value: Any) -> Any:
        return value


@dataclass(frozen=True, slots=True)
class _Delivered:
    """What the main process found: probes by address of the server, names of the served models, failures."""

    probes: dict[str, list[Rollout]]
    models: dict[str, str]
    failed: dict[str, str]
    error: SightlineError | None = None


class Refresher:
    """Keeps servers on the weights of one policy.

    Args:
        carrier: how weights travel.
        tolerance: largest mean difference of log-probs on the probe, nats; None for the default of the number format.
        world: the processes of the run; None for one.
        tell: called with a line after the first refresh; prints it to stderr by default.
    """

    def __init__(
        self, carrier: Carrier, *, tolerance: float | None = None, world: Everyone | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.carrier, self.tolerance, self.world = carrier, tolerance, world or _Alone()
        self.is_current = False
        self.version = ""
        self.difference = float("nan")
        self._tell = tell or _print
        self._run, self._count = uuid.uuid4().hex[:8], 0
        self._models: dict[str, str] = {}
        self._seen: dict[str, tuple[tuple[Rollout, ...], tuple[np.ndarray, ...]]] = {}
        self._seconds: list[float] = []

    def refresh(self, policy: Policy, pool: ServerPool, fingerprint: _Fingerprint) -> None:
        """Delivers the present weights to every server that answers, and verifies them there.

        Every process of a run calls it; the main one speaks to the servers.

        Raises:
            UserError: a server refuses, or holds other weights afterwards.
            ServerDown: none is left.
        """
        started = time.perf_counter()
        self._count += 1
        version = self.world.broadcast(f"{self._run}-{self._count}")
        self.carrier.prepare(policy, version, is_main=self.world.is_main)
        self.version = "" if self.carrier.kind == "none" else version
        found = self._delivered(policy, pool, fingerprint) if self.world.is_main else None
        found = self.world.broadcast(found)
        if found.error is not None:
            raise found.error
        self._models = found.models
        for client in pool.clients:
            if client.url in found.failed:
                pool.drain(client, found.failed[client.url])
        if not found.probes:
            raise ServerDown("; ".join(f"{url}: {why}" for url, why in found.failed.items()))
        self._verify(policy, found.probes)
        for client in pool.clients:
            if client.url in found.probes:
                pool.readmit(client)
        self.carrier.finish()
        self.is_current = True
        self._seconds.append(time.perf_counter() - started)
        if self._count == 1 and self.world.is_main:
            self._tell(self._verified(found.probes))

    def model(self, client: ServerClient) -> str:
        """The name under which the weights answer on a server."""
        return self.carrier.model(self._models.get(client.url, ""))

    def check(self, replies: Sequence[Reply]) -> None:
        """Raises `ServerDown` if a reply comes from other weights than those that were delivered last."""
        for reply in replies:
            if self.version and any(version != self.version for version in reply.versions):
                raise ServerDown(RESTARTED)

    def is_lost(self, client: ServerClient) -> bool:
        """Whether the server says that it holds other weights."""
        if not self.version:
            return False
        answer = client.get("/weight_info")
        return isinstance(answer, dict) and answer.get("weight_version") != self.version

    def metrics(self) -> dict[str, float]:
        """Seconds of the refreshes since the last call, and how well the last one agreed."""
        seconds, self._seconds = self._seconds, []
        found = {"server/refresh_seconds": float(sum(seconds))} if seconds else {}
        return {**found, "server/difference": self.difference} if self.is_current else found

    def _delivered(self, policy: Policy, pool: ServerPool, fingerprint: _Fingerprint) -> _Delivered:
        probes: dict[str, list[Rollout]] = {}
        failed: dict[str, str] = {}
        models: dict[str, str] = {}
        request = probe(policy)
        for client in pool.clients:
            try:
                if client.url in pool.drained and not client.is_alive():
                    continue
                models[client.url] = _served(client)
                self._models = dict(models)  # the probe asks under it
                self.carrier.deliver(client)
                if self.version:
                    client.post("/update_weight_version", {"new_version": self.version})
                probes[client.url] = fingerprint(client, request, PROBE)
            except ServerDown as error:
                failed[client.url] = str(error)
            except SightlineError as error:
                return _Delivered(probes, models, failed, error)
        return _Delivered(probes, models, failed)

    def _verify(self, policy: Policy, probes: dict[str, list[Rollout]]) -> None:
        scored = iter(learner_logprobs(policy, [r for group in probes.values() for r in group], PROBE.temperature))
        is_half = policy.model.dtype.itemsize < 4
        limit = self.tolerance or (HALF_TOLERANCE if is_half else TOLERANCE)
        worst = 0.0
        for url, group in probes.items():
            mine = [next(scored) for _ in group]
            apart = _apart([r.logprobs for r in group], mine)
            if not apart.mean() <= limit:
                raise UserError(
                    f"the server's log-probs differ from the learner's by {apart.mean():.2g} on average "
                    f"(at most {apart.max():.2g}, over {len(apart)} tokens), more than {limit:g}", where=url,
                    hint="start it as `sightline serve-help RECIPE` says, or raise sampling.server.tolerance",
                )  # fmt: skip
            self._check_moved(url, group, mine, limit)
            worst = max(worst, float(apart.mean()))
        self.difference = worst

    def _check_moved(self, url: str, group: list[Rollout], mine: list[np.ndarray], limit: float) -> None:
        """A server whose replies stay the same to the last bit while the learner's log-probs of them change did not
        take the weights, even if it is still within the tolerance."""
        before, then = self._seen.get(url, ((), ()))
        if len(before) != len(group) or not all(_equal(a, b) for a, b in zip(before, group, strict=True)):
            self._seen[url] = (tuple(group), tuple(mine))
            return
        moved = float(_apart(then, mine).mean())
        if moved > MOVED * limit:
            raise UserError(
                f"the server answers to the last bit as it did with earlier weights, while the learner's log-probs "
                f"moved by {moved:.2g} on average: it does not take what it is sent", where=url,
                hint="start it as `sightline serve-help RECIPE` says",
            )  # fmt: skip

    def _verified(self, probes: dict[str, list[Rollout]]) -> str:
        tokens = sum(len(r.ids) for group in probes.values() for r in group)
        return (
            f"weights verified on {len(probes)} server{'s' * (len(probes) > 1)} ({self.carrier.kind}): log-probs "
            f"within {self.difference:.1e} of the learner's on average, over {tokens} tokens"
        )


def _equal(a: Rollout, b: Rollout) -> bool:
    return np.array_equal(a.ids, b.ids) and np.array_equal(a.logprobs, b.logprobs)


def _apart(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Float[np.ndarray, "tokens"]:
    return np.concatenate([np.abs(x - y) for x, y in zip(a, b, strict=True)])


def probe(policy: Policy) -> Request:
    """The question behind a fingerprint, two replies of it: a drawn picture, so that every part of the model speaks."""
    from sightline.images import image_ref
    from sightline.language.prompts import prompt
    from sightline.types import Record

    side = policy.frame.factor
    rows, columns = np.mgrid[0 : 3 * side, 0 : 4 * side]
    colours = [rows * 255 // (3 * side), columns * 255 // (4 * side), (rows // 5 + columns // 7) % 2 * 200]
    picture = image_ref(np.stack(colours, -1).astype(np.uint8))
    record = Record(id="probe", question="What is in the image?", answer="", images=(picture,))
    return Request(prompt(record, "textual", "textual", policy.style, frame=policy.frame), (2,))


def learner_logprobs(
    policy: Policy, rollouts: Sequence[Rollout], temperature: float
) -> list[Float[np.ndarray, "tokens"]]:
    """Log-probs of the ids of each Rollout under the policy's own module, in evaluation mode."""
    import torch

    from sightline.policy.batch import collate
    from sightline.policy.tree import build_tree, rollout_path

    was_training = policy.model.training
    policy.model.eval()
    try:
        trees = [build_tree([rollout_path(r, policy.image_token)], policy.rules) for r in rollouts]
        batch = collate([[tree] for tree in trees], policy.pixels, pad=policy.pad, device=policy.device)
        with torch.no_grad():
            found = policy.module(batch, temperature=temperature).logprobs
    finally:
        policy.model.train(was_training)
    return [paths[0] for paths in batch.scatter(found)]


def _served(client: ServerClient) -> str:
    """The name of the model that a server serves."""
    answer = client.get("/v1/models")
    try:
        return str(next(entry["id"] for entry in answer["data"] if not entry.get("parent")))
    except (KeyError, TypeError, StopIteration):
        raise ServerDown("/v1/models lists no model: is this a vLLM server?") from None


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
