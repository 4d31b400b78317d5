"""Credit that depends on the token: what the image did to each one, and the advantages that follow from it.

`d_t = log p'_t - log p_t` compares the probability of a sampled token under a changed image with the original. Token
filter and scales of whole rollouts are those of VPPO (arXiv 2510.09285), the decoupled advantage is our reading of
Faithful-MR1 (arXiv 2605.22072).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.credit.group import Baseline, group_advantages
from sightline.language.spans import Offsets, token_spans, tokens_of
from sightline.types import Span

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = [
    "Estimator",
    "causal_effect",
    "content_tokens",
    "decoupled_advantages",
    "most_affected",
    "rollout_scales",
    "section_tokens",
]

Estimator = Literal["k3", "logratio_pos"]

_TAG = re.compile(r"<\s*/?\s*(?:think|rethink|answer|box|focus|Focus)\s*>")
_LEAST_DEVIATION = 1e-3


def causal_effect(
    original: Float[np.ndarray, "tokens"],
    changed: Float[np.ndarray, "tokens *draws"],
    estimator: Estimator = "k3",
    *,
    log_ratio_clamp: float = 20.0,
    value_clamp: float = 10.0,
) -> Float[np.ndarray, "tokens"]:
    """How much the image matters to each token, nats, from `d = changed - original`; the mean over draws.

    `k3`: exp(d) - d - 1, unbiased for KL(p, p') since the tokens were drawn from p. It is asymmetric: its largest
    values mark tokens that the image makes *less* likely. `logratio_pos`: max(0, -d), only tokens the image supports.

    Args:
        original: log-probs of the sampled tokens.
        changed: the same under the changed image, with a second axis where it was drawn several times.

    Example:
        >>> causal_effect(np.zeros(3), np.array([-2.0, 2.0, 5.0])).round(2).tolist()
        [1.14, 4.39, 10.0]
    """
    before = np.asarray(original, np.float64)
    after = np.asarray(changed, np.float64)
    d = (after.reshape(len(before), -1) - before[:, None]).clip(-log_ratio_clamp, log_ratio_clamp)
    effect = np.maximum(-d, 0.0) if estimator == "logratio_pos" else np.exp(d) - d - 1
    return effect.clip(0.0, value_clamp).mean(axis=1)


def most_affected(
    effect: Float[np.ndarray, "tokens"], valid: Bool[np.ndarray, "tokens"], share: float = 0.4
) -> Bool[np.ndarray, "tokens"]:
    """VPPO's token filter: of n valid tokens the `ceil(share n)` with the largest effect; of equal ones the earlier.

    Example:
        >>> most_affected(np.array([0.1, 3.0, 0.2, 9.0]), np.array([True, True, True, False]), 0.4).tolist()
        [False, True, True, False]
    """
    kept = np.zeros(len(effect), bool)
    at = np.flatnonzero(valid)
    count = math.ceil(share * len(at) - 1e-9)
    kept[at[np.argsort(-np.asarray(effect, np.float64)[at], kind="stable")[:count]]] = True
    return kept


def rollout_scales(
    dependence: Sequence[float] | Float[np.ndarray, "rollouts"], lowest: float = 0.9
) -> Float[np.ndarray, "rollouts"]:
    """VPPO's factor of each Rollout's advantage, from the mean effect S_i of its tokens.

    `u = (S - min S) / (max S - min S)`, `highest = lowest + (1 - lowest) / (mean u + 1e-8)`, factor = `lowest +
    (highest - lowest) u`: their mean is 1. All are 1 where the S_i are equal.

    Args:
        dependence: S_i of every Rollout of the minibatch.
        lowest: beta_min, in [0, 1].

    Example:
        >>> rollout_scales([0.0, 1.0, 2.0]).round(3).tolist()
        [0.9, 1.0, 1.1]
    """
    values = np.asarray(dependence, np.float64)
    spread = float(np.ptp(values)) if len(values) else 0.0
    if spread <= 0:
        return np.ones(len(values))
    u = (values - values.min()) / spread
    return lowest + (1 - lowest) / (u.mean() + 1e-8) * u


def decoupled_advantages(
    rewards: Sequence[float] | Float[np.ndarray, "rollouts"],
    scores: Sequence[float] | Float[np.ndarray, "rollouts"],
    correct: Sequence[bool] | Bool[np.ndarray, "rollouts"],
    weight: float,
    masked: Sequence[bool] | Bool[np.ndarray, "rollouts"] | None = None,
    *,
    how: Baseline = "grpo",
    eps: float = 1e-6,
    ddof: int = 1,
) -> Float[np.ndarray, "rollouts"]:
    """`A_i = z(rewards)_i + weight z_correct(scores)_i`: attention moves the advantage by its weight and no further.

    `z` standardises over the group, `z_correct` among its correct Rollouts; that is 0 for the others, and for all
    where fewer than two are correct or their scores deviate by less than 1e-3. Standardising the sum instead blows
    small differences of the scores up to advantages of one where all Rollouts are correct.

    Args:
        rewards: accuracy and format, without the scores.
        scores: attention score of each Rollout.
        correct: whose answer is right.
        weight: lambda_a.
        masked: Rollouts that leave the group; they get 0.
        how: what `z` is for the rewards, see `group_advantages`; the scores are always standardised.
        eps: added to the deviation of the rewards.
        ddof: deviations divide by `n - ddof`.

    Example:
        >>> decoupled_advantages([1, 1, 1], [0.5, 0.6, 0.7], [True] * 3, weight=0.3).round(3).tolist()
        [-0.3, 0.0, 0.3]
    """
    advantages = group_advantages(rewards, masked, how, eps, ddof)
    chosen = np.asarray(correct, bool)
    if masked is not None:
        chosen = chosen & ~np.asarray(masked, bool)
    values = np.asarray(scores, np.float64)[chosen]
    if len(values) >= 2 and values.std(ddof=ddof) >= _LEAST_DEVIATION:
        advantages[chosen] += weight * (values - values.mean()) / values.std(ddof=ddof)
    return advantages


def content_tokens(pieces: Sequence[str | bytes], sampled: Bool[np.ndarray, "tokens"]) -> Bool[np.ndarray, "tokens"]:
    """The sampled tokens that say something: no part of a format tag, no mark that ends a turn.

    Args:
        pieces: what each token of a reply decodes to; empty for the marks of the chat format.
        sampled: which tokens the policy wrote.

    Example:
        >>> content_tokens(["<think>", " a", " cup", "</think>", ""], np.ones(5, bool)).tolist()
        [False, True, True, False, False]
    """
    text, offsets = _spelled(pieces)
    kept = np.asarray(sampled, bool) & (offsets.ends > offsets.starts)
    for tag in _TAG.finditer(text):
        kept[slice(*tokens_of(Span(*tag.span()), offsets))] = False
    return kept


def section_tokens(pieces: Sequence[str | bytes], section: str) -> Bool[np.ndarray, "tokens"]:
    """The tokens inside the last block of a tag, e.g. those of the answer; none where it does not close.

    Example:
        >>> section_tokens(["<answer>", " red", " cup", "</answer>", ""], "answer").tolist()
        [False, True, True, False, False]
    """
    text, offsets = _spelled(pieces)
    inside = np.zeros(len(pieces), bool)
    blocks = list(re.finditer(rf"<\s*{section}\s*>(.*?)<\s*/\s*{section}\s*>", text, re.DOTALL))
    if blocks:
        inside[slice(*tokens_of(Span(*blocks[-1].span(1)), offsets))] = True
    return inside


def _spelled(pieces: Sequence[str | bytes]) -> tuple[str, Offsets]:
    encoded = [p.encode("utf-8", "replace") if isinstance(p, str) else p for p in pieces]
    return b"".join(encoded).decode("utf-8", "replace"), token_spans(encoded)
