"""TRL's GRPOTrainer as a side: its own loss method on inputs as its own preparation lays them out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sides import reference_logprobs
from sightline.policy.load import Policy
from sightline.types import Group

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TRLSide"]


class TRLSide:
    """`GRPOTrainer.compute_loss` and backward, with the trainer's defaults except where equality asks otherwise.

    The loss is TRL's default normalisation (mean over the tokens of the batch), clip range 0.2 / 0.28, and `delta`
    equal to our dual clip. The policy gives token ids and image patches; weights come from the same folder.
    """

    def __init__(self, folder: Path, policy: Policy, groups: Sequence[Group], kl: float, checkpointing: bool) -> None:
        self.trainer = _trainer(folder, policy, kl, checkpointing)
        self.model: Any = self.trainer.model
        self.model.train()
        self.inputs = _inputs(policy, groups, kl)

    def update(self) -> float:
        self.model.zero_grad(set_to_none=True)
        loss = self.trainer.compute_loss(self.model, self.inputs)
        loss.backward()
        return float(loss.detach())


def _trainer(folder: Path, policy: Policy, kl: float, checkpointing: bool) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

        model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        args = GRPOConfig(
            output_dir=str(folder / "trl"), use_cpu=True, bf16=False, fp16=False, report_to=[], logging_steps=10**6,
            num_generations=8, per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=1,
            gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
            loss_type="dapo", epsilon=0.2, epsilon_high=0.28, delta=3.0, temperature=1.0,
            # our KL term is not weighted by the importance ratio, which is its default
            beta=kl, use_bias_correction_kl=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, args=args, reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
            train_dataset=Dataset.from_dict({"prompt": ["a"] * 8}), processing_class=policy.tokenizer,
        )  # fmt: skip
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    # set by its training loop, which is not run here
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def _inputs(policy: Policy, groups: Sequence[Group], kl: float) -> dict[str, Any]:
    """The dictionary its preparation hands to the loss, one row and one copy of the image per Rollout."""
    rollouts = [r for g in groups for r in g.rollouts]
    prompts = torch.from_numpy(np.stack([r.prompt_ids for r in rollouts]))
    replies = torch.from_numpy(np.stack([r.ids for r in rollouts]))
    images = [policy.pixels.batch([(i, 0) for i in r.prompt.images]) for r in rollouts]
    types = (prompts == policy.image_token).int()
    old = [m.logprobs for g in groups for m in g.measurements]
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": replies,
        "completion_mask": torch.ones_like(replies),
        "advantages": torch.tensor([float(c.advantage[0]) for g in groups for c in g.credits]),
        "old_per_token_logps": torch.from_numpy(np.stack(old)),  # type: ignore[arg-type]
        "num_items_in_batch": torch.tensor(replies.numel()),
        "pixel_values": torch.cat([v.pixels for v in images if v.pixels is not None]),
        "image_grid_thw": torch.cat([v.grids for v in images if v.grids is not None]),
        "num_images": [1] * len(rollouts),
        "mm_token_type_ids": torch.cat([types, torch.zeros_like(replies, dtype=types.dtype)], dim=1),
    }
    if kl:
        rows = [row for group in reference_logprobs(groups) for row in group]
        inputs["ref_per_token_logps"] = torch.from_numpy(np.stack(rows))
    return inputs
