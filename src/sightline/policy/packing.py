"""Groups as packed batches: every pass over Rollouts, with or without gradient, is laid out here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.policy.batch import Batch, collate, microbatches
from sightline.policy.tree import Path, Segment, Tree, build_tree, rollout_path

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.types import Group, Rollout

__all__ = ["Packed", "Packer", "Part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rollouts of one Group as one token tree.

    Attributes:
        group: index of the Group in the pass.
        places: index within the Group of each Rollout, in the order of the tree's paths.
        rollouts: the Rollouts as the pass sees them, whose images may have been changed.
        tree: their tree.
    """

    group: int
    places: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    tree: Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One micro-batch: the Batch, its trees in the order of `Batch.slots`, and the row and offset of each."""

    batch: Batch
    parts: tuple[Part, ...]
    rows: tuple[int, ...]
    offsets: tuple[int, ...]


class Packer:
    """Lays Groups out for one policy.

    Args:
        policy: gives image grids, patches and ids.
        token_budget: tokens per forward pass.
        shares: merge common prefixes (`tree`); otherwise every Rollout is a sequence of its own (`padded`).
    """

    def __init__(self, policy: Policy, token_budget: int = 8192, *, shares: bool = True) -> None:
        self.policy, self.token_budget, self.shares = policy, token_budget, shares

    def part(self, number: int, group: Group) -> Part:
        """A whole Group as one tree."""
        return self.of(number, range(len(group)), group.rollouts)

    def of(self, number: int, places: Sequence[int], rollouts: Sequence[Rollout]) -> Part:
        """Some Rollouts of Group `number`, at these places of it, as one tree."""
        paths = [rollout_path(r, self.policy.image_token) for r in rollouts]
        if not self.shares:
            paths = [_alone(path, i) for i, path in enumerate(paths)]
        tree = build_tree(paths, self.policy.rules)
        return Part(group=number, places=tuple(places), rollouts=tuple(rollouts), tree=tree)

    def groups(self, groups: Sequence[Group]) -> Iterator[Packed]:
        """Micro-batches of whole Groups."""
        return self.packed([self.part(i, group) for i, group in enumerate(groups)])

    def packed(self, parts: Sequence[Part]) -> Iterator[Packed]:
        """Micro-batches of trees, rows of similar length together."""
        policy = self.policy
        packs = policy.device.type == "cuda"
        for rows in microbatches([len(p.tree) for p in parts], self.token_budget, packs=packs):
            trees = [[parts[i].tree for i in row] for row in rows]
            at = [(r, sum(len(t) for t in trees[r][:k])) for r, row in enumerate(rows) for k in range(len(row))]
            yield Packed(
                batch=collate(trees, policy.pixels, pad=policy.pad, device=policy.device),
                parts=tuple(parts[i] for row in rows for i in row),
                rows=tuple(row for row, _ in at),
                offsets=tuple(offset for _, offset in at),
            )


def _alone(path: Path, number: int) -> Path:
    return Path(tuple(Segment((number, s.key), s.ids, s.sampled, s.images) for s in path.segments), path.response)
