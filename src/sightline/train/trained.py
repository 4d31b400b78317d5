"""Which parts of a policy are trained and how they are computed, as the recipe's section `model` says."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sightline.policy.features import freeze_vision, tower

if TYPE_CHECKING:
    from sightline.config.sections import Model
    from sightline.policy.load import Policy

__all__ = ["choose_trained"]


def choose_trained(policy: Policy, model: Model, tokens: Collection[int] = ()) -> None:
    """Freezes what is not trained. A vision tower without trained parts keeps the features of its images.
    Layers go on fused kernels where the recipe wants them.

    Args:
        policy: as it was loaded, with an adapter or without.
        model: the recipe's section.
        tokens: whose embedding rows are trained beside an adapter.

    Raises:
        UserError: kernels are asked for that cannot run here.
    """
    if policy.lora and tokens:
        from sightline.policy.lora import train_rows

        train_rows(policy, tokens)
    if not model.train_vision or not any(p.requires_grad for p in tower(policy).parameters()):
        freeze_vision(policy, model.feature_cache)
    if model.kernels != "none" and not model.compile:
        from sightline.policy.liger import use_kernels

        use_kernels(policy, model.kernels)
