"""What the learner minimises: the clipped surrogate with its KL term, and losses on attention."""

from __future__ import annotations

from sightline.objectives.anchoring import anchor_losses, cover_target, visual_losses
from sightline.objectives.policy import (
    AttentionMap,
    FoldedCredit,
    Loss,
    LossBatch,
    LossOutputs,
    Surrogate,
    TreePaths,
    clipped_surrogate,
    k3,
    policy_loss,
    sequence_surrogate,
)

__all__ = [
    "AttentionMap",
    "FoldedCredit",
    "Loss",
    "LossBatch",
    "LossOutputs",
    "Surrogate",
    "TreePaths",
    "anchor_losses",
    "clipped_surrogate",
    "cover_target",
    "k3",
    "policy_loss",
    "sequence_surrogate",
    "visual_losses",
]
