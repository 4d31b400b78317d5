"""Groups -> scored groups -> groups with credit. Concurrent over groups, deterministic given the judge's verdicts.

Streams that read the archive are scored last: first everybody else, then the references that came out of it enter the
archive in the order of the groups, then the readers see the best of history and the present step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sightline.archive import Archive, ArchiveConfig, record_key
from sightline.train.distributed import World
from sightline.train.exchange import all_groups, share_verdicts, with_credits
from sightline.types import Credit, Group, Reference, Score, Scores

if TYPE_CHECKING:
    from sightline.methods.base import Context, Method

__all__ = ["archive_for", "credit", "score"]

# Scoring waits for judges, not for the processor, so threads outnumber cores.
WORKERS = 16


def score(
    method: Method,
    groups: Sequence[Group],
    context: Context,
    *,
    workers: int = WORKERS,
    world: World | None = None,
) -> list[Group]:
    """Scores every group in two phases and fills the archive in between.

    Args:
        method: decides the terms.
        groups: groups with readings, and measurements where the method asked for them.
        context: judge, archive (it is written here, and only here), frame, step.
        workers: groups scored at the same time.
        world: the processes; each scores its own groups, and the archives of all of them stay the same.

    Returns:
        The groups in the given order with `scores`; `reference` is what the readers of the archive saw.

    Raises:
        ValueError: the method returned another number of Scores than there are Rollouts.
    """
    world = world or World()
    context.archive.advance(context.step)
    readers = [{s.name for s in method.streams(g.record) if s.reads_archive} for g in groups]
    first = [_split(g, names, are_readers=False) for g, names in zip(groups, readers, strict=True)]
    second = [_split(g, names, are_readers=True) for g, names in zip(groups, readers, strict=True)]
    with _mapper(workers) as run:
        with world.agreeing():
            feeding = run(
                lambda item: _scored(method, item, context), [g.at(at) for g, at in zip(groups, first, strict=True)]
            )
            found = [tuple(method.references(group)) if len(group) else () for group in feeding]
        keys = [record_key(g.record) if at else None for g, at in zip(groups, second, strict=True)]
        best = _through_archive(context, world.merged(list(zip(found, keys, strict=True))))
        waiting = [
            replace(g.at(at), scored=fed, reference=best[key]) if key is not None else g.at(at)
            for g, at, fed, key in zip(groups, second, feeding, keys, strict=True)
        ]
        with world.agreeing():
            reading = run(lambda item: _scored(method, item, context), waiting)
    share_verdicts(world, context.judge)
    parts = zip(groups, first, feeding, second, reading, strict=True)
    return [
        _merged(g, dict(zip([*a, *b], [*fed.scores, *read.scores], strict=True)), read) for g, a, fed, b, read in parts
    ]


def _through_archive(
    context: Context, offers: Sequence[tuple[Sequence[Reference], str | None]]
) -> dict[str, Reference | None]:
    """Offers what came out of each group, in order, then reads what the readers of the archive ask for."""
    for references, _ in offers:
        for reference in references:
            context.archive.offer(replace(reference, step=context.step))
    return {key: context.archive.read(key) for _, key in offers if key is not None}


def credit(
    method: Method, groups: Sequence[Group], *, mask_truncated: bool = False, world: World | None = None
) -> list[Group]:
    """Adds credit to scored groups.

    Args:
        method: decides advantage and weight per token.
        groups: scored groups.
        mask_truncated: Rollouts that the token limit cut leave their group and carry no loss; a masked term
            `truncated` says so.
        world: the processes; each gives credit to its own groups and learns of all.

    Returns:
        The groups of all processes.

    Raises:
        ValueError: the method returned another number of Credits than there are Rollouts, or of the wrong length.
    """
    scored = [_without_truncated(group) for group in groups] if mask_truncated else groups
    world = world or World()
    peers = tuple(all_groups(world, scored))
    with world.agreeing():
        own = [replace(g, credits=_checked(method, g, method.credit(replace(g, peers=peers)))) for g in scored]
    return own if world.size == 1 else with_credits(world, peers, own)


def archive_for(method: Method) -> Archive:
    """An empty archive with the rules that the method's config holds under `archive`."""
    config = getattr(method.config, "archive", None)
    return Archive(config if isinstance(config, ArchiveConfig) else None)


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[[Callable[[Group], Group], list[Group]], list[Group]]]:
    """A `map` over groups on a bounded pool, or in this thread if one worker is enough."""
    if workers <= 1:
        yield lambda work, items: [work(item) for item in items]
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="score") as pool:
        yield lambda work, items: list(pool.map(work, items))


def _split(group: Group, names: set[str], *, are_readers: bool) -> list[int]:
    return [i for i, rollout in enumerate(group.rollouts) if (rollout.stream in names) == are_readers]


def _scored(method: Method, group: Group, context: Context) -> Group:
    if not len(group):
        return group
    scores = tuple(method.score(group, context))
    if len(scores) != len(group):
        raise ValueError(f"{type(method).__name__}.score returned {len(scores)} scores for {len(group)} rollouts")
    return replace(group, scores=scores)


def _merged(group: Group, scores: dict[int, Scores], readers: Group) -> Group:
    reference = readers.reference if len(readers) else group.reference
    return replace(group, scores=tuple(scores[i] for i in range(len(group))), reference=reference)


def _without_truncated(group: Group) -> Group:
    masked = Score(0.0, "cut by the token limit", masked=True)
    scores = tuple(
        replace(s, terms={**s.terms, "truncated": masked}) if rollout.finish == "length" else s
        for rollout, s in zip(group.rollouts, group.scores, strict=True)
    )
    return replace(group, scores=scores)


def _checked(method: Method, group: Group, credits: Sequence[Credit]) -> tuple[Credit, ...]:
    name = type(method).__name__
    if len(credits) != len(group):
        raise ValueError(f"{name}.credit returned {len(credits)} credits for {len(group)} rollouts")
    for rollout, given in zip(group.rollouts, credits, strict=True):
        if not len(given.advantage) == len(given.weight) == len(rollout.ids):
            raise ValueError(f"{name}.credit: a credit needs one advantage and one weight per token of the rollout")
    return tuple(credits)
