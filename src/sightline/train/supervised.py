"""Supervised cold start: replies given as text, learned on the same token trees that reinforcement uses."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from sightline.errors import UserError
from sightline.policy.batch import Batch, collate, microbatches
from sightline.policy.tree import build_tree, rollout_path
from sightline.sampling.base import Request
from sightline.sampling.turns import Conversation
from sightline.types import Group, NextTurn, Prompt, Record, Rollout, StepStats

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame
    from sightline.methods.base import TurnRule
    from sightline.policy.load import Policy
    from sightline.train.run import Run

__all__ = ["demonstration", "imitate", "replies", "supervised_batches", "supervised_loss"]


def demonstration(
    policy: Policy,
    prompt: Prompt,
    turns: Sequence[str | NextTurn],
    branch: int = 0,
    *,
    rule: TurnRule | None = None,
) -> Rollout:
    """A Rollout whose replies are given: every reply token and its end-of-turn id count as sampled.

    Args:
        policy: whose tokenizer and chat template are used.
        prompt: what is shown.
        turns: replies (str), and the user's turns between them unless a rule says those.
        branch: distinguishes demonstrations of the same prompt.
        rule: asked between two replies, as it is in sampling.

    Raises:
        UserError: the rule ends the conversation although further replies are given.
    """
    conversation = replace(Conversation.begin(policy, Request(prompt, turns=rule)), branch=(branch,))
    for turn in turns:
        if isinstance(turn, NextTurn):
            conversation = conversation.told(policy, turn)
            continue
        if rule is not None and conversation.turn:
            conversation = conversation.told(policy, _following(conversation, len(turns)))
        ids = [*policy.tokenizer(turn, add_special_tokens=False)["input_ids"], policy.eos[0]]
        conversation = conversation.replied(policy, ids, [0.0] * len(ids), "stop")
    return conversation.rollouts()[0]


def _following(conversation: Conversation, replies: int) -> NextTurn:
    following = conversation.following()
    if following is None:
        raise UserError(
            f"the conversation ends after reply {conversation.turn} of {replies}",
            where=f"record {conversation.request.prompt.record.id}: meta.replies",
            hint="every reply but the last must call for another turn; the method also limits their number",
        )
    return following


def imitate(run: Run) -> tuple[list[Group], StepStats]:
    """One supervised step: each record's reply, or conversation, in every stream that reinforcement would sample."""
    from sightline.train.run import shown_prompt

    started = time.perf_counter()
    groups = []
    for record in run.world.part(run.data.next()):
        groups.append(
            [
                demonstration(
                    run.policy,
                    shown_prompt(run, record, s),
                    replies(record, s.template, run.policy.frame),
                    rule=s.turns,
                )
                for s in run.method.streams(record)
            ]
        )
    batches = supervised_batches(run.policy, groups, run.recipe.train.token_budget)
    prepared = time.perf_counter() - started
    update = run.learner.imitate(batches, run.step)
    metrics = {**update.metrics, **run.world.total({"supervised/replies": float(sum(len(g) for g in groups))})}
    return [], StepStats(step=run.step, metrics=metrics, seconds={"prepare": prepared, **update.seconds})


def replies(record: Record, template: str, frame: Frame) -> tuple[str, ...]:
    """What a record replies to a template, turn by turn: `meta.replies[template]`, or what the truth of a scene says.

    Raises:
        UserError: the record has neither, or its replies are no texts.
    """
    table = record.meta.get("replies") or {}
    given = table.get(template) if isinstance(table, Mapping) else table
    if given:
        said = [given] if isinstance(given, str) else given
        is_text = isinstance(said, list | tuple) and all(isinstance(text, str) for text in said)
        if not (is_text and isinstance(table, Mapping)):
            raise UserError(
                f"the replies for the template '{template}' are no texts", where=f"record {record.id}: meta.replies",
                hint='{"TEMPLATE": "..."}, or a list with one text per turn',
            )  # fmt: skip
        return tuple(said)
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
    return -out.sum() / max(total, 1)
