"""Ban probe: ids that the policy must never write have no probability, in sampling and in every scoring pass.

The ban is tested against a policy that wants to break it: while the probe runs, the output head gives every banned id
a logit far above all others. Without an active ban nothing else would be written. Servers are asked as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sightline.doctor.finding import Finding

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.sampling.base import Request, Sampler

__all__ = ["ban_probe", "must_be_banned", "tempted"]

TEMPTATION = 1000.0


def ban_probe(policy: Policy, sampler: Sampler, requests: Sequence[Request], *, tokens: int = 12) -> Finding:
    """Looks for missing bans, for mass in scoring, and for banned ids in what a tempted policy samples."""
    import torch

    from sightline.sampling.base import SamplingSettings
    from sightline.sampling.local import LocalSampler

    missing = sorted(must_be_banned(policy) - set(policy.banned))
    settings = SamplingSettings(max_new_tokens=tokens)
    banned = torch.tensor(policy.banned, device=policy.device)
    is_ours = isinstance(sampler, LocalSampler)  # nobody else's output head can be reached
    with tempted(policy) if is_ours else nullcontext():
        groups = sampler.sample(requests, settings, seed=0, step=0)
    with tempted(policy), torch.no_grad():
        width = policy.model.get_output_embeddings().weight.shape[1]
        hidden = torch.zeros(1, width, device=policy.device, dtype=policy.model.dtype)
        mass = float(torch.softmax(policy.module.scores(hidden), -1)[0, banned].sum())
    sampled = [int(i) for group in groups for rollout in group for i in rollout.ids[rollout.sampled]]
    written = sorted(set(sampled) & set(policy.banned))
    values = {"banned": len(policy.banned), "sampled": len(sampled), "written": len(written), "mass": mass}
    problems = []
    if missing:
        problems.append(f"{len(missing)} ids are not on the list, e.g. {_named(policy, missing)}")
    if mass > 0:
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
    how = " under temptation" if is_ours else " by the servers"
    return Finding(
        level="pass", values=values,
        what=f"{len(policy.banned)} banned ids: none among {len(sampled)} sampled{how}, no mass in scoring",
        meaning="image placeholders, padding and rows without a word are never written and never scored",
    )  # fmt: skip


def must_be_banned(policy: Policy) -> set[int]:
    """Placeholders and vision marks, padding unless it ends a turn, and rows that no word of the tokenizer uses."""
    _, marks = policy.adapter.placeholders()
    rows = int(policy.model.get_output_embeddings().weight.shape[0])
    return ({*marks, policy.pad} - set(policy.eos)) | set(range(len(policy.tokenizer), rows))


@contextmanager
def tempted(policy: Policy) -> Iterator[None]:
    """The output head of the policy prefers banned ids."""

    def prefer(module: Any, given: Any, logits: Any) -> Any:
        del module, given
        raised = logits.clone()
        raised[..., list(policy.banned)] += TEMPTATION
        return raised

    hook = policy.model.get_output_embeddings().register_forward_hook(prefer)
    try:
        yield
    finally:
        hook.remove()


def _named(policy: Policy, ids: Sequence[int]) -> str:
    names = (policy.tokenizer.convert_ids_to_tokens(i) if i < len(policy.tokenizer) else "spare row" for i in ids[:3])
    return ", ".join(f"{i} ({name})" for i, name in zip(ids[:3], names, strict=True))
