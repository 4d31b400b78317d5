"""Token probe: a prompt has as many image tokens as the vision tower gives features, for every record of the sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sightline.doctor.finding import Finding

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.types import ImageRef, Prompt

__all__ = ["features", "token_probe"]


def token_probe(policy: Policy, prompts: Sequence[Prompt], *, reply: int, budget: int) -> Finding:
    """Counts image tokens of every prompt, and what the tower makes of every distinct image.

    Args:
        policy: the policy.
        prompts: of every stream of every record.
        reply: longest reply, tokens.
        budget: tokens of one forward pass (`train.token_budget`).
    """
    made: dict[str, int] = {}
    problems, longest, visual = [], 0, 0
    for prompt in prompts:
        encoded = policy.encode(prompt)
        tokens = int((encoded.ids == policy.image_token).sum())
        for image in encoded.images:
            if image.digest not in made:
                made[image.digest] = features(policy, image)
        wanted = sum(made[image.digest] for image in encoded.images)
        longest, visual = max(longest, len(encoded.ids)), max(visual, tokens)
        if tokens != wanted or len(encoded.images) != len(prompt.images):
            problems.append(
                f"{prompt.record.id}, {prompt.stream}: {tokens} image tokens, {wanted} features of "
                f"{len(prompt.images)} images"
            )
    values = {"prompts": len(prompts), "longest": longest, "image_tokens": visual, "unequal": len(problems)}
    if problems:
        return Finding(
            level="fail", what=f"{len(problems)} of {len(prompts)} prompts: {problems[0]}",
            meaning="the model would read the wrong features at the wrong places, or stop in the middle of the run",
            command="compare the chat template and pixel limits of the checkpoint with the published ones",
            details=tuple(problems), values=values,
        )  # fmt: skip
    said = f"{len(prompts)} prompts: image tokens equal image features; longest {longest} tokens, {visual} of an image"
    limit = _positions(policy)
    if limit is not None and longest + reply > limit:
        return Finding(
            level="fail", what=f"prompt {longest} + reply {reply} tokens exceed the {limit} positions of the model",
            meaning="replies would run past the positions the model knows",
            command="lower sampling.max_new_tokens or model.max_pixels", values=values,
        )  # fmt: skip
    if longest + reply > budget:
        return Finding(
            level="warn", what=f"prompt {longest} + reply {reply} tokens exceed train.token_budget {budget}",
            meaning="a single rollout is longer than a forward pass should be: it runs alone and may not fit in memory",
            command=f"--train.token_budget {longest + reply}", values=values,
        )  # fmt: skip
    return Finding(level="pass", what=said, meaning="every visual token is filled with its own feature", values=values)


def features(policy: Policy, image: ImageRef) -> int:
    """How many visual features the tower makes of an image."""
    import torch

    visual = policy.pixels.batch([(image, 0)])
    if visual.features is not None:  # kept ones of a frozen tower
        return len(visual.features.features)
    if visual.pixels is None or visual.grids is None:
        return 0
    with torch.no_grad():
        return len(policy.adapter.vision(visual.pixels.to(policy.device), visual.grids).features)


def _positions(policy: Policy) -> int | None:
    return getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
