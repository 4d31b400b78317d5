"""Where a training step spends its time, and how much of the card's arithmetic it uses.

On CUDA the host runs ahead of the device, so a clock on the host would book the work of one phase to the next. Phases
are therefore bounded by events in the device's own queue, which cost nothing while the step runs; they are read once,
at its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sightline.policy.architecture import architecture
from sightline.policy.flops import Trained, Work, update_flops

if TYPE_CHECKING:
    from sightline.policy.batch import Batch
    from sightline.policy.load import Policy

__all__ = ["Phases", "Usage", "peak_flops"]

DENSE_BF16 = {
    "B200": 2250e12, "H200": 989e12, "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12,
    "H20": 148e12, "A100": 312e12, "A800": 312e12, "A40": 150e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "RTX PRO 6000": 503e12, "RTX 6000 Ada": 364e12, "RTX 5090": 210e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}  # fmt: skip
"""Multiplications and additions per second in bf16 with fp32 sums, without sparsity, by part of the card's name, as
the vendor's data sheets give them; the first that fits counts."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a CUDA device, FLOP/s; None where it is not known, and on every other device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in DENSE_BF16.items() if part in name), None)


class Phases:
    """Seconds of each phase of a step; a phase that runs several times adds up, and phases may follow at any order.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Books what happens within to `phase`."""
        begin = self._mark()
        try:
            yield
        finally:
            self._spans.append((phase, begin, self._mark()))

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds so far by phase. On CUDA it waits for the last phase to end."""
        found: dict[str, float] = {}
        for phase, begin, end in self._spans:
            if self._is_cuda:
                end.synchronize()
            spent = begin.elapsed_time(end) / 1e3 if self._is_cuda else end - begin
            found[phase] = found.get(phase, 0.0) + spent
        return found


class Usage:
    """Model FLOPs of an update over what the card could have done in the same time (MFU).

    Counted are unique tree tokens, visible pairs, images that are encoded and scored tokens, forward and backward,
    without anything that is computed a second time. Only where the peak of the card is known.

    Args:
        policy: the policy that is trained.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._peak, self._model = peak_flops(policy.device), architecture(policy.model.config)
        self._work = Work()

    def add(self, batch: Batch) -> None:
        """Counts one micro-batch. Images whose features were kept are not encoded."""
        if self._peak is not None:
            encoded = [] if batch.pixels is None or batch.grids is None else batch.grids.tolist()
            grids = tuple((int(t), int(h), int(w)) for t, h, w in encoded)
            self._work += Work(tokens=batch.tokens, pairs=batch.pairs, scored=len(batch.target), grids=grids)

    def metrics(self, seconds: float) -> dict[str, float]:
        """MFU of what was counted since the last call, if it took so long on this card."""
        work, self._work = self._work, Work()
        if self._peak is None or seconds <= 0:
            return {}
        flops = update_flops(self._model, work, self._trained()).total
        return {"update/mfu": flops / seconds / self._peak}

    def _trained(self) -> Trained:
        own = {n: p for n, p in self._policy.model.named_parameters() if p.requires_grad}
        factors = {n: p for n, p in own.items() if ".lora_A." in n}
        weights = [n for n in own if ".lora_" not in n]
        ranks = {int(p.shape[0]) for p in factors.values()}
        adapted = {n.split(".lora_A.")[0].rpartition(".")[2] for n in factors if ".visual." not in n}
        return Trained(
            text=any(".layers." in n for n in weights), vision=any(".visual." in n for n in weights),
            rank=max(ranks, default=0), targets=tuple(n for n in self._model.text.matrices if n in adapted),
            adapts_vision=any(".visual." in n for n in factors),
            embeddings=any("embed_tokens" in n for n in weights),
        )  # fmt: skip
