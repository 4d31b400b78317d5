"""How long a step of a plan would take: its FLOPs at an assumed pace, and its decoding steps at theirs.

An update, or a forward over the trees of a step, takes its FLOPs (what checkpointing computes again included) divided
by what the device is assumed to do of its peak. Decoding on CUDA goes token by token: a step takes the longest of
reading the weights, computing, and starting the kernels of every layer. Nothing is said of judges, images that are
opened, evaluation, or servers that sample.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.policy.flops import Work, forward_flops

if TYPE_CHECKING:
    from sightline.train.plan import Plan

__all__ = ["Pace", "Seconds", "assumed_pace", "seconds"]

LAUNCH = 0.9e-3
"""Seconds that the host needs to start the kernels of one decoder layer for one token."""
READING = 0.6
"""Share of the memory bandwidth that decoding reaches."""
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12, "L40S": 0.86e12, "RTX 4090": 1.0e12}
"""Bytes per second that a card reads, by part of its name, as data sheets give them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a device does, and how that is known.

    Attributes:
        flops: per second, of updates and scoring passes.
        decoding: FLOP/s of decoding, where nothing else holds it up.
        bandwidth: bytes per second of decoding; None where it is not what counts.
        said: the assumption in words.
    """

    flops: float
    decoding: float
    bandwidth: float | None
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Of one step on all cards together; `sampling` is None where servers sample."""

    sampling: float | None
    scoring: float
    update: float

    @property
    def total(self) -> float:
        return (self.sampling or 0.0) + self.scoring + self.update


def assumed_pace(plan: Plan, device: str, threads: int, utilisation: float = 0.35) -> Pace:
    """The pace of the card that is here, else of an H100; on the CPU that of a matrix product measured now."""
    if not plan.setup.is_cuda:
        peak = _measured(threads)
        return Pace(
            flops=0.3 * peak, decoding=0.1 * peak, bandwidth=None,
            said=f"{peak / 1e9:.0f} GFLOP/s measured now on {threads} thread{'s' * (threads > 1)}, of which updates "
            "are taken to reach 30 % and sampling 10 %",
        )  # fmt: skip
    name, peak = _card(device)
    bandwidth = next((b for part, b in BANDWIDTH.items() if part in name), BANDWIDTH["H100"])
    return Pace(
        flops=utilisation * peak, decoding=utilisation * peak, bandwidth=READING * bandwidth,
        said=f"{name} at {utilisation:.0%} of {peak / 1e12:.0f} TFLOP/s, {LAUNCH * 1e3:.1f} ms per layer and token "
        "sampled",
    )  # fmt: skip


def seconds(plan: Plan, pace: Pace) -> Seconds:
    """Of one reinforcement step whose replies are all as long as they may be."""
    update, forward = plan.update(), plan.forward()
    executed = update.total
    if plan.setup.checkpointing:  # layers run forward once more; a frozen tower does not, nor does the head
        executed += forward.total - forward.head - (0 if plan.setup.trained.trains_tower else forward.vision)
    each = forward.total / pace.flops
    return Seconds(
        sampling=None if plan.sampled is None else _sampling(plan, pace) / plan.setup.processes,
        scoring=(plan.passes.scoring + plan.passes.reference) * each / plan.setup.processes,
        update=plan.passes.updates * executed / pace.flops / plan.setup.processes,
    )


def _sampling(plan: Plan, pace: Pace) -> float:
    """Prompts once, then every reply token after token, `sampling.batch` of them side by side."""
    sampled, model = plan.sampled, plan.model
    assert sampled is not None
    per_record = len(plan.prompts) / len(plan.trees)
    mean, share = sum(plan.prompts) / len(plan.prompts), plan.records * per_record
    images = tuple(grid for work in plan.works for grid in work.grids)
    filling = forward_flops(model, Work(tokens=round(mean), pairs=round(mean**2 / 2))) * share
    filling += forward_flops(model, Work(grids=images)) * plan.share
    replies = sum(plan.streams.values())
    pairs = sampled.reply * (mean + sampled.reply / 2)
    decoding = forward_flops(model, Work(tokens=sampled.reply, pairs=round(pairs), scored=sampled.reply)) * float(
        replies
    )
    computing = filling.total / pace.flops + decoding.total / pace.decoding
    if pace.bandwidth is None:
        return computing
    steps = math.ceil(replies / sampled.replies) * sampled.reply
    slowest = max(model.parameters * plan.setup.weight / pace.bandwidth, model.text.layers * LAUNCH)
    return max(computing, filling.total / pace.flops + steps * slowest)


def _card(device: str) -> tuple[str, float]:
    import torch

    from sightline.train.timing import DENSE_BF16, peak_flops

    if torch.cuda.is_available():
        peak = peak_flops(torch.device("cuda" if device == "auto" else device))
        if peak is not None:
            return torch.cuda.get_device_name(), peak
    return "an H100", DENSE_BF16["H100"]


def _measured(threads: int) -> float:
    """FLOP/s of a matrix product of the size that small policies have."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(1024, 256), torch.randn(256, 512)
        best = math.inf
        for _ in range(20):
            started = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return 2 * 1024 * 256 * 512 / best
