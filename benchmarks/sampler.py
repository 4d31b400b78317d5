"""The local sampler against `generate` of the same model, and kept keys against reading a conversation anew.

    .venv/bin/python benchmarks/sampler.py

32 prompts x 8 Rollouts, one batch on both sides, same bans, same ids that end a reply, log-probs of the sampled ids on
both sides. `generate` gets its inputs prepared; the sampler's time includes rendering and tokenising the prompts. Two
settings: a prompt of 51 tokens (16 of them visual) with 24 new tokens and no ends; and 256 visual tokens with replies
that end by themselves, which random weights do at ragged lengths once enough ids count as an end. Before anything is
timed, greedy replies and their log-probs must agree.

Conversations: the same prompts with 256 visual tokens, branched 2 x 4; every turn that ends is followed by a crop of 64
visual tokens, up to three turns. The other side is the same sampler, except that it prefills prompt, earlier turns and
images again at every turn (each distinct image still once per forward). Both sides draw the same tokens.

Every figure is a ratio of process CPU time per sampled token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import alternating_pairs, print_json, print_table, settle, timed
from shapes import TRL, Shape, make_prompt, make_record, write_checkpoint
from sightline.policy.load import Policy, load_policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.cache import PrefixCache
from sightline.sampling.local import LocalSampler, _Front, _Segment
from sightline.sampling.turns import Conversation
from sightline.types import ImageRef, NextTurn, Prompt, Reading, Rollout

ENDS = range(300, 420)
"""Ids that end a reply where replies end by themselves: random weights write one of them about every 18 tokens."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    key: str
    visual: int
    tokens: int
    has_ends: bool

    @property
    def shape(self) -> Shape:
        return replace(TRL, visual=self.visual)


SETTINGS = (Setting("vs_generate", 16, 24, False), Setting("vs_generate_256", 256, 48, True))


@dataclass(frozen=True, slots=True)
class Replies:
    """Sampled ids and their log-probs, row by row, prompts in order."""

    ids: list[list[int]]
    logprobs: list[list[float]]

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.ids)


@dataclass(frozen=True, slots=True)
class Crops:
    """Shows the same picture after every turn but the last."""

    image: ImageRef
    turns: int = 3

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:  # noqa: ARG002
        return NextTurn("", (self.image,)) if len(readings) < self.turns else None


class ReadsAnew(LocalSampler):
    """Keeps no keys between turns: a conversation is prefilled whole, every row by itself."""

    def _read_on(
        self, rows: Sequence[Conversation], last: Sequence[int], cache: PrefixCache, going: Sequence[int]
    ) -> _Front:
        del last, cache, going
        return self._read(
            [_Segment(np.concatenate([c.prompt.ids, *c.pieces]), (*c.prompt.images, *c.images), 0) for c in rows]
        )


class Ours:
    """The local sampler."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], n: int) -> None:
        self.sampler, self.prompts, self.n = LocalSampler(policy), prompts, n

    def sample(self, tokens: int, seed: int, *, is_greedy: bool = False) -> Replies:
        settings = SamplingSettings(temperature=0.0 if is_greedy else 1.0, max_new_tokens=tokens)
        groups = self.sampler.sample([Request(p, (self.n,)) for p in self.prompts], settings, seed=seed, step=0)
        rollouts = [r for group in groups for r in group]
        return Replies([r.ids.tolist() for r in rollouts], [r.logprobs.tolist() for r in rollouts])


class Generate:
    """`generate` with `num_return_sequences`; its model has transformers' own attention."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], n: int) -> None:
        self.policy, self.n = policy, n
        encoded = [policy.encode(p) for p in prompts]
        ids = torch.from_numpy(np.stack([e.ids for e in encoded]))
        images = [policy.pixels.batch([(i, 0) for i in e.images]) for e in encoded]
        self.inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.cat([v.pixels for v in images if v.pixels is not None]),
            "image_grid_thw": torch.cat([v.grids for v in images if v.grids is not None]),
            "mm_token_type_ids": (ids == policy.image_token).int(),
        }

    @torch.no_grad()
    def sample(self, tokens: int, seed: int, *, is_greedy: bool = False) -> Replies:
        torch.manual_seed(seed)
        drawn = {"do_sample": False} if is_greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        out = self.policy.model.generate(
            **self.inputs, **drawn, num_return_sequences=1 if is_greedy else self.n, max_new_tokens=tokens,
            eos_token_id=list(self.policy.eos), pad_token_id=self.policy.pad,
            suppress_tokens=list(self.policy.banned), output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        replies = out.sequences[:, self.inputs["input_ids"].shape[1] :]
        steps = [
            torch.log_softmax(scores, -1).gather(-1, replies[:, t, None])[:, 0] for t, scores in enumerate(out.scores)
        ]
        return _cut(replies.tolist(), torch.stack(steps, dim=1).tolist(), self.policy.eos)


def _cut(ids: list[list[int]], logprobs: list[list[float]], eos: tuple[int, ...]) -> Replies:
    """Rows up to and including the first id that ends a reply."""
    lengths = [next((i + 1 for i, token in enumerate(row) if token in eos), len(row)) for row in ids]
    return Replies(
        [row[:n] for row, n in zip(ids, lengths, strict=True)],
        [row[:n] for row, n in zip(logprobs, lengths, strict=True)],
    )


def make_sides(folder: Path, setting: Setting, prompts: int, n: int) -> tuple[Ours, Generate]:
    """Both sides over the same weights and prompts."""
    write_checkpoint(folder, setting.shape)
    policies = [load_policy(folder) for _ in range(2)]
    policies[1].model.set_attn_implementation({"text_config": "sdpa"})
    for policy in policies:
        policy.model.eval()
        if setting.has_ends:
            policy.eos = (*policy.eos, *ENDS)
    shown = [
        make_prompt(policies[0], make_record(setting.shape, i), "textual", setting.shape.text) for i in range(prompts)
    ]
    return Ours(policies[0], shown, n), Generate(policies[1], shown, n)


def check(ours: Ours, theirs: Generate, tokens: int) -> float:
    """Largest difference of greedy log-probs.

    Raises:
        SystemExit: more than one greedy reply in twenty differs (near-ties may), or a log-prob by more than 1e-4.
    """
    one = Ours(ours.sampler.policy, ours.prompts, 1)
    mine, other = one.sample(tokens, 0, is_greedy=True), theirs.sample(tokens, 0, is_greedy=True)
    equal = [i for i, (x, y) in enumerate(zip(mine.ids, other.ids, strict=True)) if x == y]
    difference = max(
        (abs(x - y) for i in equal for x, y in zip(mine.logprobs[i], other.logprobs[i], strict=True)), default=np.inf
    )
    if len(equal) < 0.95 * len(mine.ids) or difference > 1e-4:
        raise SystemExit(f"greedy replies differ: {len(equal)} of {len(mine.ids)} equal, log-probs by {difference:.1e}")
    return float(difference)


def converse(sampler: LocalSampler, requests: Sequence[Request], tokens: int, seed: int) -> list[Rollout]:
    groups = sampler.sample(requests, SamplingSettings(max_new_tokens=tokens), seed=seed, step=0)
    return [rollout for group in groups for rollout in group]


def make_conversations(
    folder: Path, shape: Shape, crop: int, prompts: int
) -> tuple[LocalSampler, ReadsAnew, list[Request]]:
    """Both samplers on one policy, and Requests branched 2 x 4 whose crops have `crop` visual tokens."""
    write_checkpoint(folder, shape)
    policy = load_policy(folder, min_pixels=1)
    policy.eos = (*policy.eos, *ENDS)
    rule = Crops(make_record(replace(shape, visual=crop), 10**6).images[0])
    shown = [make_prompt(policy, make_record(shape, i), "textual", shape.text) for i in range(prompts)]
    return LocalSampler(policy), ReadsAnew(policy), [Request(p, (2, 4), rule) for p in shown]


def measure_conversations(pairs: int, prompts: int) -> tuple[list[str], float]:
    """Row of the table and the median ratio.

    Raises:
        SystemExit: more than one conversation in twenty differs between both sides (near-ties may).
    """
    with tempfile.TemporaryDirectory() as folder:
        kept, anew, requests = make_conversations(Path(folder), replace(TRL, visual=256), 64, prompts)
        a, b = converse(kept, requests, 48, 0), converse(anew, requests, 48, 0)
        equal = sum(x.ids.tolist() == y.ids.tolist() for x, y in zip(a, b, strict=True))
        if equal < 0.95 * len(a):
            raise SystemExit(f"only {equal} of {len(a)} conversations are equal")
        result = alternating_pairs(
            partial(converse, kept, requests, 48, 0), partial(converse, anew, requests, 48, 0), pairs
        )  # fmt: skip
    turns = statistics.mean(sum(t.role == "assistant" for t in r.turns) for r in a)
    sampled = statistics.mean(int(r.sampled.sum()) for r in a)
    return ["256 image tokens, crops of 64", f"{turns:.1f}", f"{sampled:.1f}", *result.row()], result.ratio


def measure(setting: Setting, pairs: int, prompts: int, n: int) -> tuple[list[str], float]:
    """Row of the table and the median ratio of tokens per second."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = make_sides(Path(folder), setting, prompts, n)
        difference = check(ours, theirs, setting.tokens)
        sides = (ours, theirs)
        rates: tuple[list[float], list[float]] = ([], [])
        length = 0.0
        for pair in range(-1, pairs):
            for i in (0, 1) if pair % 2 else (1, 0):
                seconds, replies = timed(partial(sides[i].sample, setting.tokens, seed=pair + 1))
                length = replies.tokens / len(replies.ids)
                if pair >= 0:  # the first pair warms up
                    rates[i].append(replies.tokens / seconds)
        ratios = [a / b for a, b in zip(*rates, strict=True)]
    ratio = statistics.median(ratios)
    row = [
        f"{setting.visual} image tokens, {'natural ends' if setting.has_ends else 'no ends'}", str(setting.tokens),
        f"{length:.1f}", f"{statistics.median(rates[1]):.0f}", f"{statistics.median(rates[0]):.0f}", f"{ratio:.2f}x",
        f"{min(ratios):.2f}-{max(ratios):.2f}", f"{difference:.0e}",
    ]  # fmt: skip
    return row, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs per setting")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--n", type=int, default=8, help="Rollouts per prompt")
    arguments = parser.parse_args()
    settle()
    rows, figures = [], {}
    for setting in SETTINGS:
        row, figures[setting.key] = measure(setting, arguments.pairs, arguments.prompts, arguments.n)
        rows.append(row)
    header = ["prompt", "limit", "mean length", "generate tokens/s", "sampler tokens/s", "ratio", "range"]
    print_table([*header, "log-prob diff"], rows)
    row, figures["vs_reprefill"] = measure_conversations(arguments.pairs, arguments.prompts)
    header = ["conversations", "turns", "sampled tokens", "read anew s", "keys kept s", "ratio", "range"]
    print_table(header, [row])
    print_json(figures)


if __name__ == "__main__":
    main()
