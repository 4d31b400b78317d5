"""Cold start of the embedded policy: the vision tower first, then replies and dense labels together.

What made it work from scratch in minutes, in order of weight: dense labels tied to the word embeddings; Fourier
features as the first values of number words and of the table of positions; Muon for hidden matrices; several questions
behind one picture (the library's token tree).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.policy.attention import tree_inputs
from sightline.policy.batch import Batch, collate
from sightline.policy.tree import build_tree
from sightline.scenes.curriculum import Curriculum, Example, Shown
from sightline.scenes.dense import DenseHeads, labels_of
from sightline.scenes.model import lattice
from sightline.scenes.questions import picture
from sightline.scenes.tokenizer import build_tokenizer, number_ids
from sightline.scenes.world import scene_at
from sightline.types import Box

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.policy.tree import Tree

__all__ = ["SCHEDULES", "ColdStart", "Schedule", "Trained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Sizes and rates of both stages.

    Attributes:
        dense_weight: of the dense labels beside the replies; `sides_weight`: of boxes among the dense labels.
        box_weight: of the four numbers of a box beside the other tokens of a reply; boxes are what comes last.
        smoothing: width of the targets of a box's sides, in pixels of the view.
    """

    vision_steps: int = 280
    vision_images: int = 48
    vision_rate: float = 5e-3
    steps: int = 800
    pictures: int = 16
    rate: float = 4e-3
    warm_up: int = 100
    dense_weight: float = 0.3
    sides_weight: float = 1.0
    box_weight: float = 1.0
    smoothing: float = 0.7


SCHEDULES: Mapping[str, Schedule] = {
    "qwen3_vl": Schedule(),
    "qwen2_5_vl": Schedule(vision_steps=360, steps=1600, sides_weight=1.5, box_weight=4.0),
}
"""The schedule of each family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One finished step; `cpu_seconds` counts this process since the start of its stage."""

    stage: str
    step: int
    losses: dict[str, float]
    cpu_seconds: float


@dataclass(kw_only=True)
class ColdStart:
    """Trains `policy` in place; iterate over `run()`, one item per step."""

    policy: Policy
    curriculum: Curriculum
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        tokenizer = build_tokenizer()
        table = number_ids(tokenizer)
        ladder = [table[v] for v in lattice(self.curriculum.family)]
        words = self._words
        torch.manual_seed(self.curriculum.seed)
        self.heads = DenseHeads(tokenizer, ladder, words.shape[1])
        self.ladder = torch.tensor(ladder)
        self.rung = torch.full((words.shape[0],), -1)
        self.rung[self.ladder] = torch.arange(len(ladder))
        self.openers = torch.tensor([tokenizer.token_to_id(t) for t in ("[", ",", "Ġ[")])
        self.smoothed = _smoothed(len(ladder), self.schedule.smoothing)

    @property
    def _words(self) -> Tensor:
        return self.policy.model.get_input_embeddings().weight

    def run(self) -> Iterator[Trained]:
        """Both stages, one item per step."""
        self.policy.model.train()
        yield from self._vision()
        yield from self._replies()

    def _vision(self) -> Iterator[Trained]:
        plan, seed = self.schedule, self.curriculum.seed
        tower = self.policy.model.model.visual
        parameters = [*tower.parameters(), *self.heads.parameters(), self._words]
        optimizer = torch.optim.AdamW(parameters, lr=plan.vision_rate, betas=(0.9, 0.98), weight_decay=0.01)
        start = time.process_time()
        for step in range(plan.vision_steps):
            _set_rate([optimizer], plan.vision_rate * min(1.0, (step + 1) / 20))
            numbers = range(step * plan.vision_images, (step + 1) * plan.vision_images)
            scenes = [scene_at("easy", "train", seed + 1, i, self.curriculum.background) for i in numbers]
            images = [picture(scene) for scene in scenes]
            shown = {
                i.digest: Shown(scene=s, part=Box(0, 0, s.side, s.side)) for i, s in zip(images, scenes, strict=True)
            }
            visual = self.policy.pixels.batch([(image, 0) for image in images])
            assert visual.pixels is not None
            assert visual.grids is not None
            features = self.policy.adapter.vision(visual.pixels, visual.grids).features
            losses = self._dense(features, visual.grids, list(shown.values()))
            losses["dense"].backward()
            nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield _trained("vision", step, losses, start)

    def _replies(self) -> Iterator[Trained]:
        plan = self.schedule
        optimizers = self._optimizers()
        parameters = [*self.policy.model.parameters(), *self.heads.parameters()]
        start = time.process_time()
        for step in range(plan.steps):
            factor = min(1.0, (step + 1) / plan.warm_up) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            _set_rate(optimizers, plan.rate * max(factor, 0.02))
            numbers = range(step * plan.pictures, (step + 1) * plan.pictures)
            losses = self._losses([self.curriculum.example(i, self.policy) for i in numbers])
            (losses["reply"] + plan.dense_weight * losses["dense"]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            yield _trained("replies", step, losses, start)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices between layers, AdamW for embeddings, norms, biases and the dense heads."""
        rate = self.schedule.rate
        named = list(self.policy.model.named_parameters())
        hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        chosen = {id(p) for p in hidden}
        rest = [p for p in [*(p for _, p in named), *self.heads.parameters()] if id(p) not in chosen]
        return [
            torch.optim.Muon(hidden, lr=rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]

    def _losses(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        adapter = self.policy.adapter
        trees = [build_tree(example.paths, self.policy.rules) for example in examples]
        batch = collate([[tree] for tree in trees], self.policy.pixels, pad=self.policy.pad)
        assert batch.pixels is not None
        assert batch.grids is not None
        vision = adapter.vision(batch.pixels, batch.grids)
        visual = (vision, batch.visual_at, batch.visual_from)
        mask, rule = tree_inputs(batch.end, vision.features.dtype)
        hidden = adapter.text(batch.ids, batch.positions, mask, visual, **rule)
        logits = adapter.logits(hidden.reshape(-1, hidden.shape[-1])[batch.predictor])
        dense = self._dense(vision.features, batch.grids, _shown(examples, trees))
        return {"reply": self._reply_loss(logits, batch), **dense}

    def _dense(self, features: Tensor, grids: Tensor, shown: Sequence[Shown]) -> dict[str, Tensor]:
        labels = [
            labels_of(one, (h // 2, w // 2), len(self.ladder), is_whole=one.part.width == one.scene.side)
            for one, (_, h, w) in zip(shown, grids.tolist(), strict=True)
        ]
        losses = self.heads(features, self._words, labels, self.smoothed)
        total = losses["color"] + losses["shape"] + losses["mark"] + self.schedule.sides_weight * losses["sides"]
        return {"dense": total, **losses}

    def _reply_loss(self, logits: Float[Tensor, "scored vocab"], batch: Batch) -> Tensor:
        """Mean cross-entropy of the replies; the four numbers of a box have smoothed targets."""
        logp = F.log_softmax(logits, dim=-1)
        rung = self.rung[batch.target]
        soft = (rung >= 0) & torch.isin(batch.ids.flatten()[batch.predictor], self.openers)
        plain = -logp[~soft].gather(1, batch.target[~soft, None]).sum()
        sides = -(self.smoothed[rung[soft]] * logp[soft][:, self.ladder]).sum()
        weight = self.schedule.box_weight
        return (plain + weight * sides) / (len(batch.target) + (weight - 1) * soft.sum())


def _shown(examples: Sequence[Example], trees: Sequence[Tree]) -> list[Shown]:
    """What the distinct images of a batch show, in the order in which collation meets them."""
    found: dict[str, Shown] = {}
    for example, tree in zip(examples, trees, strict=True):
        for image, _ in tree.images:
            found.setdefault(image.digest, example.shown[image.digest])
    return list(found.values())


def _smoothed(rungs: int, sigma: float) -> Float[Tensor, "rungs rungs"]:
    """Row v: a discrete Gaussian of width `sigma` around v."""
    if sigma <= 0:
        return torch.eye(rungs)
    v = torch.arange(rungs, dtype=torch.float32)
    return torch.softmax(-((v[:, None] - v[None]) ** 2) / (2 * sigma**2), dim=1)


def _set_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def _trained(stage: str, step: int, losses: dict[str, Tensor], start: float) -> Trained:
    values = {name: loss.item() for name, loss in losses.items()}
    return Trained(stage=stage, step=step + 1, losses=values, cpu_seconds=time.process_time() - start)
