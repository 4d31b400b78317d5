"""Ban probe: ids that the policy must never write have no probability, in sampling and in every scoring pass.

The ban is tested against a policy that wants to break it: while the probe runs, the output head gives every banned id
a logit far above all others. Without an active ban nothing else would be written, and what was written would have lost
its probability when it is scored. Servers must give up what they would have begun with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sightline.doctor.finding import Finding

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.sampling.base import Request, Sampler, SamplingSettings
    from sightline.types import Prompt, Rollout

__all__ = ["ban_probe", "must_be_banned", "tempted"]

TEMPTATION = 1000.0
LEAST = 1e-6
"""Share of a probability that rounding may take."""


def ban_probe(policy: Policy, sampler: Sampler, requests: Sequence[Request], *, tokens: int = 12) -> Finding:
    """Looks for missing bans, for banned ids in what a tempted policy samples, and for their mass in scoring."""
    from sightline.sampling.base import SamplingSettings
    from sightline.sampling.local import LocalSampler

    missing = sorted(must_be_banned(policy) - set(policy.banned))
    settings = SamplingSettings(max_new_tokens=tokens)
    is_ours = isinstance(sampler, LocalSampler)
    if is_ours:
        with tempted(policy):
            groups = sampler.sample(requests, settings, seed=0, step=0)
        forbidden = set(policy.banned)
    else:
        groups, forbidden = _denied(policy, sampler, requests, settings)
    mass = _mass(policy, [request.prompt for request in requests])
    sampled = [int(i) for group in groups for rollout in group for i in rollout.ids[rollout.sampled]]
    written = sorted(set(sampled) & forbidden)
    values = {"banned": len(policy.banned), "sampled": len(sampled), "written": len(written), "mass": mass}
    problems = []
    if missing:
        problems.append(f"{len(missing)} ids are not on the list, e.g. {_named(policy, missing)}")
    if not mass <= LEAST:
        problems.append(f"scoring gives banned ids a probability of {mass:.3g}")
    if written:
        problems.append(f"{len(written)} banned ids were sampled, e.g. {_named(policy, written)}")
    if problems:
        return Finding(
            level="fail", what="; ".join(problems),
            meaning="a reply with an image token in it breaks the count of features; spare rows decode to nothing",
            command="load the policy with load_policy; a sampler of your own must take over policy.banned",
            details=tuple(problems), values=values,
        )  # fmt: skip
    how = "under temptation" if is_ours else "by the servers, which also give up what they would have begun with"
    return Finding(
        level="pass", values=values,
        what=f"{len(policy.banned)} banned ids: none among {len(sampled)} sampled {how}; no mass in scoring",
        meaning="image placeholders, padding and rows without a word are never written and never scored",
    )  # fmt: skip


def _denied(
    policy: Policy, sampler: Sampler, requests: Sequence[Request], settings: SamplingSettings
) -> tuple[list[list[Rollout]], set[int]]:
    """What servers write when the first ids that they wrote of themselves are banned too, and all that was banned.

    Nobody else's output head can be reached; that a ban is kept shows where it takes away what would be written.
    """
    free = sampler.sample(requests, settings, seed=0, step=0)
    first = {int(rollout.ids[rollout.sampled][0]) for group in free for rollout in group if rollout.sampled.any()}
    before = policy.banned
    policy.banned = (*before, *sorted(first - set(before) - set(policy.eos)))
    try:
        return sampler.sample(requests, settings, seed=0, step=0), set(policy.banned)
    finally:
        policy.banned = before


def _mass(policy: Policy, prompts: Sequence[Prompt]) -> float:
    """The largest share of a token's probability that temptation takes from it where replies are scored."""
    import numpy as np

    from sightline.doctor.parity import scored
    from sightline.train.supervised import demonstration

    sampled = [[demonstration(policy, prompt, ["<answer> yes </answer>"])] for prompt in prompts]
    plain = np.concatenate([*scored(policy, sampled, 1.0), np.empty(0)])
    with tempted(policy) as calls:
        under = np.concatenate([*scored(policy, sampled, 1.0), np.empty(0)])
    if len(plain) and not calls:
        raise RuntimeError("the output head takes no part in scoring, so bans cannot be tested")
    return float(np.max(1 - np.exp(np.minimum(under - plain, 0)), initial=0.0))


def must_be_banned(policy: Policy) -> set[int]:
    """Placeholders and vision marks, padding unless it ends a turn, and rows that no word of the tokenizer uses."""
    _, marks = policy.adapter.placeholders()
    rows = int(policy.model.get_output_embeddings().weight.shape[0])
    return ({*marks, policy.pad} - set(policy.eos)) | set(range(len(policy.tokenizer), rows))


@contextmanager
def tempted(policy: Policy) -> Iterator[list[int]]:
    """The output head of the policy prefers banned ids; yields how many logits each of its calls gave."""
    calls: list[int] = []

    def prefer(module: Any, given: Any, logits: Any) -> Any:
        del module, given
        calls.append(logits.numel())
        raised = logits.clone()
        raised[..., list(policy.banned)] += TEMPTATION
        return raised

    hook = policy.model.get_output_embeddings().register_forward_hook(prefer)
    try:
        yield calls
    finally:
        hook.remove()


def _named(policy: Policy, ids: Sequence[int]) -> str:
    names = (policy.tokenizer.convert_ids_to_tokens(i) if i < len(policy.tokenizer) else "spare row" for i in ids[:3])
    return ", ".join(f"{i} ({name})" for i, name in zip(ids[:3], names, strict=True))
