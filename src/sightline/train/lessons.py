"""What Anchoring learns from: a record's prompt with the token, a reply to keep, and where the token should look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sightline.geometry.grid import membership
from sightline.geometry.targets import region_share, region_target
from sightline.language.parse import read
from sightline.policy.focus import token_id
from sightline.rewards.answer import accuracies
from sightline.sampling.base import Request
from sightline.sampling.local import LocalSampler
from sightline.train.sharding import whole
from sightline.train.supervised import demonstration, replies
from sightline.types import Prompt, Record, Rollout

if TYPE_CHECKING:
    from sightline.credit.config import AnchorConfig, FocusConfig
    from sightline.policy.load import Policy
    from sightline.train.run import Run

__all__ = ["Lesson", "Lessons", "lesson", "lessons_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One record to learn from: prompt, token and reply as one Rollout, and where the token should look.

    Attributes:
        rollout: its sampled ids carry the language loss; none where there is no reply.
        at: places of the token in prompt and reply together.
        visual: places of the prompt's visual tokens.
        target: T over them.
        cover: share of each that the regions cover.
    """

    rollout: Rollout
    at: tuple[int, ...]
    visual: np.ndarray
    target: np.ndarray
    cover: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """The lessons of one step, and how many records were left out of what."""

    lessons: tuple[Lesson, ...]
    counts: dict[str, float]


def lessons_of(run: Run, records: Sequence[Record], config: AnchorConfig, focus: FocusConfig) -> Lessons:
    """One lesson per record and stream; records without regions, or with too large ones, give none."""
    from sightline.train.run import shown_prompt

    boxed = [r for r in records if r.regions]
    sizes = {r.id: [image.size for image in r.images] for r in boxed}
    kept = [r for r in boxed if region_share(r.regions, sizes[r.id], run.policy.frame) <= config.max_region_frac]
    streams = [(record, stream) for record in kept for stream in run.method.streams(record)]
    asked = [replace(shown_prompt(run, *pair), forced_prefix=focus.prefix) for pair in streams]
    if config.lm_target == "self_distilled":
        texts = _distilled(run, asked, config.attempts)
    elif config.lm_target == "dataset":
        texts = [replies(record, stream.template, run.policy.frame)[0] for record, stream in streams]
    else:
        texts = [None] * len(asked)
    counts = {
        "anchor/records": float(len(kept)),
        "anchor/without_regions": float(len(records) - len(boxed)),
        "anchor/too_large": float(len(boxed) - len(kept)),
        "anchor/without_reply": float(sum(text is None for text in texts)),
    }
    found = (lesson(run.policy, p, text, config, focus) for p, text in zip(asked, texts, strict=True))
    return Lessons(lessons=tuple(found), counts=counts)


def _distilled(run: Run, asked: Sequence[Prompt], attempts: int) -> list[str | None]:
    """Of some replies of the start policy to each prompt, the first right one behind the token; None without any."""
    start = run.start_policy()
    requests = [Request(prompt, (attempts,)) for prompt in asked]
    sampler = LocalSampler(start, rows=run.recipe.sampling.batch)
    with whole(start):
        sampled = sampler.sample(requests, run.settings, seed=run.recipe.train.seed, step=run.step)
    found: list[str | None] = []
    for prompt, rollouts in zip(asked, sampled, strict=True):
        texts = [r.text.removeprefix(prompt.forced_prefix) for r in rollouts if r.finish == "stop"]
        sizes = [image.size for image in prompt.images]
        scores = accuracies([read(text, start.frame, sizes) for text in texts], prompt.record, run.judge)
        right = (text for text, score in zip(texts, scores, strict=True) if score.value >= 1 and not score.masked)
        found.append(next(right, None))
    return found


def lesson(policy: Policy, asked: Prompt, text: str | None, config: AnchorConfig, focus: FocusConfig) -> Lesson:
    """What one prompt teaches.

    Args:
        policy: whose tokenizer and grid are used.
        asked: the prompt with the token as its forced prefix; its record has regions.
        text: the reply behind the token; None for none.
        config: shape of the target, and what is said.
        focus: the token, and whether the policy writes it.
    """
    rollout = _taught(policy, asked, text, config, focus)
    token, prompt = token_id(policy, focus.text), len(rollout.prompt_ids)
    places = np.flatnonzero(np.concatenate([rollout.prompt_ids, rollout.ids]) == token)
    # the question may name the token too: what counts is the end of the prompt, or the beginning of the reply
    is_forced = bool(rollout.prompt.forced_prefix)
    own = places[places < prompt][-focus.count :] if is_forced else places[places >= prompt][: focus.count]
    record, sizes = asked.record, [image.size for image in asked.images]
    return Lesson(
        rollout=rollout,
        at=tuple(own.tolist()),
        visual=np.flatnonzero(rollout.prompt_ids == policy.image_token),
        target=region_target(
            record.regions, sizes, policy.frame, config.target, smooth=config.smooth, width=config.blur
        ),
        cover=membership(record.regions, sizes, policy.frame, "coverage"),
    )


def _taught(policy: Policy, asked: Prompt, text: str | None, config: AnchorConfig, focus: FocusConfig) -> Rollout:
    """The token is taught where the policy writes it, or where it is the whole language target."""
    bare = replace(asked, forced_prefix="")
    if config.lm_target == "focus_only":
        ids = np.array(policy.tokenizer(focus.prefix, add_special_tokens=False)["input_ids"], np.int64)
        return _given(policy, bare, ids, focus.prefix)
    if text is None:
        return _given(policy, asked, np.empty(0, np.int64), "")
    is_written = focus.mode == "generated"
    return demonstration(policy, bare if is_written else asked, [focus.prefix + text if is_written else text])


def _given(policy: Policy, prompt: Prompt, ids: np.ndarray, text: str) -> Rollout:
    """A reply that does not end, or none at all."""
    return Rollout(
        prompt=prompt, branch=(0,), prompt_ids=policy.encode(prompt).ids, ids=ids, sampled=np.ones(len(ids), bool),
        logprobs=np.zeros(len(ids), np.float32), text=prompt.forced_prefix + text, finish="stop",
    )  # fmt: skip
