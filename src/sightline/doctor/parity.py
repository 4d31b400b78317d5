"""Parity probe: the log-probs that the sampler records are those that the learner computes for the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline.doctor.finding import Finding

if TYPE_CHECKING:
    from jaxtyping import Float

    from sightline.policy.load import Policy
    from sightline.sampling.base import Request, Sampler, SamplingSettings
    from sightline.types import Rollout

__all__ = ["LIMITS", "Parity", "compared", "parity_probe", "scored"]

LIMITS = {"float32": (1e-4, 1e-2), "bfloat16": (0.03, 0.15), "float16": (0.01, 0.05)}
"""Mean difference per token in nats, by number format: up to the first all is well, beyond the second nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Log-probs of the same tokens by the sampler and by the learner.

    Attributes:
        tokens: how many were compared.
        mean, largest: absolute difference, nats.
        correlation: of the two probabilities; 1 if they agree.
        prompts: Rollouts whose prompt ids are not those the policy encodes.
    """

    tokens: int
    mean: float
    largest: float
    correlation: float
    prompts: int


def parity_probe(
    policy: Policy, sampler: Sampler, requests: Sequence[Request], settings: SamplingSettings, *, name: str = "local"
) -> Finding:
    """Samples every request once, scores the Rollouts with the policy and compares.

    Args:
        policy: the learner's policy.
        sampler: what the run samples with.
        requests: prompts of every stream, conversations included.
        settings: the run's.
        name: of the sampler, for messages.
    """
    found = compared(policy, sampler, requests, settings)
    dtype = str(policy.model.dtype).removeprefix("torch.")
    good, bad = LIMITS.get(dtype, LIMITS["bfloat16"])
    figures = (
        f"{found.tokens} tokens, {dtype}: mean difference {found.mean:.2g} nats, largest {found.largest:.2g}, "
        f"correlation of probabilities {found.correlation:.5f}"
    )
    values = {"mean": found.mean, "largest": found.largest, "correlation": found.correlation, "tokens": found.tokens}
    if found.prompts:
        return Finding(
            level="fail", what=f"{found.prompts} rollouts answer another prompt than the policy encodes",
            meaning="sampler and learner do not speak about the same text",
            command="compare the chat template and processor files of the server's model with the policy's",
            values=values,
        )  # fmt: skip
    if not found.tokens:
        return Finding(level="warn", what="no token was sampled", meaning="nothing was compared",
                       command="sightline doctor RECIPE --only parity --sample 16", values=values)  # fmt: skip
    if not np.isfinite(found.largest):
        return Finding(
            level="fail", what=f"{name} sampler: log-probs that are no numbers among {found.tokens} tokens",
            meaning="the weights or the computation overflow: every update would be lost",
            command="--model.dtype float32" if dtype == "float16" else "sightline doctor RECIPE --only weights",
            values={**values, "mean": None, "largest": None, "correlation": None},
        )  # fmt: skip
    if settings.top_p < 1:
        figures += f"; top_p {settings.top_p:g} cuts mass that the learner keeps"
    if found.mean <= good:
        return Finding(level="pass", what=f"{name} sampler: {figures}", values=values,
                       meaning="the update learns from the probabilities that were sampled with")  # fmt: skip
    is_bad = found.mean > bad or found.correlation < 0.98
    return Finding(
        level="fail" if is_bad else "warn", what=f"{name} sampler: {figures}",
        meaning="the sampler runs other weights, another temperature or another prompt than the learner: "
        "the update would be off-policy from the first step",
        command="sightline serve-help RECIPE" if name == "server" else "check sampling.temperature and the sampler",
        values=values,
    )  # fmt: skip


def compared(policy: Policy, sampler: Sampler, requests: Sequence[Request], settings: SamplingSettings) -> Parity:
    """Samples and scores; the figures of the comparison."""
    sampled = sampler.sample(requests, settings, seed=0, step=0)
    rollouts = [rollout for group in sampled for rollout in group]
    prompts = sum(not np.array_equal(r.prompt_ids, policy.encode(r.prompt).ids) for r in rollouts)
    ours = scored(policy, sampled, settings.temperature or 1.0)
    theirs = [rollout.logprobs[rollout.sampled] for rollout in rollouts]
    a, b = (np.concatenate([*parts, np.empty(0)]).astype(np.float64) for parts in (ours, theirs))
    if not len(a):
        return Parity(tokens=0, mean=0.0, largest=0.0, correlation=1.0, prompts=prompts)
    difference = np.abs(a - b)
    p, q = np.exp(a), np.exp(b)
    varied = len(a) > 1 and p.std() > 0 and q.std() > 0
    return Parity(
        tokens=len(a), mean=float(difference.mean()), largest=float(difference.max()), prompts=prompts,
        correlation=float(np.corrcoef(p, q)[0, 1]) if varied else 1.0,
    )  # fmt: skip


def scored(policy: Policy, sampled: Sequence[Sequence[Rollout]], temperature: float) -> list[Float[np.ndarray, "ids"]]:
    """The learner's log-prob of every sampled id, Rollout by Rollout."""
    from sightline.policy.packing import Packer
    from sightline.probes.scoring import scoring_pass
    from sightline.types import Group

    groups = [Group(record=group[0].record, rollouts=tuple(group), readings=()) for group in sampled if group]
    found = []
    for group in scoring_pass(Packer(policy), groups, temperature=temperature):
        for rollout, measurement in zip(group.rollouts, group.measurements, strict=True):
            assert measurement.logprobs is not None
            found.append(measurement.logprobs[rollout.sampled])
    return found
