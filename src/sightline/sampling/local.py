"""The local sampler: token-exact generation on the training weights.

Each prompt is prefilled once and each distinct image of a forward encoded once, finished rows leave the batch, ids that
the policy must never write have no probability, and every sampled id comes with its log-probability.

A conversation keeps its keys and values: what the user adds is all that is prefilled. Where a level of the sampling
tree begins, the path so far is one block of keys that its branches share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.policy.tree import mrope_positions
from sightline.sampling.base import Request, SamplingSettings, uniforms
from sightline.sampling.cache import Filling, PrefixCache, Shared
from sightline.sampling.turns import Conversation
from sightline.types import Finish, ImageRef, Rollout

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["LocalSampler"]


class _Segment(NamedTuple):
    """Tokens that one row reads at once: ids, their images, and the position of the first."""

    ids: Int[np.ndarray, "tokens"]
    images: tuple[ImageRef, ...]
    start: int


class _Front(NamedTuple):
    """Where rows stand after reading: hidden state of the last token, the position that follows, keys and values."""

    hidden: Float[Tensor, "rows width"]
    position: Int[np.ndarray, "rows"]
    chain: list[Shared]

    def at(self, rows: Sequence[int]) -> _Front:
        index = torch.tensor(rows, device=self.hidden.device)
        return _Front(self.hidden[index], self.position[rows], [level.at(index) for level in self.chain])


@dataclass(slots=True)
class _Reply:
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"


class LocalSampler:
    """Samples with the policy's own module.

    Args:
        policy: the policy; its current weights are used at each call.
        rows: rows decoded together; Requests are taken whole, so a single one with more Rollouts is one batch.
        on_token: called with the row of the batch and the id for every id as it is sampled, to show it while more come.
    """

    def __init__(self, policy: Policy, *, rows: int = 512, on_token: Callable[[int, int], None] | None = None) -> None:
        self.policy, self.rows, self.on_token = policy, rows, on_token

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, *, seed: int, step: int
    ) -> list[list[Rollout]]:
        """`n` Rollouts for each Request, in the order given."""
        was_training = self.policy.model.training
        self.policy.model.eval()
        try:
            return self._sample(requests, settings, seed, step)
        finally:
            self.policy.model.train(was_training)

    def refresh(self, policy: Policy) -> None:
        """Nothing to do for weights that changed in place; another policy takes over."""
        self.policy = policy

    def metrics(self) -> dict[str, float]:
        return {}

    def alarms(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        pass

    def _sample(
        self, requests: Sequence[Request], settings: SamplingSettings, seed: int, step: int
    ) -> list[list[Rollout]]:
        begun = [Conversation.begin(self.policy, request) for request in requests]
        results: list[list[Rollout]] = [[] for _ in requests]
        # prompts of similar length share a batch, so that little of it is padding
        order = sorted(range(len(requests)), key=lambda i: len(begun[i].prompt.ids))
        for chunk in _chunks(order, [request.n for request in requests], self.rows):
            for i, over in self._converse([(i, begun[i]) for i in chunk], settings, seed, step):
                results[i] += over.rollouts()
        return [sorted(group, key=lambda rollout: rollout.branch) for group in results]

    def _converse(
        self, waiting: list[tuple[int, Conversation]], settings: SamplingSettings, seed: int, step: int
    ) -> Iterator[tuple[int, Conversation]]:
        """Turn by turn: rows fork where a level begins, reply together, and read what the user adds."""
        is_parking = any(c.request.turns is not None for _, c in waiting)
        front = self._read([_Segment(c.prompt.ids, c.prompt.images, 0) for _, c in waiting])
        while True:
            forked = [(at, i, row) for at, (i, c) in enumerate(waiting) for row in c.forked()]
            rows = [row for _, _, row in forked]
            hidden, position, chain = front.at([at for at, _, _ in forked])
            cache = PrefixCache(chain, is_parking=is_parking)
            del front, chain  # the cache lets go of prompts whose rows have finished
            replies = self._reply(hidden, position, cache, _noise(rows, settings, seed, step), settings)
            after = [
                row.replied(self.policy, r.ids, r.logprobs, r.finish).continued(self.policy)
                for row, r in zip(rows, replies, strict=True)
            ]
            yield from ((i, c) for (_, i, _), c in zip(forked, after, strict=True) if c.is_over)
            going = [k for k, c in enumerate(after) if not c.is_over]
            waiting = [(forked[k][1], after[k]) for k in going]
            if not waiting:
                return
            last = [int(position[k]) + len(replies[k].ids) - 1 for k in going]
            front = self._read_on([after[k] for k in going], last, cache, going)

    def _read_on(
        self, rows: Sequence[Conversation], last: Sequence[int], cache: PrefixCache, going: Sequence[int]
    ) -> _Front:
        """Reads the user's turns, after the id that ended the policy's: it was sampled at `last`, and never fed."""
        segments = [
            _Segment(np.concatenate([c.pieces[-2][-1:], c.pending.ids]), c.pending.images, start)
            for c, start in zip(rows, last, strict=True)
        ]
        return self._read(segments, cache.standing(torch.tensor(going, device=self.policy.device)))

    def _read(self, segments: Sequence[_Segment], chain: Sequence[Shared] = ()) -> _Front:
        """One forward over several new tokens per row, behind what stands in the chain."""
        policy, device = self.policy, self.policy.device
        width = max(len(s.ids) for s in segments)
        ids = np.full((len(segments), width), policy.pad, np.int64)
        positions = np.zeros((3, len(segments), width), np.int64)
        following = np.zeros(len(segments), np.int64)
        images: list[tuple[ImageRef, int]] = []
        for r, s in enumerate(segments):
            start = width - len(s.ids)
            ids[r, start:] = s.ids
            grids = [policy.pixels.grid(image) for image in s.images]
            positions[:, r, start:], following[r] = mrope_positions(s.ids, grids, policy.image_token, s.start)
            first = iter(np.flatnonzero(s.ids == policy.image_token)[_image_starts(grids)])
            images.extend((image, r * width + start + int(next(first))) for image in s.images)
        visual = policy.pixels.batch(images)
        vision, features = visual.features, None
        if visual.pixels is not None and visual.grids is not None:
            vision = policy.adapter.vision(visual.pixels.to(device), visual.grids)
        if vision is not None:
            features = (vision, visual.at.to(device), visual.source.to(device))
        valid = np.arange(width) >= np.array([[width - len(s.ids)] for s in segments])
        filling = Filling(torch.from_numpy(valid).to(device), chain)
        hidden = policy.adapter.text(
            torch.from_numpy(ids).to(device), torch.from_numpy(positions).to(device), filling.mask(policy.model.dtype),
            features, past_key_values=filling,
        )  # fmt: skip
        return _Front(hidden[:, -1], following, filling.levels())

    def _reply(
        self, hidden: Tensor, position: np.ndarray, cache: PrefixCache, noise: np.ndarray | None,
        settings: SamplingSettings,
    ) -> list[_Reply]:  # fmt: skip
        """One turn of every row, up to the id that ends it or to the token limit."""
        rows = [_Reply() for _ in range(len(hidden))]
        at = torch.from_numpy(position).to(hidden.device)
        alive = list(range(len(rows)))
        for t in range(settings.max_new_tokens):
            token, logprob = self._draw(hidden, noise[alive, t] if noise is not None else None, settings)
            for row, i, lp in zip(alive, token.tolist(), logprob.tolist(), strict=True):
                rows[row].ids.append(i)
                rows[row].logprobs.append(lp)
                if self.on_token is not None:
                    self.on_token(row, i)
                if i in self.policy.eos:
                    rows[row].finish = "stop"
            going = [k for k, row in enumerate(alive) if rows[row].finish == "length"]
            if t + 1 == settings.max_new_tokens:
                going = []
            if len(going) < len(alive):
                index = torch.tensor(going, dtype=torch.long, device=hidden.device)
                cache.keep(index)
                token, at = token[index], at[index]
                alive = [alive[k] for k in going]
            if not alive:
                break
            hidden = self._advance(token, at, cache)
            at = at + 1
        return rows

    def _advance(self, token: Tensor, position: Tensor, cache: PrefixCache) -> Tensor:
        """One decoding forward: hidden states of the newly appended tokens."""
        positions = position[None, :, None].expand(3, -1, 1)
        unused = torch.zeros(1, 1, 1, 1, device=token.device)
        hidden = self.policy.adapter.text(token[:, None], positions, unused, None, past_key_values=cache, decoder=cache)
        return hidden[:, 0]

    def _draw(self, hidden: Tensor, noise: np.ndarray | None, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
        """Draws one id per row by inverting the cumulative distribution at the row's own uniform number."""
        logprobs = torch.log_softmax(self.policy.module.scores(hidden, settings.temperature or 1.0), -1)
        if noise is None:
            token = logprobs.argmax(-1)
        else:
            token = _inverse_cdf(logprobs, torch.from_numpy(noise).to(logprobs.device), settings.top_p)
        return token, logprobs.gather(-1, token[:, None])[:, 0]


def _noise(rows: Sequence[Conversation], settings: SamplingSettings, seed: int, step: int) -> np.ndarray | None:
    """The uniform numbers of every row's next turn."""
    if settings.temperature == 0:
        return None
    count = settings.max_new_tokens
    shown = [row.request.prompt for row in rows]
    return np.stack(
        [uniforms(seed, step, p.record.id, p.stream, row.key, count) for p, row in zip(shown, rows, strict=True)]
    )


def _inverse_cdf(logprobs: Tensor, noise: Tensor, top_p: float) -> Tensor:
    p = logprobs.double().exp()
    if top_p < 1.0:
        ordered, order = p.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    cumulative = p.cumsum(-1)
    # strictly greater: an id without probability is never chosen, whatever the rounding
    point = noise[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_(max=p.shape[-1] - 1)


def _image_starts(grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """Among all visual tokens of a sequence, the index of each image's first."""
    sizes = np.array([r * c for r, c in grids], np.int64)
    return np.cumsum(sizes) - sizes


def _chunks(order: Sequence[int], n: Sequence[int], rows: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    used = rows
    for i in order:
        if used + n[i] > rows:
            chunks.append([])
            used = 0
        chunks[-1].append(i)
        used += n[i]
    return [c for c in chunks if c]
