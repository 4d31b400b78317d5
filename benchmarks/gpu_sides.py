"""The sides of the GPU benchmark: the same update by the token tree, by padded batches, and by TRL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from sides import weighted
from sightline.methods.grpo import GRPO, GRPOConfig
from sightline.policy.batch import Batch, collate
from sightline.policy.flops import padded_work, tree_work
from sightline.policy.packing import Packer
from sightline.policy.readout import MapReadout, MassReadout
from sightline.policy.tree import build_tree, rollout_path
from sightline.types import Group

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["PaddedSide", "TRLSide", "TreeSide"]

Kind = Literal["none", "one_row", "rows", "masses"]


class TreeSide:
    """What the learner does between two optimiser steps, building trees and batches included."""

    def __init__(
        self, policy: Policy, groups: Sequence[Group], kind: Kind = "none", rows: int = 1, layers: int = 0
    ) -> None:
        self.policy, self.groups, self.kind, self.rows = policy, weighted(groups), kind, rows
        count = policy.model.config.text_config.num_hidden_layers
        self.layers = range(count)[-layers:]
        self.packer = Packer(policy, 10**9)
        self.method = GRPO(GRPOConfig())
        trees = [self.packer.part(i, g).tree for i, g in enumerate(groups)]
        self.work = tree_work(trees, policy.pixels.grid, policy.pixels.processor.merge_size)

    def update(self) -> None:
        self.policy.model.zero_grad(set_to_none=True)
        for packed in self.packer.groups(self.groups):
            batch = packed.batch.with_credit([self.groups[p.group].credits for p in packed.parts])
            readout = self._readout(batch)
            outputs = self.policy.module(batch, entropies=True, readout=readout)
            loss = self.method.loss(batch, outputs).total  # type: ignore[arg-type]
            if isinstance(readout, MapReadout):
                loss = loss - torch.stack([m.sum(-1).mean() for m in readout.maps.values()]).mean()
            loss.backward()

    def _readout(self, batch: Batch) -> Any:
        """Read-outs of the last layers: maps with a loss on them, or masses on four segments."""
        if self.kind == "none":
            return None
        rows = batch.predictor[-self.rows :][None]
        is_visual = batch.ids[0] == self.policy.image_token
        if self.kind == "masses":
            place = torch.arange(len(is_visual), device=rows.device)
            parts = [is_visual & (place % 4 == 0), is_visual & (place % 4 != 0), ~is_visual & (place % 2 == 0)]
            segments = torch.stack([*parts, ~is_visual & (place % 2 != 0)])[None].float()
            return MassReadout(rows, segments, self.layers)
        return MapReadout(rows, batch.visual_at[None], self.layers)


class PaddedSide:
    """One row per Rollout, causal flash attention without a mask, log-probs of the replies only, micro-batches of rows.

    Args:
        vision: the image is encoded once per row (`per_rollout`) or once per micro-batch (`shared`).
        rows: rows of a micro-batch.
    """

    def __init__(
        self, policy: Policy, groups: Sequence[Group], vision: Literal["per_rollout", "shared"], rows: int
    ) -> None:
        self.policy, self.vision, self.rows = policy, vision, rows
        self.method = GRPO(GRPOConfig())
        self.groups = [g.at([i]) for g in weighted(groups) for i in range(len(g))]
        rollouts = [g.rollouts[0] for g in self.groups]
        lengths = [len(r.prompt_ids) + len(r.ids) for r in rollouts]
        grid = policy.pixels.grid(rollouts[0].prompt.images[0])
        merge = policy.pixels.processor.merge_size
        images = len(rollouts) if vision == "per_rollout" else -(-len(rollouts) // rows)
        self.work = padded_work(
            lengths, sum(len(r.ids) for r in rollouts), [(1, grid[0] * merge, grid[1] * merge)] * images
        )

    def update(self) -> None:
        self.policy.model.zero_grad(set_to_none=True)
        for start in range(0, len(self.groups), self.rows):
            self._part(self.groups[start : start + self.rows])

    def _part(self, groups: Sequence[Group]) -> None:
        policy, adapter = self.policy, self.policy.adapter
        trees = [build_tree([rollout_path(g.rollouts[0], policy.image_token)], policy.rules) for g in groups]
        batch = collate([[t] for t in trees], policy.pixels, pad=policy.pad, device=policy.device)
        batch = batch.with_credit([g.credits for g in groups])
        assert batch.pixels is not None
        assert batch.grids is not None
        pixels, grids, source = batch.pixels, batch.grids, batch.visual_from
        if self.vision == "per_rollout":
            pixels, grids = pixels.repeat(len(groups), 1), grids.repeat(len(groups), 1)
            source = torch.arange(len(source), device=source.device)
        features = adapter.vision(pixels, grids)
        hidden = adapter.text(batch.ids, batch.positions, None, (features, batch.visual_at, source))
        rows = hidden.reshape(-1, hidden.shape[-1])[batch.predictor]
        outputs = policy.module._score(rows, batch.target, 1.0, True)
        self.method.loss(batch, outputs).total.backward()  # type: ignore[arg-type]


class TRLSide:
    """`GRPOTrainer.compute_loss` and backward on prepared inputs, in micro-batches of rows."""

    def __init__(self, policy: Policy, groups: Sequence[Group], rows: int, folder: str) -> None:
        self.policy, self.rows = policy, rows
        self.rollouts = [r for g in groups for r in g.rollouts]
        self.advantages = [float(c.advantage[0]) for g in groups for c in g.credits]
        self.work = PaddedSide(policy, groups, "per_rollout", rows).work
        self.trainer = _trainer(policy, folder)

    def update(self) -> None:
        model = self.policy.model
        model.zero_grad(set_to_none=True)
        for start in range(0, len(self.rollouts), self.rows):
            inputs = self._inputs(slice(start, start + self.rows))
            self.trainer.compute_loss(model, inputs).backward()

    def _inputs(self, part: slice) -> dict[str, Any]:
        device, policy = self.policy.device, self.policy
        rollouts = self.rollouts[part]
        prompts = torch.from_numpy(np.stack([r.prompt_ids for r in rollouts])).to(device)
        replies = torch.from_numpy(np.stack([r.ids for r in rollouts])).to(device)
        visual = policy.pixels.batch([(rollouts[0].prompt.images[0], 0)])
        assert visual.pixels is not None
        assert visual.grids is not None
        types = (prompts == policy.image_token).int()
        return {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": replies,
            "completion_mask": torch.ones_like(replies),
            "advantages": torch.tensor(self.advantages[part], device=device),
            "old_per_token_logps": None,
            "num_items_in_batch": torch.tensor(replies.numel(), device=device),
            "pixel_values": visual.pixels.to(device).repeat(len(rollouts), 1),
            "image_grid_thw": visual.grids.to(device).repeat(len(rollouts), 1),
            "num_images": [1] * len(rollouts),
            "mm_token_type_ids": torch.cat([types, torch.zeros_like(replies, dtype=types.dtype)], dim=1),
        }


def _trainer(policy: Policy, folder: str) -> Any:
    import warnings
    from pathlib import Path

    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig as Arguments  # type: ignore[import-not-found]
    from trl import GRPOTrainer

    from sightline.policy.load import checkpoint_folder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = Arguments(
            output_dir=str(Path(folder) / "trl"), bf16=False, fp16=False, report_to=[], logging_steps=10**6,
            use_cpu=policy.device.type == "cpu", num_generations=2, per_device_train_batch_size=2,
            gradient_checkpointing=False, loss_type="dapo", epsilon=0.2, epsilon_high=0.28, beta=0.0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=policy.model, args=args, reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
            train_dataset=Dataset.from_dict({"prompt": ["a"] * 8}),
            processing_class=AutoTokenizer.from_pretrained(checkpoint_folder("embedded:qwen2_5_vl")),
        )  # fmt: skip
    # set by its training loop, which is not run here
    trainer.current_gradient_accumulation_steps = 1
    return trainer
