"""Scenarios that run alike in one process and in one of several; the tests of `tests/distributed` compare them.

    RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python tests/together.py OUT CHECKPOINT...

Each process writes what it found to OUT/RANK.pt, by name of the scenario.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from conftest import make_record
from sightline.config import Optim
from sightline.config.sections import Lora
from sightline.credit.config import AnchorConfig, FocusConfig, ObjectiveConfig
from sightline.interventions import Intervention
from sightline.language.parse import read
from sightline.language.prompts import prompt
from sightline.methods.base import Method, MethodConfig
from sightline.methods.probes import Contrast, RegionAttention
from sightline.objectives import Loss, LossBatch, LossOutputs, policy_loss
from sightline.policy.features import freeze_vision
from sightline.policy.load import Policy, load_policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.train.distributed import World, joined
from sightline.train.exchange import all_groups
from sightline.train.learner import Learner
from sightline.train.reference import FrozenCopy, keep_reference
from sightline.train.sharding import shard, whole
from sightline.types import Group, Score, Scores

PROCESSES = 2


class Looking(Method):
    """Reads attention again in the update, pulls it to the regions, and swaps images for a contrast."""

    def probes(self) -> tuple[Any, ...]:
        return (RegionAttention(in_update=True), Contrast(intervention=Intervention(kind="swap")))

    def loss(self, batch: LossBatch, outputs: LossOutputs) -> Loss:
        plain = policy_loss(batch, outputs, self.config.objective)
        seen = outputs.maps.values()
        pull = sum(((m.values.mean(0) * m.region).sum(-1) * m.weight).sum() for m in seen)
        return Loss(plain.total - 0.5 * pull, {**plain.terms, "pull": torch.as_tensor(pull).detach()})


def plain(**objective: Any) -> Method:
    return Method(MethodConfig(objective=ObjectiveConfig(**objective)))


# name: method, shapes of each record's images, how weights are shared, changes of the learner
PICTURES = (((96, 64),), ((64, 64),), ((64, 96), (32, 64)))
SCENARIOS: dict[str, tuple[Method, tuple, str, dict[str, Any]]] = {
    "uneven": (plain(kl=0.05), PICTURES, "fsdp", {"token_budget": 64}),
    "copies": (plain(kl=0.05), PICTURES, "ddp", {"token_budget": 64}),
    "no groups": (plain(), PICTURES[:1], "fsdp", {}),
    "no images": (plain(normalisation="sequence"), (PICTURES[0], ()), "fsdp", {}),
    "nobody has images": (plain(), ((), ()), "fsdp", {}),
    "inner steps": (plain(), (*PICTURES, ()), "fsdp", {"optim": Optim(lr=1e-4, clip_norm=0.1, inner_steps=2)}),
    "read-out": (Looking(), PICTURES, "fsdp", {"token_budget": 64}),
    "frozen tower": (plain(), (PICTURES[0], ()), "fsdp", {"frozen": True}),
    "adapter": (plain(kl=0.05), PICTURES, "ddp", {"lora": Lora(rank=4)}),
    "adapter on shares": (plain(kl=0.05), (PICTURES[0], ()), "fsdp", {"lora": Lora(rank=4)}),
}  # fmt: skip


def groups_of(policy: Policy, method: Method, shapes: Sequence[tuple]) -> list[Group]:
    """Groups of two streams with scores that depend on what was said; short and longer replies."""
    found = []
    for i, sizes in enumerate(shapes):
        record = make_record(f"r{i}", sizes, i)
        asked = [Request(prompt(record, s, s, "compact"), (n,)) for s, n in (("grounded", 2), ("textual", 3))]
        settings = SamplingSettings(max_new_tokens=4 + 3 * i)
        sampled = [r for g in LocalSampler(policy).sample(asked, settings, seed=1, step=0) for r in g]
        readings = tuple(read(r.text, policy.frame, [image.size for image in record.images]) for r in sampled)
        scores = tuple(Scores(terms={"r": Score(float(int(r.ids.sum()) % 7))}) for r in sampled)
        group = Group(record=record, rollouts=tuple(sampled), readings=readings, scores=scores)
        found.append(replace(group, credits=method.credit(group)))
    return found


def full(value: torch.Tensor) -> torch.Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def watch(learner: Learner) -> list[dict[str, torch.Tensor]]:
    """The gradients of every optimiser step from now on, whole, before they are clipped."""
    seen: list[dict[str, torch.Tensor]] = []
    step = learner.optimiser.apply
    names = {id(p): n for n, p in learner.policy.model.named_parameters()}

    def watched(**how: Any) -> float:
        pairs = zip(learner.optimiser.weights.parameters, learner.optimiser.weights.masters, strict=True)
        seen.append({names[id(p)]: full(m.grad) for p, m in pairs if m.grad is not None})
        return step(**how)

    learner.optimiser.apply = watched  # type: ignore[method-assign]
    return seen


def update(folder: Path, world: World, name: str) -> dict[str, Any]:
    """One update on given rollouts: gradients, metrics, weights."""
    method, shapes, how, changes = SCENARIOS[name]
    torch.manual_seed(0)
    given: dict[str, Any] = {"optim": Optim(lr=1e-4, clip_norm=1e6), "token_budget": 4096, **changes}
    policy = load_policy(folder, checkpointing=True, lora=given.pop("lora", None))
    if given.pop("frozen", False):
        freeze_vision(policy, 64.0)
    groups = groups_of(policy, method, shapes)
    reference = keep_reference(policy, lambda: policy) if method.config.objective.kl else None
    if how == "fsdp" and world.size > 1:
        if isinstance(reference, FrozenCopy):
            kept = replace(policy, adapter=reference.module.adapter, module=reference.module)
            shard(kept, world, masters=False)
        shard(policy, world)
    learner = Learner(policy, given.pop("optim"), steps=4, seed=3, world=world, **given)
    learner.reference = reference
    images = [image for group in groups for image in group.record.images]
    own = world.part(groups)
    if method.probes() or learner.optim.inner_steps > 1:
        own = learner.measure(own, method.probes(), 0, others=images)
    gradients = watch(learner)
    metrics = learner.step(all_groups(world, own), method, 0).metrics
    with whole(policy):
        weights = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    return {"gradients": gradients, "metrics": metrics, "weights": weights}


def anchoring(folder: Path, world: World, config: AnchorConfig) -> dict[str, Any]:
    """Two steps of Anchoring: the token's row alone, then all; a reply is there for one record of three."""
    from types import SimpleNamespace

    from sightline.policy.focus import add_focus_token
    from sightline.train.anchoring import _losses, _row_only, lesson_batches
    from sightline.train.lessons import lesson

    torch.manual_seed(0)
    focus = FocusConfig()
    policy, start = load_policy(folder, checkpointing=True), load_policy(folder)
    for one in (policy, start):
        add_focus_token(one, focus)
        if world.size > 1:
            shard(one, world, masters=False)
    start.model.requires_grad_(False)
    learner = Learner(policy, Optim(lr=1e-4, clip_norm=1e6, weight_decay=0.1), steps=4, token_budget=64, world=world)
    records = [make_record(f"a{i}", sizes, i) for i, sizes in enumerate(PICTURES)]
    asked = [prompt(r, "textual", "textual", "compact", forced_prefix=focus.prefix) for r in records]
    texts = ["<think> red</think>", None, None]
    lessons = [lesson(policy, p, t, config, focus) for p, t in zip(asked, texts, strict=True)]
    run: Any = SimpleNamespace(policy=policy, learner=learner, world=world, start_policy=lambda: start)
    gradients, metrics, done = watch(learner), {}, []
    batches = lesson_batches(policy, world.part(lessons), 64)
    has_text = config.w_lm > 0

    def losses() -> Any:
        return _losses(run, batches, config, metrics, has_text)

    with _row_only(policy, focus) as masks:
        done.append(learner.descend(losses(), 0, lr=1e-3, decays=False, masks=masks, is_partial=not has_text))
    done.append(learner.descend(losses(), 1, is_partial=not has_text))
    with whole(policy):
        weights = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    metrics = world.total(metrics) | {f"{k}/{i}": v for i, row in enumerate(done) for k, v in row.items()}
    return {"gradients": gradients, "metrics": metrics, "weights": weights}


ANCHORING = {
    "attention": AnchorConfig(layers=(0, 1), lm_target="self_distilled", w_lm=0.0, sink_exclude=True),
    "attention and words": AnchorConfig(layers=(0, 1), lm_target="self_distilled", w_kl=0.1),
}


ASKED = {"qwen3_vl": (*SCENARIOS, *ANCHORING), "qwen2_5_vl": ("uneven", "no images", "read-out", "attention and words")}
"""What is tried with the checkpoint of each family."""


def found(folder: Path, world: World, name: str) -> dict[str, Any]:
    """One scenario."""
    return update(folder, world, name) if name in SCENARIOS else anchoring(folder, world, ANCHORING[name])


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **more}


def start(words: Sequence[str], **options: Any) -> list[subprocess.Popen]:
    """The same command as each of several processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *words], env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **meeting), **options
        )
        for rank in range(PROCESSES)
    ]


def main() -> None:
    torch.set_num_threads(1)
    out, folders = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    with joined() as world:
        results = {(f.name, name): found(f, world, name) for f in folders for name in ASKED[f.name]}
        torch.save(results, out / f"{world.rank}.pt")


if __name__ == "__main__":
    main()
