"""What a run would cost, before any weight is read: tokens, memory per card, time. `train --dry-run` prints it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.policy.memory import Component, Memory, Setup
    from sightline.train.plan import Plan

__all__ = ["describe"]

GIB = 2**30
MANY = (2, 4, 8)
QUARTER = 0.25


def describe(recipe: Recipe, folder: Path) -> str:
    """The estimate of a recipe, or of each of its arms, as text.

    Raises:
        UserError: the model or the records cannot be read.
    """
    lines = [f"run folder: {folder} ({'exists: would be resumed' if folder.exists() else 'would be made'})"]
    for name, one in (recipe.arm_recipes() or {"": recipe}).items():
        arm = f"arm {name}: " if name else ""
        lines.append(f"{arm}{one.method['name']} on {one.model.name}, {one.train.steps} steps")
        try:
            lines += [f"  {title:<11} {said}" for title, said in _cost(one)]
        except UserError as error:
            raise UserError(error.what, where=f"{arm}{error.where}", hint=error.hint) from error
    return "\n".join([*lines, "nothing was written"])


def _cost(recipe: Recipe) -> Iterator[tuple[str, str]]:
    from sightline.policy.outline import open_outline
    from sightline.train.plan import plan

    outline = open_outline(recipe.model)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    found = plan(recipe, outline, processes=processes)
    shorter = plan(recipe, outline, processes=processes, length=QUARTER)
    yield from _counted(found, recipe)
    yield from _computed(found)
    yield from _held(found)
    yield from _lasting(found, shorter, recipe)


def _counted(found: Plan, recipe: Recipe) -> Iterator[tuple[str, str]]:
    from sightline.policy.memory import trained_parameters

    model, trained = found.model, trained_parameters(found.model, found.setup.trained)
    parts = f"{_millions(model.text.parameters)} language, {_millions(model.vision.parameters)} vision"
    yield "model", f"{_millions(model.parameters)} parameters ({parts}), {_millions(trained)} trained"
    if found.outline.tokenizer is None:
        yield "", "not here: recorded dimensions, words counted as a token per 4 letters"
    yield "frame", found.outline.frame.describe()
    streams = ", ".join(f"{count} {stream}" for stream, count in found.streams.items())
    yield "rollouts", f"{streams} per step, from {found.records} records of {recipe.data.train}"
    mean, visual = (sum(x) / len(x) for x in (found.prompts, found.visual))
    looked = f"{max(found.prompts)} the longest of {len(found.trees)} records"
    yield "prompts", f"{mean:.0f} tokens, {visual:.0f} of them visual, {looked}"
    tokens = f"{found.tree_tokens:,.0f} tokens as trees, {found.unshared_tokens:,.0f} with every rollout by itself"
    yield "update", f"at most {tokens}; {found.budget:,} at a time"
    longest = max(len(tree) for tree in found.trees)
    if longest > found.budget:
        yield "", f"a group has up to {longest:,} tokens, more than train.token_budget: it runs alone"


def _computed(found: Plan) -> Iterator[tuple[str, str]]:
    update, passes = found.update(), found.passes
    parts = ", ".join(
        f"{part} {getattr(update, part) / update.total:.0%}" for part in ("text", "attention", "vision", "head")
    )
    yield (
        "work",
        f"{_tera(update.total)} forward and backward ({parts}); padded, an image per rollout: "
        + _tera(found.padded().total),
    )
    others = {"scoring": passes.scoring, "reference": passes.reference}
    said = [f"{passes.updates} update"] + [f"{count} {name}" for name, count in others.items() if count]
    yield "passes", f"{', '.join(said)}; a forward is {_tera(found.forward().total)}"


def _held(found: Plan) -> Iterator[tuple[str, str]]:
    from sightline.policy.memory import CARDS, fits, memory

    needs = memory(found.model, found.setup, found.micro, found.sampled)
    for i, (part, phases) in enumerate(_merged(needs)):
        when = "" if "always" in phases else f"in {' and '.join(phases)}; "
        yield "" if i else "memory", f"{_gib(part.bytes):>11}  {part.name} ({when}{part.why})"
    phases = ("update", "step", "sampling") if found.sampled else ("update", "step")
    by_phase = ", ".join(f"{_gib(needs.during(phase))} {phase}" for phase in phases)
    cards = found.setup.processes
    yield "", f"{_gib(needs.peak):>11}  the most at once{f' on each of {cards} cards' * (cards > 1)}: {by_phase}"
    if found.setup.reference == "cpu":
        yield "", f"{_gib(found.model.parameters * found.setup.weight):>11}  of the host's memory: the reference"
    if not found.setup.is_cuda:
        return
    held = [name for name, gib in CARDS.items() if fits(needs, gib)]
    yield "fits", f"a card of {', '.join(held)}" if held else "no single card"
    if len(held) < len(CARDS):
        yield from _changes(found, needs)


def _merged(needs: Memory) -> list[tuple[Component, list[str]]]:
    """Components with the phases in which each is there."""
    found: dict[tuple[str, float, str], tuple[Component, list[str]]] = {}
    for part in needs:
        found.setdefault((part.name, part.bytes, part.why), (part, []))[1].append(part.phase)
    return list(found.values())


def _changes(found: Plan, needs: Memory) -> Iterator[tuple[str, str]]:
    """What a change of one key would make of the peak, the largest gain first."""
    gains = [(memory.peak, words) for words, memory in _variants(found) if memory.peak < 0.98 * needs.peak]
    for i, (peak, words) in enumerate(sorted(gains)):
        yield "" if i else "to need less", f"{_gib(peak):>11}  {words}"


def _variants(found: Plan) -> Iterator[tuple[str, Memory]]:
    from sightline.policy.flops import Trained
    from sightline.policy.memory import memory

    setup, trained = found.setup, found.setup.trained

    def of(changed: Setup, **plan: object) -> Memory:
        other = replace(found, setup=changed, **plan)  # type: ignore[arg-type]
        return memory(other.model, other.setup, other.micro, other.sampled)

    if not setup.checkpointing:
        yield "--model.checkpointing true", of(replace(setup, checkpointing=True))
    if not trained.rank:
        lora = replace(setup, trained=Trained(text=False, vision=False, rank=32), masters="fp32", is_sharded=False,
                       reference="adapter" if setup.reference != "none" else "none")  # fmt: skip
        yield "--model.lora.rank 32", of(lora)
        if trained.vision:
            yield "--model.train_vision false", of(replace(setup, trained=replace(trained, vision=False)))
        if setup.masters == "fp32" and setup.weight < 4:
            yield "--model.masters stochastic", of(replace(setup, masters="stochastic"))
        if setup.states == "fp32" and not setup.is_sharded:
            yield "--optim.states 8bit", of(replace(setup, states="8bit"))
    elif not setup.is_quantised:
        yield "--model.lora.quantise nf4", of(replace(setup, is_quantised=True))
    if setup.reference == "device":
        yield "--model.reference cpu", of(replace(setup, reference="cpu"))
    if found.budget // 2 >= max(len(tree) for tree in found.trees):
        yield f"--train.token_budget {found.budget // 2}", of(setup, budget=found.budget // 2)
    if found.sampled is not None:
        rows = max(1, found.sampled.replies // 4)
        fewer = replace(found.sampled, replies=rows, prompts=max(1, found.sampled.prompts // 4))
        yield f"--sampling.batch {rows}", of(setup, sampled=fewer)
        yield "--sampling.server.urls ... (servers sample)", of(setup, sampled=None)
    if not trained.rank:
        for cards in MANY:
            if cards > setup.processes:
                shared = of(replace(setup, processes=cards, is_sharded=True, states="fp32"))
                also = " --optim.states fp32" * (setup.states == "8bit")
                yield f"torchrun --nproc-per-node {cards} -m sightline train ...{also} (each card)", shared


def _lasting(found: Plan, shorter: Plan, recipe: Recipe) -> Iterator[tuple[str, str]]:
    from sightline.train.pace import assumed_pace, seconds

    pace = assumed_pace(found, recipe.model.device, recipe.model.threads)
    each, short = seconds(found, pace), seconds(shorter, pace)
    sampling = "sampling not counted (servers)" if each.sampling is None else f"sampling {_time(each.sampling)}"
    scoring = f"scoring {_time(each.scoring)}, " if each.scoring else ""
    parts = f"{sampling}, {scoring}update {_time(each.update)}"
    yield "time", f"about {_time(each.total)} per step if every reply is as long as it may be: {parts}"
    stages = [(stage, steps) for stage, steps in found.stages if steps]
    learning = sum(steps for stage, steps in stages if stage.kind == "reinforcement")
    yield "", f"about {_time(short.total)} if they are a quarter as long"
    both = f"{_time(learning * short.total)} to {_time(learning * each.total)}"
    yield "", f"{both} for {learning} steps of reinforcement, evaluation not counted"
    for stage, steps in stages:
        if stage.kind != "reinforcement":
            kind = "supervised" if stage.anchor is None else "anchoring"
            yield "", f"{steps} {kind} steps besides, each shorter than an update of one reply per record"
    rounds = recipe.train.dynamic_sampling.max_rounds
    if rounds:
        yield "", f"up to {rounds + 1} times the sampling and scoring where groups are flat (dynamic_sampling)"
    yield "assumed", pace.said


def _gib(count: float) -> str:
    gib = count / GIB
    return f"{gib:,.1f} GiB" if gib >= 10 else f"{gib:.2f} GiB" if gib >= 1 else f"{gib * 1024:,.1f} MiB"


def _millions(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def _tera(flops: float) -> str:
    return f"{flops / 1e15:,.2f} PFLOP" if flops >= 1e15 else f"{flops / 1e12:,.3f} TFLOP"


def _time(spent: float) -> str:
    if spent >= 5400:
        return f"{spent / 3600:.1f} h"
    return f"{spent / 60:.0f} min" if spent >= 90 else f"{spent:.1f} s" if spent >= 0.1 else f"{spent:.2f} s"
