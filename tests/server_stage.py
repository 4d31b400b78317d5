"""Fake servers, the sampler on them, and what tests of it share."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversations import prompts
from fake_vllm import FakeVllm, serving
from sightline.config.sampling import Sampling, Server
from sightline.policy.load import Policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.build import build_sampler
from sightline.sampling.server import ServerSampler
from sightline.types import Rollout

SETTINGS = SamplingSettings(temperature=0.8, max_new_tokens=8)
GENERATE = "/inference/v1/generate"
ONE_FAMILY = pytest.mark.parametrize("policy", ["qwen3_vl"], indirect=True, scope="session")
"""For what does not depend on the model."""


def twin(policy: Policy) -> Policy:
    """The same weights in other tensors."""
    from sightline.policy.forward import PolicyModule

    adapter = type(policy.adapter)(copy.deepcopy(policy.model))
    return replace(policy, adapter=adapter, module=PolicyModule(adapter, policy.banned))


class Stage:
    """Fake servers and the sampler on them."""

    def __init__(self, policy: Policy, folder: Path, stack: ExitStack) -> None:
        self.policy, self.folder, self.stack = policy, folder, stack
        self.fakes: list[FakeVllm] = []
        self.told: list[str] = []

    def serve(self, **options: Any) -> FakeVllm:
        self.fakes.append(self.stack.enter_context(serving(FakeVllm(twin(self.policy), **options))))
        return self.fakes[-1]

    def sampler(self, *, policy: Policy | None = None, urls: Sequence[str] = (), **options: Any) -> ServerSampler:
        given = {"timeout": 20.0, "retries": 1, "concurrency": 4, **options}
        server = Server(urls=tuple(urls or [fake.url for fake in self.fakes]), **given)
        found = build_sampler(Sampling(server=server), policy or self.policy, self.folder)
        assert isinstance(found, ServerSampler)
        found.pool._tell = found.refresher._tell = self.told.append
        self.stack.callback(found.close)
        return found


def ask(sampler: ServerSampler, n: int = 2, settings: SamplingSettings = SETTINGS) -> list[list[Rollout]]:
    return sampler.sample([Request(p, (n,)) for p in prompts()], settings, seed=0, step=0)


def same(a: Sequence[Sequence[Rollout]], b: Sequence[Sequence[Rollout]]) -> bool:
    return all(
        np.array_equal(x.ids, y.ids) and x.branch == y.branch
        for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)
    )  # fmt: skip


def moved(policy: Policy, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def nudged(policy: Policy, by: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(by * parameter.std().nan_to_num(0.0) * torch.randn(parameter.shape, generator=generator))


def generating(fault: Any, *, after: int = 1) -> Any:
    """The fault on the requests after the first ones, which the probe takes."""
    lock, seen = threading.Lock(), [0]

    def wrapped(path: str, body: dict[str, Any]) -> Any:
        if path != GENERATE or not body:
            return None
        with lock:
            seen[0] += 1
            if seen[0] <= after:
                return None
        return fault(path, body)

    return wrapped
