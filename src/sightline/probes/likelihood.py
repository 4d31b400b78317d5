"""How likely the record's answer is where a reply is cut: log pi(answer | images, question, reply so far) per token."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from sightline.errors import UserError
from sightline.language.spans import byte_pieces, token_spans, tokens_of
from sightline.methods.probes import GoldLikelihood
from sightline.policy.packing import Packer, Part
from sightline.policy.tree import Path, Segment, build_tree, rollout_path
from sightline.probes.contrast import changed_rollouts, without_images
from sightline.types import Group, ImageRef, Rollout, Span

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.probes.drafts import Drafts

__all__ = ["LikelihoodPass", "cuts"]


class LikelihoodPass:
    """One `GoldLikelihood` for a batch of Groups: each Rollout becomes one path per cut, which ends in the answer.

    Args:
        probe: the request.
        packer: lays the paths out; cuts of one Rollout share their prefix.
        key: seed and step, joined by the record's id for an intervention.
        others: images of the batch, for `swap`.
    """

    def __init__(
        self, probe: GoldLikelihood, packer: Packer, key: tuple[Hashable, ...], others: Sequence[ImageRef] = ()
    ) -> None:
        if probe.intervention is not None and probe.intervention.kind == "attn_block":
            raise UserError("the likelihood of an answer cannot be read with 'attn_block'", hint="text_only, or pixels")
        self.probe, self.packer, self.key, self.others = probe, packer, key, others

    def store(self, drafts: Drafts, temperature: float) -> None:
        """Adds the likelihoods to the drafts."""
        policy = self.packer.policy
        places: dict[int, list[tuple[int, int]]] = {}
        parts = []
        for number, group in enumerate(drafts.groups):
            for rollout, draft in zip(group.rollouts, drafts.rows[number], strict=True):
                draft.probes[self.probe.name] = np.full(len(rollout.ids), np.nan, np.float32)
            paths = list(self._paths(group))
            if paths:
                places[number] = [place for place, _ in paths]
                tree = build_tree([path for _, path in paths], policy.rules)
                parts.append(Part(group=number, places=(), rollouts=(), tree=tree))
        for packed in self.packer.packed(parts) if parts else ():
            logprobs = policy.module(packed.batch, temperature=temperature).logprobs
            for part, own in zip(packed.parts, packed.batch.scatter(logprobs), strict=True):
                for (place, cut), values in zip(places[part.group], own, strict=True):
                    answer = drafts.groups[part.group].record.answer
                    mean = values[-len(_ids(policy, answer)) :].mean()
                    drafts.rows[part.group][place].probes[self.probe.name][cut] = mean

    def _paths(self, group: Group) -> Iterator[tuple[tuple[int, int], Path]]:
        """((place in the group, cut), path) for every cut of every Rollout."""
        policy, what = self.packer.policy, self.probe.intervention
        if what is not None and what.is_regional and not group.record.regions:
            return
        shown: Sequence[Rollout] = group.rollouts
        if what is not None and what.changes_pixels and group.record.images:
            shown = changed_rollouts(group.rollouts, policy.frame, what, (*self.key, group.record.id, 0), self.others)
        answer = _ids(policy, group.record.answer)
        lead = _ids(policy, self.probe.lead) if self.probe.lead else np.empty(0, np.int64)
        if not len(answer):
            return
        end = np.concatenate([lead, answer])
        scored = np.arange(len(end)) >= len(lead)
        for place, rollout in enumerate(shown):
            wanted = cuts(group.rollouts[place], self.probe, policy)
            at = np.arange(len(rollout.ids))
            if what is not None and what.kind == "text_only":
                rollout, kept = without_images(rollout, policy)
                at = np.cumsum(kept) - kept  # how many tokens are left before each one
            alone = () if self.packer.shares else (place,)
            for cut in wanted:
                pieces = _prefix(rollout, int(at[cut]), [int(at[c]) for c in wanted], policy)
                segments = [replace(s, key=(*alone, s.key), sampled=np.zeros(len(s.ids), bool)) for s in pieces]
                leaf = Segment(("answer", place, cut), end, scored)
                yield (place, cut), Path((*segments, leaf), response=len(segments))


def cuts(rollout: Rollout, probe: GoldLikelihood, policy: Policy) -> list[int]:
    """Where a reply is cut, as indices into `Rollout.ids`: the answer follows the tokens before each one.

    Cuts that lie at the same token, or behind the last one, count once or not at all.
    """
    found = [0]
    if probe.cut == "turns":
        found += [_last_word(rollout, t.span, policy) for t in rollout.turns[:-1] if t.role == "assistant"]
    elif probe.cut in ("think", "section"):
        tokens = policy.tokenizer.convert_ids_to_tokens([int(i) for i in rollout.ids])
        pieces = byte_pieces(tokens)
        offsets, text = token_spans(pieces), b"".join(pieces).decode("utf-8", errors="replace")
        if probe.cut == "think":
            close = text.find("</think>")
            found += [tokens_of(Span(close, close + 1), offsets).start] if close >= 0 else []
        else:
            tag = re.escape(probe.section)
            for block in re.finditer(rf"<{tag}>.*?</{tag}>", text, re.DOTALL):
                within = tokens_of(Span(*block.span()), offsets)
                found += [within.start, within.end]
    return sorted({cut for cut in found if cut < len(rollout.ids)})


def _last_word(rollout: Rollout, span: Span, policy: Policy) -> int:
    """The end of a turn without the mark that closes it."""
    on = np.flatnonzero(rollout.sampled[span.start : span.end])
    last = span.start + int(on[-1]) if len(on) else span.start
    return last if int(rollout.ids[last]) in policy.eos else last + 1


def _prefix(rollout: Rollout, stop: int, cut: Sequence[int], policy: Policy) -> list[Segment]:
    """The segments of a path up to token `stop`, split at every cut before it so that later cuts share them."""
    path = rollout_path(rollout, policy.image_token)
    segments, at = list(path.segments[: path.response]), 0
    for segment in path.segments[path.response :]:
        edges = sorted({0, len(segment.ids), *(c - at for c in (*cut, stop) if 0 < c - at < len(segment.ids))})
        for a, b in pairwise(edges):
            if at + b <= stop:
                images = _images_from(rollout, at + a, at + b)
                segments.append(Segment((segment.key, a, b), segment.ids[a:b], segment.sampled[a:b], images))
        at += len(segment.ids)
    return segments


def _images_from(rollout: Rollout, start: int, stop: int) -> tuple[ImageRef, ...]:
    """Images that turns beginning within a range of `rollout.ids` add."""
    first = len(rollout.prompt.images)
    return tuple(
        rollout.images[i - first] for turn in rollout.turns if start <= turn.span.start < stop for i in turn.images
    )


def _ids(policy: Policy, text: str) -> Int[np.ndarray, "tokens"]:
    return np.array(policy.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
