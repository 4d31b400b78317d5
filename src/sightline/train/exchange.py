"""What the processes of a run tell each other about a step, so that each knows all of it.

Credit, dynamic sampling and metrics need every Group of the step. Each process keeps its own Groups whole and knows the
others' as `Elsewhere`: tokens, readings, scores and credit, but neither pixels nor maps.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sightline.train.distributed import World
from sightline.types import Group, ImageRef, Measurement, Size

if TYPE_CHECKING:
    from sightline.answers.judge import Judge

__all__ = ["Elsewhere", "all_groups", "brought", "share_verdicts", "with_credits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere(Group):
    """A Group that another process sampled, scores and trains on: without pixels and attention maps."""


class _Light(pickle.Pickler):
    """Leaves out what is large and needed by nobody but the owner."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, ImageRef) and value.pixels is not None:
            return _image, (value.size, value.digest, value.path)
        if isinstance(value, Measurement) and value.maps:
            return _measurement, (value.logprobs, value.entropies, dict(value.probes), dict(value.images))
        return NotImplemented


def _image(size: Size, digest: str, path: str | None) -> ImageRef:
    return ImageRef(size=size, digest=digest, path=path)


def _measurement(logprobs: Any, entropies: Any, probes: Any, images: Any) -> Measurement:
    return Measurement(logprobs=logprobs, entropies=entropies, probes=probes, images=images)


def all_groups(world: World, own: Sequence[Group]) -> list[Group]:
    """The Groups of all processes in the order of the step's records; those of this one as they are."""
    if world.size == 1:
        return list(own)
    buffer = io.BytesIO()
    _Light(buffer, pickle.HIGHEST_PROTOCOL).dump(list(own))
    parts: list[list[Group]] = [
        list(own) if rank == world.rank else [_elsewhere(g) for g in pickle.loads(part)]
        for rank, part in enumerate(world.gather(buffer.getvalue()))
    ]
    return [parts[i % world.size][i // world.size] for i in range(sum(map(len, parts)))]


def _elsewhere(group: Group) -> Elsewhere:
    return Elsewhere(**{f.name: getattr(group, f.name) for f in fields(Group)})


def brought(world: World, groups: Sequence[Group], count: int) -> list[Group]:
    """All Groups, the first `count` of them with all that their owners know, for the report."""
    if world.size == 1:
        return list(groups)
    found: dict[int, Group] = {}
    for own in world.gather({i: g for i, g in enumerate(groups[:count]) if not isinstance(g, Elsewhere)}):
        found |= own
    return [found.get(i, group) for i, group in enumerate(groups)]


def share_verdicts(world: World, judge: Judge) -> None:
    """What a judge was asked in one process it is not asked again in another; the main process writes it down."""
    cache = getattr(judge, "cache", None)
    if world.size > 1 and cache is not None:
        for rank, verdicts in enumerate(world.gather(cache.news())):
            if rank != world.rank:
                cache.learn(verdicts)


def with_credits(world: World, groups: Sequence[Group], own: Sequence[Group]) -> list[Group]:
    """All Groups with the credit that their owners gave.

    Args:
        world: the processes.
        groups: what `all_groups` returned.
        own: this process's Groups, with credit.
    """
    credits = world.merged([group.credits for group in own])
    mine = iter(own)
    return [
        replace(group, credits=given) if isinstance(group, Elsewhere) else next(mine)
        for group, given in zip(groups, credits, strict=True)
    ]
