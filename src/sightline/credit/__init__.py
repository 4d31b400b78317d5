"""Credit as data: advantages and loss weights per token, numpy only."""

from __future__ import annotations

from sightline.credit.group import credit_for, group_advantages
from sightline.credit.weights import Totals, normalised_weights, totals_of

__all__ = ["Totals", "credit_for", "group_advantages", "normalised_weights", "totals_of"]
