"""The token tree: all Rollouts of one Record as one prefix tree, each shared token stored and computed once.

A Rollout is a path of segments: image prefix, rest of the prompt, then one segment per branch level. Segments merge
only where the path declares it (same record and images, same stream and prompt, same branch), never because tokens
happen to be equal. The tree is laid out depth first; see `policy/attention.py` for the mask rule that follows.

Positions are those of each root-to-leaf path (M-RoPE: an image of r x c visual tokens starting at position p takes
(p, p + row, p + column), and the text after it continues at p + max(r, c)).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from sightline.types import ImageRef

if TYPE_CHECKING:
    from sightline.types import Rollout

__all__ = ["Path", "Segment", "Tree", "TreeRules", "build_tree", "image_boundary", "mrope_positions", "rollout_path"]


@dataclass(frozen=True, slots=True)
class TreeRules:
    """What the tree must know of a model: the id of one visual token, and each image's (rows, columns) of them."""

    image_token: int
    grid: Callable[[ImageRef], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a path. Two paths share it iff their keys agree up to and including this one."""

    key: Hashable
    ids: Int[np.ndarray, "tokens"]
    sampled: Bool[np.ndarray, "tokens"]
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Path:
    """One root-to-leaf sequence; `response` segments are those that belong to `Rollout.ids`."""

    segments: tuple[Segment, ...]
    response: int = 2


@dataclass(slots=True)
class _Node:
    segment: Segment
    positions: Int[np.ndarray, "3 tokens"]
    following: int
    children: dict[Hashable, _Node] = field(default_factory=dict)
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A depth-first layout of T tokens.

    Attributes:
        ids: token ids, (T,).
        positions: M-RoPE positions (temporal, height, width), (3, T).
        end: one past the last descendant of each token, (T,).
        previous: the token before each one on its path, -1 at a root, (T,).
        sampled: tokens that carry a log-probability, (T,).
        images: images in layout order with the index of their first visual token.
        where: for each path, the layout index of every response token.
    """

    ids: Int[np.ndarray, "tokens"]
    positions: Int[np.ndarray, "3 tokens"]
    end: Int[np.ndarray, "tokens"]
    previous: Int[np.ndarray, "tokens"]
    sampled: Bool[np.ndarray, "tokens"]
    images: tuple[tuple[ImageRef, int], ...]
    where: tuple[Int[np.ndarray, "_"], ...]

    def __len__(self) -> int:
        return len(self.ids)


def mrope_positions(
    ids: Int[np.ndarray, "tokens"], grids: Sequence[tuple[int, int]], image_token: int, start: int = 0
) -> tuple[Int[np.ndarray, "3 tokens"], int]:
    """M-RoPE positions of a segment that begins at position `start`, and the position that follows it.

    Args:
        ids: token ids, image placeholders expanded.
        grids: rows and columns of visual tokens of each image in the segment, in order.
        image_token: id of the placeholder.
        start: first position.

    Raises:
        ValueError: the placeholders do not match the grids (a corrupted sequence, never user input).
    """
    is_image = ids == image_token
    if int(is_image.sum()) != sum(r * c for r, c in grids):
        raise ValueError(f"{int(is_image.sum())} image tokens for images of {list(grids)} visual tokens")
    positions = np.empty((3, len(ids)), np.int64)
    at, index = start, 0
    starts = np.flatnonzero(is_image)
    for rows, columns in grids:
        first = int(starts[starts >= index][0])
        positions[:, index:first] = at + np.arange(first - index)
        at += first - index
        stop = first + rows * columns
        positions[0, first:stop] = at
        positions[1, first:stop] = at + np.repeat(np.arange(rows), columns)
        positions[2, first:stop] = at + np.tile(np.arange(columns), rows)
        at += max(rows, columns)
        index = stop
    positions[:, index:] = at + np.arange(len(ids) - index)
    return positions, at + len(ids) - index


def image_boundary(ids: Int[np.ndarray, "tokens"], image_token: int) -> int:
    """Index after the closing marker of the last image of a prompt: up to there streams of a record agree."""
    where = np.flatnonzero(ids == image_token)
    return int(where[-1]) + 2 if len(where) else 0


def rollout_path(rollout: Rollout, image_token: int) -> Path:
    """The declared segments of a Rollout: image prefix, prompt, then one segment per branch level."""
    prompt, ids = rollout.prompt_ids, rollout.ids
    cut = image_boundary(prompt, image_token)
    images = rollout.prompt.images
    head, tail = prompt[:cut], prompt[cut:]
    segments = [
        Segment(
            ("images", rollout.record.id, head.tobytes(), tuple(i.digest for i in images)), head, _none(head), images
        ),
        Segment(("prompt", rollout.stream, tail.tobytes()), tail, _none(tail)),
    ]
    bounds = [0, *rollout.forks, len(ids)]
    used = 0
    for level, (a, b) in enumerate(pairwise(bounds), 1):
        depth = level if level < len(bounds) - 1 else len(rollout.branch)
        count = _images_within(rollout, a, b)
        segments.append(
            Segment(
                ("branch", rollout.branch[:depth]), ids[a:b], rollout.sampled[a:b], rollout.images[used : used + count]
            )
        )
        used += count
    return Path(tuple(segments))


def _none(ids: np.ndarray) -> np.ndarray:
    return np.zeros(len(ids), bool)


def _images_within(rollout: Rollout, start: int, stop: int) -> int:
    """Images that later turns add between two offsets of `rollout.ids`."""
    return sum(len(turn.images) for turn in rollout.turns if start <= turn.span.start < stop)


def build_tree(paths: Iterable[Path], rules: TreeRules) -> Tree:
    """Merges paths at their declared keys and lays the tree out depth first.

    Raises:
        ValueError: two paths declare the same segment with different tokens.
    """
    roots: dict[Hashable, _Node] = {}
    chains: list[tuple[list[_Node], int]] = []
    for path in paths:
        level, position, chain = roots, 0, []
        for segment in path.segments:
            node = level.get(segment.key)
            if node is None:
                grids = [rules.grid(image) for image in segment.images]
                positions, following = mrope_positions(segment.ids, grids, rules.image_token, position)
                node = level[segment.key] = _Node(segment, positions, following)
            elif not np.array_equal(node.segment.ids, segment.ids):
                raise ValueError(f"paths declare segment {segment.key!r} as shared but their tokens differ")
            chain.append(node)
            level, position = node.children, node.following
        chains.append((chain, path.response))
    return _layout(roots, chains, rules)


def _layout(roots: dict[Hashable, _Node], chains: list[tuple[list[_Node], int]], rules: TreeRules) -> Tree:
    order: list[_Node] = []
    ends: list[np.ndarray] = []
    previous: list[np.ndarray] = []
    total = 0

    def visit(node: _Node, parent_last: int) -> None:
        nonlocal total
        size = len(node.segment.ids)
        node.start = total
        order.append(node)
        slot = len(ends)
        ends.append(np.empty(0))
        link = np.arange(total - 1, total + size - 1)
        if size:
            link[0] = parent_last
        previous.append(link)
        total += size
        last = total - 1 if size else parent_last
        for child in node.children.values():
            visit(child, last)
        ends[slot] = np.full(size, total, np.int64)

    for root in roots.values():
        visit(root, -1)
    images: list[tuple[ImageRef, int]] = []
    for node in order:
        offset = node.start
        starts = np.flatnonzero(node.segment.ids == rules.image_token)
        index = 0
        for image in node.segment.images:
            rows, columns = rules.grid(image)
            images.append((image, offset + int(starts[index])))
            index += rows * columns
    where = tuple(
        np.concatenate(
            [np.arange(n.start, n.start + len(n.segment.ids)) for n in chain[first:]] or [np.empty(0, np.int64)]
        )
        for chain, first in chains
    )
    return Tree(
        ids=np.concatenate([n.segment.ids for n in order]).astype(np.int64),
        positions=np.concatenate([n.positions for n in order], axis=1),
        end=np.concatenate(ends).astype(np.int64),
        previous=np.concatenate(previous).astype(np.int64),
        sampled=np.concatenate([n.segment.sampled for n in order]).astype(bool),
        images=tuple(images),
        where=where,
    )
