"""Reward terms: pure functions of a Reading and its Record that return a Score with a one-line reason."""

from __future__ import annotations

from sightline.geometry.boxes import dual_iou
from sightline.rewards.answer import accuracies, accuracy
from sightline.rewards.boxes import box_iou, box_validity
from sightline.rewards.consistency import consistency, consistency_requests
from sightline.rewards.format import think_answer_format
from sightline.rewards.guards import is_box_spam, is_empty_answer, is_full_image

__all__ = [
    "accuracies",
    "accuracy",
    "box_iou",
    "box_validity",
    "consistency",
    "consistency_requests",
    "dual_iou",
    "is_box_spam",
    "is_empty_answer",
    "is_full_image",
    "think_answer_format",
]
