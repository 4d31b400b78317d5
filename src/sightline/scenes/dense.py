"""Dense supervision of the vision tower, tied to the word embeddings; its maps are thrown away after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.scenes.world import COLORS, MARKS, SHAPES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sightline.scenes.curriculum import Shown

__all__ = ["COVERED", "DenseHeads", "Labels", "labels_of"]

COVERED = 0.25
"""Share of a visual cell that an object must cover to be named there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What each visual token of an image should say; -1 where a term does not apply.

    Attributes:
        color, shape, mark: index into the lists of words; `color` has one more for the background.
        sides: x1, y1, x2, y2 of the object's box as rungs of the coordinate ladder.
    """

    color: np.ndarray = field()
    shape: np.ndarray = field()
    mark: np.ndarray = field()
    sides: np.ndarray = field()


def labels_of(shown: Shown, cells: tuple[int, int], rungs: int, *, is_whole: bool) -> Labels:
    """Labels for an image of `cells` (rows, columns) visual tokens.

    Boxes are told only where the whole picture is seen: coordinates in replies always refer to it.
    """
    rows, columns = cells
    part, n = shown.part, rows * columns
    color, shape, mark = np.full(n, len(COLORS)), np.full(n, -1), np.full(n, -1)
    sides, best = np.full((n, 4), -1), np.full(n, COVERED)
    xs = part.x1 + part.width * np.arange(columns + 1) / columns
    ys = part.y1 + part.height * np.arange(rows + 1) / rows
    for thing in shown.scene.things:
        b = thing.box
        wide = np.clip(np.minimum(xs[1:], b.x2) - np.maximum(xs[:-1], b.x1), 0, None)
        high = np.clip(np.minimum(ys[1:], b.y2) - np.maximum(ys[:-1], b.y1), 0, None)
        share = (high[:, None] * wide[None]).ravel() / ((xs[1] - xs[0]) * (ys[1] - ys[0]))
        here = share > best
        best = np.maximum(best, share)
        color[here] = list(COLORS).index(thing.color)
        shape[here] = SHAPES.index(thing.shape)
        mark[here] = list(MARKS).index(thing.mark) if shown.readable else -1
        sides[here] = np.round(np.array(b) / shown.scene.side * (rungs - 1)) if is_whole else -1
    return Labels(color=color, shape=shape, mark=mark, sides=sides)


class DenseHeads(nn.Module):
    """Cross-entropy of every visual token against the embeddings of the words that describe its cell.

    A side of a box is read through a linear map of its own, against the embeddings of the numbers.
    """

    color: Tensor
    shape: Tensor
    mark: Tensor
    numbers: Tensor

    def __init__(self, tokenizer: Tokenizer, numbers: Sequence[int], width: int) -> None:
        super().__init__()

        def words(names: Sequence[str]) -> Tensor:
            return torch.tensor([tokenizer.token_to_id("Ġ" + name) for name in names])

        background = torch.tensor([tokenizer.token_to_id(".")])
        self.register_buffer("color", torch.cat([words(list(COLORS)), background]), persistent=False)
        self.register_buffer("shape", words(SHAPES), persistent=False)
        self.register_buffer("mark", words(list(MARKS)), persistent=False)
        self.register_buffer("numbers", torch.tensor(list(numbers)), persistent=False)
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(
        self,
        features: Float[Tensor, "visual width"],
        words: Float[Tensor, "vocab width"],
        labels: Sequence[Labels],
        smoothed: Float[Tensor, "rungs rungs"],
    ) -> dict[str, Tensor]:
        """Losses by term.

        Args:
            features: visual tokens of all images, in the order of `labels`.
            words: the word embeddings.
            labels: one entry per image.
            smoothed: row v is the distribution to be learned for rung v.
        """
        losses: dict[str, Tensor] = {}
        for name, ids in (("color", self.color), ("shape", self.shape), ("mark", self.mark)):
            gold = torch.from_numpy(np.concatenate([getattr(one, name) for one in labels]))
            at = gold >= 0
            losses[name] = F.cross_entropy(features[at] @ words[ids].T, gold[at])
        sides = torch.from_numpy(np.concatenate([one.sides for one in labels]))
        at = sides[:, 0] >= 0
        numbers = words[self.numbers]
        per_side = [
            -(smoothed[sides[at, k]] * F.log_softmax(head(features[at]) @ numbers.T, dim=-1)).sum(-1).mean()
            for k, head in enumerate(self.maps)
        ]
        losses["sides"] = torch.stack(per_side).mean()
        return losses
