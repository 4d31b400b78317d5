"""An independent reference: one stock transformers forward per Rollout, no tree anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sightline.policy.load import Policy
from sightline.types import Rollout


def reference_logprobs(policy: Policy, group: Sequence[Rollout]) -> list[torch.Tensor]:
    """One stock forward per rollout: input ids, pixels and the library's own positions, no tree anywhere."""
    out = []
    for rollout in group:
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]))[None]
        shown = policy.pixels.batch([(image, 0) for image in rollout.prompt.images])
        types = (ids == policy.image_token).int()
        logits = policy.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown.pixels, image_grid_thw=shown.grids,
            mm_token_type_ids=types,
        ).logits[0]  # fmt: skip
        start = len(rollout.prompt_ids)
        rows = torch.log_softmax(logits[start - 1 : -1] + policy.module.bias, -1)
        out.append(rows.gather(-1, ids[0, start:, None])[:, 0])
    return out
