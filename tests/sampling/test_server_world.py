"""Several processes on the same servers: one speaks to them, all know what came of it."""

from __future__ import annotations

import copy
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conversations import prompts
from fake_vllm import FakeVllm, Status, serving
from sightline.config.sampling import Sampling, Server
from sightline.errors import UserError
from sightline.policy.forward import PolicyModule
from sightline.policy.load import Policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.build import build_sampler

pytestmark = pytest.mark.parametrize("policy", ["qwen3_vl"], indirect=True, scope="session")


def twin(policy: Policy) -> Policy:
    adapter = type(policy.adapter)(copy.deepcopy(policy.model))
    return replace(policy, adapter=adapter, module=PolicyModule(adapter, policy.banned))


@dataclass
class Rank:
    """A process of two, as a thread."""

    rank: int
    meeting: threading.Barrier
    told: list[Any]
    size: int = 2

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        if self.is_main:
            self.told[:] = [value]
        self.meeting.wait(60)
        found = self.told[0]
        self.meeting.wait(60)
        return found


def both(work: Any) -> list[Any]:
    """Runs the work of both processes; what each returned or raised."""
    meeting, told, found = threading.Barrier(2), [], [None, None]

    def one(rank: int) -> None:
        try:
            found[rank] = work(Rank(rank, meeting, told))
        except UserError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def test_the_main_process_refreshes_for_all(policy: Policy, tmp_path: Path) -> None:
    with ExitStack() as stack:
        good = stack.enter_context(serving(FakeVllm(twin(policy))))
        bad = stack.enter_context(serving(FakeVllm(twin(policy))))
        bad.fault = lambda path, _: (_ for _ in ()).throw(Status(500)) if path == "/collective_rpc" else None

        def work(world: Rank) -> Any:
            own = twin(policy)
            server = Server(urls=(good.url, bad.url), timeout=20.0, retries=0)
            sampler = build_sampler(Sampling(server=server), own, tmp_path, world=world)
            stack.callback(sampler.close)
            with torch.no_grad():
                for parameter in own.model.parameters():
                    parameter.mul_(1.01)
            sampler.refresh(own)
            asked = [Request(prompts()[world.rank], (2,))]
            groups = sampler.sample(asked, SamplingSettings(max_new_tokens=4), seed=0, step=0)
            return len(groups[0]), sampler.metrics()["server/alive"], sampler.alarms()

        first, second = both(work)
        assert first == second == (2, 1.0, first[2])
        assert bad.url in first[2][0]
        assert good.calls.count("/collective_rpc") == 1
        assert [p.name for p in (tmp_path / "weights").iterdir()] == [good.version]


def test_what_goes_wrong_is_told_to_all(policy: Policy, tmp_path: Path) -> None:
    with ExitStack() as stack:
        fake = stack.enter_context(serving(FakeVllm(twin(policy))))

        def work(world: Rank) -> None:
            server = Server(urls=(fake.url,), refresh="none", timeout=20.0, retries=0)
            sampler = build_sampler(Sampling(server=server), twin(policy), tmp_path, world=world)
            stack.callback(sampler.close)
            sampler.refresh(policy)

        fake.fault = lambda path, _: (_ for _ in ()).throw(Status(404)) if path == "/v1/models" else None
        assert all(isinstance(error, UserError) and "404" in str(error) for error in both(work))
        fake.fault = lambda path, _: (_ for _ in ()).throw(Status(500)) if path == "/v1/models" else None
        assert all("no server is left" in str(error) for error in both(work))
