"""What a run would cost, before it starts: tokens per step, parameters, memory. `train --dry-run` prints it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.policy.load import Policy

__all__ = ["Estimate", "describe", "estimate"]

LOOKED_AT = 16  # records whose prompts are measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Cost of one step of one run. Tokens count text and visual tokens alike.

    Attributes:
        rollouts: rollouts per step, by stream.
        prompt: mean tokens of a prompt.
        longest: longest prompt among the records looked at.
        tree: most tokens the update computes in a step: each prompt once, every reply of full length.
        padded: the same without sharing: the prompt again for every rollout.
        weights: parameters.
        gib: memory of weights, gradients and optimiser state, in GiB; activations come on top.
    """

    rollouts: dict[str, int]
    prompt: float
    longest: int
    tree: float
    padded: float
    weights: int
    gib: float


def estimate(recipe: Recipe, policy: Policy) -> Estimate:
    """Measures the prompts of the first records; replies are taken at their longest."""
    from sightline.data import open_source
    from sightline.language.prompts import prompt
    from sightline.methods import load_method

    data, method = recipe.data, load_method(recipe.method)
    source = open_source(
        data.train, split="train", seed=recipe.train.seed, reader=data.reader, image_root=data.image_root,
        frame=data.frame, limit=data.limit, types=data.types,
    )  # fmt: skip
    looked = range(LOOKED_AT if source.size is None else min(LOOKED_AT, source.size))
    share, reply = data.records_per_step / len(looked), recipe.sampling.max_new_tokens
    rollouts: Counter[str] = Counter()
    lengths: list[int] = []
    tree = padded = 0.0
    for record in (source.at(i) for i in looked):
        for stream in method.streams(record):
            shown = prompt(record, stream.name, stream.template, policy.style, forced_prefix=stream.forced_prefix)
            length = len(policy.encode(shown).ids)
            lengths.append(length)
            rollouts[stream.name] += stream.n
            tree += length + stream.n * reply
            padded += stream.n * (length + reply)
    parameters = sum(p.numel() for p in policy.model.parameters())
    size = next(policy.model.parameters()).element_size()
    copies = 2 if method.config.objective.kl > 0 else 1  # the frozen reference
    return Estimate(
        rollouts={name: round(share * count) for name, count in rollouts.items()},
        prompt=sum(lengths) / len(lengths),
        longest=max(lengths),
        tree=share * tree,
        padded=share * padded,
        weights=parameters,
        gib=parameters * ((copies + 1) * size + 2 * max(size, 4)) / 2**30,
    )


def describe(recipe: Recipe, folder: Path) -> str:
    """The estimate of a recipe, or of each of its arms, as text."""
    lines = [f"run folder: {folder} ({'exists: would be resumed' if folder.exists() else 'would be made'})"]
    for name, one in (recipe.arm_recipes() or {"": recipe}).items():
        arm = f"arm {name}: " if name else ""
        lines.append(f"{arm}{one.method['name']} on {one.model.name}, {one.train.steps} steps")
        lines += _cost(one) if is_here(one.model.name) else ["  not counted: the model would have to be downloaded"]
    return "\n".join([*lines, "nothing was written"])


def is_here(model: str) -> bool:
    """Whether the policy can be opened without a download: shipped, a local folder, or in the Hub's cache."""
    if model.startswith("embedded:") or Path(model).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return True  # no name of the Hub either: opening it says what is wrong


def _cost(recipe: Recipe) -> list[str]:
    from sightline.commands.model import open_policy

    policy = open_policy(recipe.model.name, dtype=recipe.model.dtype)
    cost = estimate(recipe, policy)
    streams = ", ".join(f"{count} {stream}" for stream, count in cost.rollouts.items())
    tokens = f"{cost.tree:,.0f} tokens as trees, {cost.padded:,.0f} padded; {recipe.train.token_budget:,} at a time"
    return [
        f"  frame       {policy.frame.describe()}",
        f"  rollouts    {streams} per step, from {recipe.data.records_per_step} records of {recipe.data.train}",
        f"  prompts     {cost.prompt:.0f} tokens, {cost.longest} the longest of {LOOKED_AT} records",
        f"  update      at most {tokens}",
        f"  parameters  {cost.weights / 1e6:,.2f} M",
        f"  memory      {cost.gib:,.3f} GiB for weights, gradients and optimiser, activations on top",
    ]
