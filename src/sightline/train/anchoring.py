"""Anchoring: a supervised stage in which the attention row of a token learns the region of each record.

`L = w_attn mean over records of L_anchor + w_lm L_lm + w_vis L_vis + w_kl KL_start`, with L_anchor from
`objectives/anchoring.py` and L_lm the mean over the tokens of a reply: a right one that the start policy gave behind
the same token (so that what is said stays while attention moves), the record's own, or none. Without a language term
the forward ends at the highest supervised layer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sightline.objectives import anchor_losses, k3, visual_losses
from sightline.policy.batch import Batch, collate, microbatches
from sightline.policy.focus import row_masks, token_id
from sightline.policy.readout import MapReadout
from sightline.policy.tree import build_tree, rollout_path
from sightline.probes.heads import Chosen, choose_heads
from sightline.train.lessons import Lesson, lessons_of
from sightline.types import Group, StepStats

if TYPE_CHECKING:
    from sightline.credit.config import AnchorConfig, FocusConfig
    from sightline.policy.load import Policy
    from sightline.train.run import Run

__all__ = ["LessonBatch", "anchor", "anchor_loss", "lesson_batches", "with_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonBatch:
    """A batch and its supervised rows. Axes: `rows` of the batch, `lessons` of a row, `count` tokens of a lesson.

    Attributes:
        queries: (rows, lessons x count); keys: (rows, visual); both -1 where unused.
        target, cover: (rows, lessons, visual), 0 outside a lesson's own images, which are `counted`.
        used: (rows, lessons), slots that hold a lesson.
    """

    batch: Batch
    queries: Tensor
    keys: Tensor
    target: Tensor
    cover: Tensor
    counted: Tensor
    used: Tensor


def anchor(run: Run) -> tuple[list[Group], StepStats]:
    """One step of the stage. Records without regions, or with too large ones, are left out and counted."""
    started = time.perf_counter()
    config, focus = run.stage.anchor, run.stage.focus
    assert config is not None
    assert focus is not None
    found = lessons_of(run, run.world.part(run.data.next()), config, focus)
    batches = lesson_batches(run.policy, found.lessons, run.recipe.train.token_budget)
    seconds, metrics = {"distil": time.perf_counter() - started}, run.world.total(found.counts)
    if run.world.any(bool(batches))[0]:
        figures: dict[str, float] = {}
        (has_text,) = run.world.any(any(_has_text(b.batch, config) for b in batches))
        losses = _losses(run, batches, config, figures, has_text)
        if run.step - run.stage_start < config.row_steps:
            with _row_only(run.policy, focus) as masks:
                done = run.learner.descend(
                    losses, run.step, lr=config.row_lr, decays=False, masks=masks, is_partial=not has_text
                )
        else:
            with _frozen(run.policy, "visual" if config.freeze_vision else None):
                done = run.learner.descend(losses, run.step, is_partial=not has_text)
        metrics |= {**run.world.total(figures), **done}
        seconds |= run.learner.spent()
    return [], StepStats(step=run.step, metrics=metrics, seconds=seconds)


def lesson_batches(policy: Policy, lessons: Sequence[Lesson], token_budget: int) -> list[LessonBatch]:
    """Micro-batches of lessons, one tree each."""
    trees = [build_tree([rollout_path(lesson.rollout, policy.image_token)], policy.rules) for lesson in lessons]
    found = []
    for rows in microbatches([len(t) for t in trees], token_budget, packs=policy.device.type == "cuda"):
        batch = collate(
            [[trees[i] for i in row] for row in rows], policy.pixels, pad=policy.pad, device=policy.device
        )  # fmt: skip
        found.append(with_rows(batch, [[lessons[i] for i in row] for row in rows]))
    return found


def anchor_loss(
    policy: Policy,
    lessons: LessonBatch,
    config: AnchorConfig,
    *,
    records: int,
    tokens: int,
    start: Policy | None = None,
    has_text: bool | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The part of one batch in the loss of a step with so many lessons and reply tokens, and its figures.

    Args:
        policy: whose attention is supervised.
        lessons: the batch.
        config: layers, normalisation, weights.
        records, tokens: of the whole optimiser step.
        start: the policy of `w_kl`.
        has_text: whether log-probs are computed, where batches without any must keep step with others.
    """
    batch, chosen = lessons.batch, choose_heads(policy, config.layers, config.heads, config.heads_file)
    has_text = _has_text(batch, config) if has_text is None else has_text
    readout = MapReadout(lessons.queries, lessons.keys, chosen.layers, chosen.heads)
    outputs = policy.module(batch, readout=readout, stops_at=None if has_text else max(chosen.layers))
    maps = _by_lesson(readout, lessons)
    used, cover = lessons.used, lessons.cover[lessons.used]
    counted = lessons.counted[used]
    if config.sink_exclude:
        counted = counted & ~(_sinks(policy, lessons, chosen)[used] & (cover == 0))
    anchoring = anchor_losses(
        maps, lessons.target[used], counted, loss=config.loss, normalise=config.normalise, region=cover > 0
    )
    visual = visual_losses(maps, counted)
    loss = (config.w_attn * anchoring + config.w_vis * visual).sum() / records
    figures = {"anchor/loss": anchoring, "anchor/visual_loss": visual, **_masses(maps.detach(), cover, counted)}
    parts = {name: float(value.detach().sum()) / records for name, value in figures.items()}
    if has_text:
        language = -outputs.logprobs.sum() / tokens
        loss = loss + config.w_lm * language
        parts["supervised/loss"] = float(language.detach())
        if config.w_kl and start is not None:
            with torch.no_grad():
                before = start.module(batch).logprobs
            drift = k3(outputs.logprobs, before).sum() / tokens
            loss = loss + config.w_kl * drift
            parts["anchor/kl"] = float(drift.detach())
    return loss, parts


def _losses(
    run: Run, batches: Sequence[LessonBatch], config: AnchorConfig, metrics: dict[str, float], has_text: bool
) -> Iterator[Tensor]:
    """The loss of each micro-batch, one after the other; their figures add up in `metrics`.

    With sharded weights, text in one of them (`has_text`) makes all processes compute log-probs in each.
    """
    counts = {"records": sum(int(b.used.sum()) for b in batches), "tokens": sum(len(b.batch.target) for b in batches)}
    count = {name: int(number) for name, number in run.world.total(counts).items()}
    start, lockstep = run.start_policy() if config.w_kl else None, run.learner.lockstep
    agreed = has_text if lockstep.is_sharded else None
    for lessons, batch in lockstep.over(batches, lambda lessons: lessons.batch):
        if lessons is None:
            yield _idle(run.policy, batch, config, start=start, has_text=has_text)
            continue
        given = replace(lessons, batch=batch)
        loss, parts = anchor_loss(run.policy, given, config, **count, start=start, has_text=agreed)
        for name, value in parts.items():
            metrics[name] = metrics.get(name, 0.0) + value
        if has_text:  # else the head and the upper layers are not computed, and do not count
            run.learner.usage.add(batch)
        yield loss


def _has_text(batch: Batch, config: AnchorConfig) -> bool:
    return len(batch.target) > 0 and (config.w_lm > 0 or config.w_kl > 0)


def _idle(policy: Policy, batch: Batch, config: AnchorConfig, *, start: Policy | None, has_text: bool) -> Tensor:
    """The forwards of `anchor_loss` on a batch without lessons: nothing, but the other processes wait for it."""
    chosen = choose_heads(policy, config.layers, config.heads, config.heads_file)
    highest, device = max(chosen.layers), batch.ids.device
    readout = MapReadout(
        torch.ones(1, 1, dtype=torch.long, device=device), torch.zeros(1, 1, dtype=torch.long, device=device),
        chosen.layers, chosen.heads,
    )  # fmt: skip
    outputs = policy.module(batch, readout=readout, stops_at=None if has_text else highest)
    with torch.no_grad():
        if config.sink_exclude:
            policy.module(batch, stops_at=highest)
        if has_text and config.w_kl and start is not None:
            start.module(batch)
    return 0.0 * (sum(found.sum() for found in readout.maps.values()) + outputs.logprobs.sum())


def with_rows(batch: Batch, rows: Sequence[Sequence[Lesson]]) -> LessonBatch:
    """Where the supervised rows and their keys stand in the layout of a batch: a tree of one path is the path."""
    shape = (len(rows), max(len(row) for row in rows))
    visual = max(sum(len(lesson.visual) for lesson in row) for row in rows)
    queries = np.full((*shape, len(rows[0][0].at)), -1, np.int64)
    keys = np.full((len(rows), visual), -1, np.int64)
    tables = np.zeros((3, *shape, visual), np.float32)
    used = np.zeros(shape, bool)
    for r, row in enumerate(rows):
        offset = column = 0
        for i, lesson in enumerate(row):
            own = slice(column, column + len(lesson.visual))
            queries[r, i] = np.array(lesson.at) + offset
            keys[r, own] = lesson.visual + offset
            tables[:, r, i, own] = lesson.target, lesson.cover, np.ones(len(lesson.visual))
            used[r, i] = True
            offset += len(lesson.rollout.prompt_ids) + len(lesson.rollout.ids)
            column = own.stop
    device = batch.ids.device
    target, cover, counted = (torch.from_numpy(table).to(device) for table in tables)
    return LessonBatch(
        batch=batch, queries=torch.from_numpy(queries.reshape(len(rows), -1)).to(device),
        keys=torch.from_numpy(keys).to(device), target=target, cover=cover, counted=counted > 0,
        used=torch.from_numpy(used).to(device),
    )  # fmt: skip


def _by_lesson(readout: MapReadout, lessons: LessonBatch) -> Tensor:
    """(heads of all layers, lessons, visual): the mean over the tokens of each lesson."""
    maps = torch.cat([readout.maps[layer] for layer in readout.layers], dim=1)
    rows, heads, _, visual = maps.shape
    mean = maps.reshape(rows, heads, lessons.used.shape[1], -1, visual).mean(3)
    return mean.transpose(0, 1)[:, lessons.used]


@torch.no_grad()
def _sinks(policy: Policy, lessons: LessonBatch, chosen: Chosen) -> Tensor:
    """(rows, lessons, visual): visual tokens whose mean attention over the text exceeds mean + 3 sd of a lesson's."""
    batch = lessons.batch
    is_text = torch.ones_like(batch.ids, dtype=torch.bool)
    is_text.view(-1)[batch.visual_at] = False
    is_text &= batch.ids != policy.pad
    at = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
    order = torch.where(is_text, at, at.shape[1]).sort(dim=1).values[:, : int(is_text.sum(1).max())]
    readout = MapReadout(torch.where(order < at.shape[1], order, -1), lessons.keys, chosen.layers, chosen.heads)
    policy.module(batch, readout=readout, stops_at=max(chosen.layers))
    # rows before an image do not see it and count as not looking
    column = readout.mean().sum(1)[:, None] / is_text.sum(1)[:, None, None]
    own = column.expand_as(lessons.target).where(lessons.counted, torch.nan)
    mean = own.nanmean(-1, keepdim=True)
    spread = (own - mean).square().nanmean(-1, keepdim=True).sqrt()
    return (own > mean + 3 * spread).nan_to_num(0)


def _masses(maps: Tensor, cover: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Per lesson, from the mean row renormalised over the image: on cells the regions touch, by cover, strongest."""
    mass = maps.mean(0) * counted
    on_image = mass.sum(-1)
    p = mass / on_image.clamp(min=1e-12)[:, None]
    return {
        "anchor/region_mass": (p * (cover > 0)).sum(-1),
        "anchor/cover_mass": (p * cover).sum(-1),
        "anchor/top_share": p.amax(-1),
        "anchor/on_image": on_image,
    }


@contextmanager
def _frozen(policy: Policy, part: str | None) -> Iterator[None]:
    """Parameters with this word in their dotted name get no gradient."""
    off = [p for n, p in policy.model.named_parameters() if part in n.split(".") and p.requires_grad]
    for parameter in off:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in off:
            parameter.requires_grad_(True)


@contextmanager
def _row_only(policy: Policy, focus: FocusConfig) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Nothing but the token's own rows, of input and output embeddings, is trained; gives the masks that say so."""
    token = token_id(policy, focus.text)
    assert token is not None
    masks = row_masks(policy, token)
    rows = {id(parameter) for parameter, _ in masks}
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(id(parameter) in rows)
    try:
        yield masks
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
