"""What the sampler relies on, asked of real servers: parity, exact refresh, turns, whole runs, death in mid-run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_record
from conversations import Crops, ends_often
from sightline.config.sampling import Sampling
from sightline.config.sampling import Server as Settings
from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.language.prompts import prompt
from sightline.policy.load import Policy, load_policy
from sightline.policy.save import save_policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.build import build_sampler
from sightline.sampling.server import ServerSampler
from sightline.sampling.server_refresh import learner_logprobs
from sightline.types import Rollout

pytestmark = pytest.mark.vllm

SETTINGS = SamplingSettings(temperature=1.0, max_new_tokens=24)
SIZES = {"one image": ((96, 64),), "two images": ((50, 90), (333, 47)), "no image": ()}


def requests(n: int = 4) -> list[Request]:
    records = [make_record(name, sizes, seed) for seed, (name, sizes) in enumerate(SIZES.items())]
    return [Request(prompt(r, s, s, "compact"), (n,)) for r in records for s in ("textual", "grounded")]


def sampler_on(urls: Sequence[str], policy: Policy, folder: Path, **options: object) -> ServerSampler:
    server = Settings(urls=tuple(urls), timeout=120.0, retries=1, **options)  # type: ignore[arg-type]
    found = build_sampler(Sampling(server=server), policy, folder)
    assert isinstance(found, ServerSampler)
    return found


def worst(policy: Policy, rollouts: Sequence[Rollout], temperature: float = 1.0) -> float:
    mine = learner_logprobs(policy, rollouts, temperature)
    return max(float(np.abs(r.logprobs - m).max()) for r, m in zip(rollouts, mine, strict=True))


def moved(policy: Policy, seed: int = 0) -> None:
    """Weights a long way off, vision tower included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            scale = 0.03 * float(parameter.float().std().nan_to_num(0.0))
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def said(groups: Sequence[Sequence[Rollout]]) -> list[tuple[list[int], list[float]]]:
    return [(r.ids.tolist(), r.logprobs.tolist()) for group in groups for r in group]


def agree(a: Sequence[Sequence[Rollout]], b: Sequence[Sequence[Rollout]]) -> float:
    """The largest difference of log-probs, where all ids are the same."""
    pairs = list(zip(said(a), said(b), strict=True))
    assert all(x[0] == y[0] for x, y in pairs)
    return max(float(np.abs(np.subtract(x[1], y[1])).max()) for x, y in pairs)


@pytest.mark.parametrize("api", ["tokens", "chat"])
def test_logprobs_are_the_learners(server, api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load_policy(server.model)
    sampler = sampler_on([server.url], policy, tmp_path, api=api)
    groups = sampler.sample(requests(), SETTINGS, seed=0, step=0)
    figures = {
        name: max(worst(policy, g) for g in groups if g[0].record.id == name) for name in SIZES
    }  # fmt: skip
    with capsys.disabled():
        print(f"\n{server.model} {api}: largest difference of a log-prob {figures}")
    assert max(figures.values()) < 1e-5
    assert agree(groups, sampler.sample(requests(), SETTINGS, seed=0, step=0)) == 0.0
    cold = SamplingSettings(temperature=0.6, max_new_tokens=24)
    assert max(worst(policy, g, 0.6) for g in sampler.sample(requests(), cold, seed=0, step=0)) < 2e-5
    greedy = SamplingSettings(temperature=0.0, max_new_tokens=24)
    assert max(worst(policy, g) for g in sampler.sample(requests(2), greedy, seed=0, step=0)) < 1e-5
    sampler.close()


def test_reload_is_exact(server, launch: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New weights answer as a server does that was started with them; the old ones as they did before."""
    policy = load_policy(server.model)
    sampler = sampler_on([server.url], policy, tmp_path / "a", refresh="folder")
    before = sampler.sample(requests(), SETTINGS, seed=0, step=0)
    moved(policy)
    sampler.refresh(policy)
    after = sampler.sample(requests(), SETTINGS, seed=0, step=0)
    assert max(worst(policy, g) for g in after) < 3e-5  # rounding: these weights have larger logits
    assert any(x[0] != y[0] for x, y in zip(said(before), said(after), strict=True))
    save_policy(policy, tmp_path / "moved")
    fresh = launch(str(tmp_path / "moved"))
    anew = sampler_on([fresh.url], policy, tmp_path / "b", refresh="none").sample(requests(), SETTINGS, seed=0, step=0)
    fresh.kill()
    back = load_policy(server.model)
    sampler.refresh(back)
    again = sampler.sample(requests(), SETTINGS, seed=0, step=0)
    figures = {"fresh load": agree(after, anew), "old weights back": agree(before, again)}
    with capsys.disabled():
        print(f"\n{server.model} reload: {figures}, seconds {sampler.metrics()['server/refresh_seconds']:.2f}")
    assert max(figures.values()) < 1e-6
    sampler.close()


def test_an_adapter_is_reloaded(server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load_policy(server.model, lora=Lora(rank=8, alpha=16))

    def train(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))

    sampler_on([server.url], load_policy(server.model), tmp_path / "base").refresh(load_policy(server.model))
    train(0)
    sampler = sampler_on([server.url], policy, tmp_path / "lora")
    first = sampler.sample(requests(), SETTINGS, seed=0, step=0)
    assert sampler.refresher.carrier.kind == "lora"
    train(1)
    sampler.refresh(policy)
    second = sampler.sample(requests(), SETTINGS, seed=0, step=0)
    figures = [max(worst(policy, g) for g in second)]
    whole = sampler_on([server.url], policy, tmp_path / "whole", refresh="folder")
    whole.refresh(policy)
    figures.append(agree(second, whole.sample(requests(), SETTINGS, seed=0, step=0)))
    sampler_on([server.url], load_policy(server.model), tmp_path / "base").refresh(load_policy(server.model))
    train(0)
    sampler.refresh(policy)
    figures.append(agree(first, sampler.sample(requests(), SETTINGS, seed=0, step=0)))
    with capsys.disabled():
        print(f"\n{server.model} adapter: learner, merged, first one back: {figures}")
    assert max(figures) < 2e-5
    assert said(first) != said(second)


def test_conversations_with_crops(server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every later turn is asked with the ids that were sampled; its crops arrive, and the server echoes them all."""
    policy = ends_often(load_policy(server.model), 60)
    sampler = sampler_on([server.url], policy, tmp_path)
    asked = [Request(r.prompt, (2, 2), Crops()) for r in requests()]
    everyone = [r for g in sampler.sample(asked, SETTINGS, seed=0, step=0) for r in g]
    assert max(len(r.turns) for r in everyone) >= 5
    assert max(len(r.images) for r in everyone) >= 2
    figure = worst(policy, everyone)
    with capsys.disabled():
        turns = sum(len(r.turns) for r in everyone)
        print(f"\n{server.model} conversations: {len(everyone)} of {turns} turns, largest difference {figure:.1e}")
    assert figure < 2e-5
    sampler.close()


# -- whole runs ------------------------------------------------------------------------------------------------------

RECIPE = """
method: {name: ivgr, streams: {grounded: {n: 4}, textual: {n: 4}}, objective: {kl: 0.0}}
model: {name: "embedded:qwen3_vl"}
data: {train: "scenes:easy", validation: "scenes:easy", types: [mark], records_per_step: 4}
sampling: {max_new_tokens: 48}
optim: {lr: 1.0e-4}
train: {steps: 2, seed: 5, checkpoint_every: 1, log_groups_every: 1, log_groups: 1}
evaluation: {n: 4, modes: [textual, turns]}
judge: {kind: offline, lexicon: "sightline.scenes.lexicon:SCENES"}
"""


def begin(folder: Path, urls: Sequence[str], *options: str) -> subprocess.Popen[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    words = ["train", str(recipe), "--out", str(folder / "run"), "--sampling.server.urls", ",".join(urls), *options]
    return subprocess.Popen(
        [sys.executable, "-m", "sightline", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def steps_of(folder: Path) -> list[dict]:
    events = folder / "run" / "events.jsonl"
    rows = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    return [row["metrics"] for row in rows if "server/alive" in row.get("metrics", {})]


def wait_for_steps(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(steps_of(folder)) < count:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def pair(launch: Callable) -> list:
    return [launch("embedded:qwen3_vl") for _ in range(2)]


def test_two_steps_of_ivgr(pair: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path, [server.url for server in pair])
    out, problems = run.communicate(timeout=400)
    assert run.returncode == 0, problems[-3000:]
    steps = steps_of(tmp_path)
    assert len(steps) == 2
    with capsys.disabled():
        shown = ("server/difference", "policy/engine_weight", "policy/engine_shift", "server/tokens_per_second")
        print(f"\ntwo steps of iVGR: {[{k: m[k] for k in shown} for m in steps]}")
    assert all(m["server/alive"] == 2 and m["server/difference"] < 1e-5 for m in steps)
    assert all(abs(m["policy/engine_weight"] - 1) < 1e-4 for m in steps)
    assert "verified on 2 servers" in problems + out


def test_one_of_two_is_killed_in_mid_run(pair: list, tmp_path: Path) -> None:
    """Its work moves to the other; started again, it is given the weights and takes part again."""
    run = begin(tmp_path, [server.url for server in pair], "--train.steps", "8", "--sampling.server.retries", "1")
    wait_for_steps(run, tmp_path, 1)
    pair[0].kill()
    wait_for_steps(run, tmp_path, 3)
    pair[0].start()
    _, problems = run.communicate(timeout=400)
    assert run.returncode == 0, problems[-3000:]
    alive = [m["server/alive"] for m in steps_of(tmp_path)]
    assert len(alive) == 8
    assert min(alive) == 1
    assert f"server {pair[0].url} is drained" in problems


def test_all_are_killed_and_the_same_command_goes_on(pair: list, tmp_path: Path) -> None:
    options = ("--train.steps", "6", "--sampling.server.retries", "0")
    run = begin(tmp_path, [pair[1].url], *options)
    wait_for_steps(run, tmp_path, 2)
    pair[1].kill()
    _, problems = run.communicate(timeout=400)
    assert run.returncode == 2
    last = problems.strip().splitlines()[-1]
    assert "no server is left" in last
    assert "type the same command again" in last
    done = len(steps_of(tmp_path))
    pair[1].start()
    run = begin(tmp_path, [pair[1].url], *options)
    _, problems = run.communicate(timeout=400)
    assert run.returncode == 0, problems[-3000:]
    assert done < 6 <= len(steps_of(tmp_path))


def test_a_server_of_another_model_is_refused(pair: list, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Told before anything is sampled from it."""
    sampler = sampler_on([pair[0].url], load_policy(checkpoints["qwen3_vl"]), tmp_path, refresh="none")
    with pytest.raises(UserError, match=r"differ from the learner's|read another prompt than ours"):
        sampler.sample(requests(1), SETTINGS, seed=0, step=0)
