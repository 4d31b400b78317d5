"""Supervised cold start: replies given as text, learned on the same token trees that reinforcement uses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sightline.errors import UserError
from sightline.policy.batch import Batch, collate, microbatches
from sightline.policy.tree import build_tree, rollout_path
from sightline.types import Group, ImageRef, ImageSlot, Prompt, Record, Rollout, Span, StepStats, Turn

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame
    from sightline.policy.load import Policy
    from sightline.train.run import Run

__all__ = ["UserTurn", "demonstration", "imitate", "replies", "supervised_batches", "supervised_loss"]


@dataclass(frozen=True, slots=True)
class UserTurn:
    """A turn of the user inside a demonstration: text and image slots, and the images it adds."""

    content: tuple[str | ImageSlot, ...]
    images: tuple[ImageRef, ...] = ()


def demonstration(policy: Policy, prompt: Prompt, turns: Sequence[str | UserTurn], branch: int = 0) -> Rollout:
    """A Rollout whose replies are given: every reply token and its end-of-turn id count as sampled.

    Args:
        policy: whose tokenizer and chat template are used.
        prompt: what is shown.
        turns: replies (str) and the user's turns between them, beginning and ending with a reply.
        branch: distinguishes demonstrations of the same prompt.
    """
    ids: list[np.ndarray] = []
    sampled: list[np.ndarray] = []
    spans: list[Turn] = []
    images: tuple[ImageRef, ...] = ()
    at = 0
    for turn in turns:
        added: tuple[int, ...] = ()
        if isinstance(turn, str):
            piece = np.array([*policy.tokenizer(turn, add_special_tokens=False)["input_ids"], policy.eos[0]], np.int64)
        else:
            piece = policy.encode_turn(turn.content, turn.images).ids
            first = len(prompt.images) + len(images)
            added = tuple(range(first, first + len(turn.images)))
            images = (*images, *turn.images)
        ids.append(piece)
        sampled.append(np.full(len(piece), isinstance(turn, str)))
        role = "assistant" if isinstance(turn, str) else "user"
        spans.append(Turn(role=role, span=Span(at, at + len(piece)), images=added))
        at += len(piece)
    return Rollout(
        prompt=prompt, branch=(branch,), prompt_ids=policy.encode(prompt).ids, ids=np.concatenate(ids),
        sampled=np.concatenate(sampled), logprobs=np.zeros(at, np.float32), finish="stop",
        text=prompt.forced_prefix + "".join(t for t in turns if isinstance(t, str)), turns=tuple(spans), images=images,
    )  # fmt: skip


def imitate(run: Run) -> tuple[list[Group], StepStats]:
    """One supervised step: each record's reply in every stream that reinforcement would sample."""
    from sightline.train.run import shown_prompt

    started = time.perf_counter()
    groups = []
    for record in run.data.next():
        groups.append(
            [
                demonstration(run.policy, shown_prompt(run, record, s), replies(record, s.template, run.policy.frame))
                for s in run.method.streams(record)
            ]
        )
    batches = supervised_batches(run.policy, groups, run.recipe.train.token_budget)
    update = run.learner.imitate(batches, run.step)
    metrics = {**update.metrics, "supervised/replies": float(sum(len(g) for g in groups))}
    return [], StepStats(step=run.step, metrics=metrics, seconds={"supervised": time.perf_counter() - started})


def replies(record: Record, template: str, frame: Frame) -> tuple[str, ...]:
    """The reply a record gives for a template: `meta.replies[template]`, or what the truth of a scene says.

    Raises:
        UserError: the record has neither.
    """
    given = record.meta.get("replies", {}).get(template)
    if given is not None:
        return (given,) if isinstance(given, str) else tuple(given)
    if "objects" not in record.meta:
        raise UserError(
            f"no reply for the template '{template}'", where=f"record {record.id}: meta.replies",
            hint='a supervised stage needs rows with meta: {"replies": {"' + template + '": "..."}}',
        )  # fmt: skip
    from sightline.scenes.texts import reply

    size = record.images[0].size
    return reply(record, template, lambda box: frame.write(box, size))


def supervised_batches(policy: Policy, groups: Sequence[Sequence[Rollout]], token_budget: int) -> list[Batch]:
    """Micro-batches of token trees; the demonstrations of one group share their image and equal prompts."""
    trees = [build_tree([rollout_path(r, policy.image_token) for r in group], policy.rules) for group in groups]
    packs = policy.device.type == "cuda"
    return [
        collate([[trees[i] for i in row] for row in rows], policy.pixels, pad=policy.pad, device=policy.device)
        for rows in microbatches([len(t) for t in trees], token_budget, packs=packs)
    ]


def supervised_loss(policy: Policy, batch: Batch, total: float) -> Tensor:
    """-sum of the log-probs of the demonstrated tokens / `total` (the tokens of the whole optimiser step)."""
    out: Tensor = policy.module(batch).logprobs
    return -out.sum() / total if len(out) else torch.zeros((), device=batch.ids.device)
