"""One command that rebuilds an embedded policy: initialise, train, check, write the card."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UserError
from sightline.scenes.card import card, write_card
from sightline.scenes.curriculum import Curriculum
from sightline.scenes.measure import Figures, figures
from sightline.scenes.model import FAMILIES, Family, build_model, write_policy
from sightline.scenes.stream import record_at

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.scenes.cold_start import ColdStart, Schedule

__all__ = ["GATES", "Built", "Gate", "build_policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a build must reach on mark questions of the level `easy` (validation scenes), and where it may stop.

    Attributes:
        accuracy: textual answers that are right.
        iou: mean IoU of the grounded box.
        count: grounded answers to count questions that are right (None: not asked).
        hard_iou: mean IoU on `hard` at which training stops: a start for reinforcement that already localises and
            leaves something to learn. No condition of passing; without it training goes on to `last`.
        first, every, last: steps at which this is looked at.
        is_required: whether a build that misses the gate fails; otherwise its card says what it is good for.
    """

    accuracy: float
    iou: float
    count: float | None
    hard_iou: float
    first: int
    every: int
    last: int
    is_required: bool


GATE_SEED = 7919
"""Validation scenes of the gate; runs evaluate on seeds of their own (recipes: 0), which the choice must not see."""

GATES: Mapping[Family, Gate] = {
    "qwen3_vl": Gate(accuracy=0.75, iou=0.6, count=0.5, hard_iou=0.45, first=350, every=25, last=800, is_required=True),
    "qwen2_5_vl": Gate(
        accuracy=0.6, iou=0.45, count=None, hard_iou=0.3, first=600, every=50, last=1300, is_required=False
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A finished build: its folder, the step that was kept and its card."""

    folder: Path
    step: int
    passed: bool
    card: Mapping[str, Any]


def build_policy(
    family: Family, out: str | Path, seed: int = 0, *, schedule: Schedule | None = None, gate: Gate | None = None
) -> Built:
    """Train an embedded policy from nothing and write it to `out` in the published layout, with its card.

    One thread; the same seed, thread count and library versions give the same weights.

    Args:
        family: `qwen3_vl` or `qwen2_5_vl`.
        out: folder, created; must not hold another checkpoint.
        seed: of the initial weights and of the training scenes.
        schedule: sizes and rates; the family's own by default.
        gate: what to reach; the family's own by default.

    Raises:
        UserError: unknown family, a folder in use, or a build that misses a required gate.
    """
    import torch

    from sightline.policy.load import load_policy
    from sightline.scenes.cold_start import SCHEDULES, ColdStart

    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}", where="--family", hint=f"one of {', '.join(FAMILIES)}")
    folder = Path(out)
    if (folder / "model.safetensors").exists():
        raise UserError("the folder already holds a checkpoint", where=str(folder), hint="choose another --out")
    gate = gate or GATES[family]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    start = time.process_time()
    write_policy(build_model(family), folder)
    (folder / "card.json").write_text(json.dumps({"prompt_style": "compact"}) + "\n")
    policy = load_policy(folder)
    curriculum = Curriculum(family=family, seed=seed)
    training = ColdStart(policy=policy, curriculum=curriculum, schedule=schedule or SCHEDULES[family])
    kept = _train(training, gate)
    seconds = time.process_time() - start
    write_policy(policy.model, folder)
    if not kept.passed and gate.is_required:
        raise UserError(
            f"the policy missed its gate after {kept.step} steps: {kept.found}; wanted easy accuracy "
            f"{gate.accuracy}, IoU {gate.iou}; count {gate.count}",
            where=f"{family}, seed {seed}", hint=f"try another --seed; what was trained lies in {folder}",
        )  # fmt: skip
    policy = load_policy(folder)  # the card is measured on what was written
    values = card(policy, family=family, seed=seed, step=kept.step, cpu_seconds=seconds, passed=kept.passed)
    write_card(folder, values)
    return Built(folder=folder, step=kept.step, passed=kept.passed, card=values)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    step: int
    passed: bool
    found: str


def _train(training: ColdStart, gate: Gate) -> _Kept:
    """Trains until the gate is met, with a progress bar."""
    from rich.progress import Progress, TimeElapsedColumn

    plan = training.schedule
    found, step = "nothing measured", 0
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        bars = {
            "vision": progress.add_task("vision", total=plan.vision_steps),
            "replies": progress.add_task("replies", total=min(plan.steps, gate.last)),
        }
        for trained in training.run():
            step = trained.step
            progress.update(bars[trained.stage], completed=trained.step)
            if trained.stage != "replies" or trained.step < gate.first or trained.step % gate.every:
                continue
            looked = _look(training.policy, training.curriculum.family, gate)
            found = looked.found
            progress.console.print(f"step {trained.step}: {found}")
            if (looked.passed and looked.is_start) or trained.step >= gate.last:
                return _Kept(step=trained.step, passed=looked.passed, found=found)
    return _Kept(step=step, passed=False, found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    passed: bool
    is_start: bool
    found: str


def _look(policy: Policy, family: str, gate: Gate) -> _Looked:
    """Whether the gate is met now, whether this is the start that is wanted, and the figures in one line."""

    def asked(level: str, style: str, kind: str = "mark") -> Figures:
        name = f"{level}-gradient" if family == "qwen2_5_vl" else level
        return figures(policy, [record_at(name, "validation", GATE_SEED, i, (kind,)) for i in range(200)], style)

    easy, grounded, hard = asked("easy", "textual"), asked("easy", "grounded"), asked("hard", "grounded")
    found = f"easy accuracy {easy.accuracy:.2f}, IoU {grounded.iou:.2f}"
    found += f"; hard accuracy {hard.accuracy:.2f}, IoU {hard.iou:.2f}"
    passed = easy.accuracy >= gate.accuracy and (grounded.iou or 0) >= gate.iou
    if gate.count is not None and passed:
        count = asked("easy", "grounded", "count").accuracy
        found += f"; count {count:.2f}"
        passed = count >= gate.count
    return _Looked(passed=passed, is_start=(hard.iou or 0) >= gate.hard_iou, found=found)
