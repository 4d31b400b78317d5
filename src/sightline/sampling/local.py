"""The local sampler: token-exact generation on the training weights.

Each distinct image is encoded once, each prompt prefilled once, finished rows leave the batch, ids that the policy must
never write have no probability, and every sampled id comes with its log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sightline.policy.attention import dense_mask
from sightline.policy.tree import mrope_positions
from sightline.sampling.base import Request, SamplingSettings, uniforms
from sightline.sampling.cache import PrefixCache
from sightline.types import ImageRef, Prompt, Rollout, Span, Turn

if TYPE_CHECKING:
    from sightline.policy.encode import Encoded
    from sightline.policy.load import Policy

__all__ = ["LocalSampler"]


@dataclass(slots=True)
class _Row:
    prompt: int
    branch: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_stopped: bool = False


class LocalSampler:
    """Samples with the policy's own module.

    Args:
        policy: the policy; its current weights are used at each call.
        rows: rows decoded together; prompts are taken whole, so a single prompt with more Rollouts is one batch.
    """

    def __init__(self, policy: Policy, *, rows: int = 512) -> None:
        self.policy, self.rows = policy, rows

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, *, seed: int, step: int
    ) -> list[list[Rollout]]:
        """`n` Rollouts for each Request, in the order given."""
        prompts, n = [r.prompt for r in requests], [r.n for r in requests]
        was_training = self.policy.model.training
        self.policy.model.eval()
        encoded = [self.policy.encode(p) for p in prompts]
        results: list[list[Rollout]] = [[] for _ in prompts]
        # prompts of similar length share a batch, so that little of it is padding
        order = sorted((i for i in range(len(prompts)) if n[i] > 0), key=lambda i: len(encoded[i].ids))
        for chunk in _chunks(order, n, self.rows):
            batch = [prompts[i] for i in chunk]
            out = self._generate(batch, [encoded[i] for i in chunk], [n[i] for i in chunk], settings, seed, step)
            for i, rollouts in zip(chunk, out, strict=True):
                results[i] = rollouts
        self.policy.model.train(was_training)
        return results

    def _generate(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[Encoded],
        n: Sequence[int],
        settings: SamplingSettings,
        seed: int,
        step: int,
    ) -> list[list[Rollout]]:
        rows = [_Row(p, b) for p, count in enumerate(n) for b in range(count)]
        noise = self._noise(prompts, rows, settings, seed, step)
        hidden, cache, following = self._prefill(encoded)
        at = torch.tensor([r.prompt for r in rows], device=hidden.device)
        cache.fork(at)
        hidden, position = hidden[at], following[at]
        alive = list(range(len(rows)))
        for t in range(settings.max_new_tokens):
            token, logprob = self._draw(hidden, noise[alive, t] if noise is not None else None, settings)
            for row, i, lp in zip(alive, token.tolist(), logprob.tolist(), strict=True):
                rows[row].ids.append(i)
                rows[row].logprobs.append(lp)
                rows[row].is_stopped = i in self.policy.eos
            going = [k for k, row in enumerate(alive) if not rows[row].is_stopped]
            if not going or t + 1 == settings.max_new_tokens:
                break
            if len(going) < len(alive):
                index = torch.tensor(going, device=hidden.device)
                cache.keep(index)
                token, position = token[index], position[index]
                alive = [alive[k] for k in going]
            hidden = self._advance(token, position, cache)
            position = position + 1
        results: list[list[Rollout]] = [[] for _ in prompts]
        for row in rows:
            results[row.prompt].append(self._rollout(prompts[row.prompt], encoded[row.prompt], row))
        return results

    def _prefill(self, encoded: Sequence[Encoded]) -> tuple[Tensor, PrefixCache, Tensor]:
        """Hidden state of each prompt's last token, the filled cache, and the position that follows the prompt."""
        policy = self.policy
        width = max(len(e.ids) for e in encoded)
        ids = np.full((len(encoded), width), policy.pad, np.int64)
        positions = np.zeros((3, len(encoded), width), np.int64)
        following = np.zeros(len(encoded), np.int64)
        images: list[tuple[ImageRef, int]] = []
        for r, e in enumerate(encoded):
            start = width - len(e.ids)
            ids[r, start:] = e.ids
            grids = [policy.pixels.grid(image) for image in e.images]
            positions[:, r, start:], following[r] = mrope_positions(e.ids, grids, policy.image_token)
            first = iter(np.flatnonzero(e.ids == policy.image_token)[_image_starts(grids)])
            images.extend((image, r * width + start + int(next(first))) for image in e.images)
        device = policy.device
        visual = policy.pixels.batch(images)
        features = None
        if visual.pixels is not None and visual.grids is not None:
            vision = policy.adapter.vision(visual.pixels.to(device), visual.grids)
            features = (vision, visual.at.to(device), visual.source.to(device))
        valid = torch.from_numpy(np.arange(width) >= np.array([[width - len(e.ids)] for e in encoded])).to(device)
        # left padding sees only itself: it ends where it stands
        index = torch.arange(1, width + 1, device=device)
        mask = dense_mask(torch.where(valid, width, index[None]), policy.model.dtype)
        cache = PrefixCache(policy.model.config.text_config.num_hidden_layers, valid)
        hidden = policy.adapter.text(
            torch.from_numpy(ids).to(device), torch.from_numpy(positions).to(device), mask, features,
            past_key_values=cache,
        )  # fmt: skip
        return hidden[:, -1], cache, torch.from_numpy(following).to(device)

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

    def _noise(
        self, prompts: Sequence[Prompt], rows: Sequence[_Row], settings: SamplingSettings, seed: int, step: int
    ) -> np.ndarray | None:
        if settings.temperature == 0:
            return None
        count = settings.max_new_tokens
        return np.stack(
            [
                uniforms(seed, step, prompts[r.prompt].record.id, prompts[r.prompt].stream, (r.branch,), count)
                for r in rows
            ]
        )

    def _rollout(self, prompt: Prompt, encoded: Encoded, row: _Row) -> Rollout:
        ids = np.array(row.ids, np.int64)
        return Rollout(
            prompt=prompt, branch=(row.branch,), prompt_ids=encoded.ids, ids=ids, sampled=np.ones(len(ids), bool),
            logprobs=np.array(row.logprobs, np.float32), text=prompt.forced_prefix + self.policy.decode(ids),
            finish="stop" if row.is_stopped else "length", turns=(Turn(role="assistant", span=Span(0, len(ids))),),
        )  # fmt: skip


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
