"""Scenarios that run alike in one process and in one of several; the tests of `tests/distributed` compare them.

The processes are forked from one that has imported everything, so that a group of them costs little more than its work.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from conftest import make_record
from sightline.answers.offline import OfflineJudge
from sightline.config import Optim
from sightline.config.sections import Lora
from sightline.credit.config import AnchorConfig, FocusConfig, ObjectiveConfig
from sightline.interventions import Intervention
from sightline.language.parse import read
from sightline.language.prompts import prompt
from sightline.methods import load_method
from sightline.methods.base import Context, Method, MethodConfig
from sightline.methods.probes import Contrast, RegionAttention
from sightline.objectives import Loss, LossBatch, LossOutputs, policy_loss
from sightline.policy.features import freeze_vision
from sightline.policy.focus import add_focus_token
from sightline.policy.load import Policy, load_policy
from sightline.policy.lora import train_rows
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.train.anchoring import _losses, _row_only, lesson_batches
from sightline.train.distributed import World, joined
from sightline.train.exchange import all_groups
from sightline.train.learner import Learner
from sightline.train.lessons import lesson
from sightline.train.reference import FrozenCopy, keep_reference
from sightline.train.run import gather
from sightline.train.scoring import archive_for, credit, score
from sightline.train.sharding import shard, whole
from sightline.train.supervised import demonstration
from sightline.types import Box, Group, Record, Score, Scores

PROCESSES = 2
LORA = Lora(rank=4)


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


FAITHFUL = {
    "name": "faithful_mr1", "streams": {"textual": {"n": 4}}, "objective": {"kl": 0.05},
    "reward": {"anchor_coef_rl": 0.5}, "anchor": {"layers": [0, 1], "sink_exclude": False, "target": "coverage"},
    "score": {"layers": [0, 1]}, "cf": {"kind": "patch_blacken", "prob": 0.6, "patch": 8},
}  # fmt: skip

# name: method, shapes of each record's images, how weights are shared, changes of the learner
PICTURES = (((96, 64),), ((64, 64),), ((64, 96), (32, 64)))
SCENARIOS: dict[str, tuple[Method, tuple, str, dict[str, Any]]] = {
    "ivgr": (load_method({"name": "ivgr"}), PICTURES, "fsdp", {"token_budget": 64, "written": True}),
    "ivgr on copies": (load_method({"name": "ivgr"}), (*PICTURES, ()), "ddp", {"written": True}),
    "faithful_mr1": (load_method(FAITHFUL), PICTURES, "fsdp", {"token_budget": 64, "written": True}),
    "no groups": (plain(), PICTURES[:1], "fsdp", {}),
    "no images": (plain(normalisation="sequence"), (PICTURES[0], ()), "fsdp", {}),
    "nobody has images": (plain(), ((), ()), "fsdp", {}),
    "inner steps": (plain(), (*PICTURES, ()), "fsdp", {"optim": Optim(lr=1e-4, clip_norm=0.1, inner_steps=2)}),
    "read-out": (Looking(), PICTURES, "fsdp", {"token_budget": 64}),
    "frozen tower": (plain(), (PICTURES[0], ()), "fsdp", {"frozen": True}),
    "adapter": (plain(kl=0.05), PICTURES, "ddp", {"lora": LORA}),
    "adapter on shares": (plain(kl=0.05), (PICTURES[0], ()), "fsdp", {"lora": LORA}),
}  # fmt: skip


def groups_of(policy: Policy, method: Method, records: Sequence[Record]) -> list[Group]:
    """Groups of two streams with scores that depend on what was said; short and longer replies."""
    found = []
    for i, record in enumerate(records):
        asked = [Request(prompt(record, s, s, "compact"), (n,)) for s, n in (("grounded", 2), ("textual", 3))]
        settings = SamplingSettings(max_new_tokens=4 + 3 * i)
        sampled = [r for g in LocalSampler(policy).sample(asked, settings, seed=1, step=0) for r in g]
        readings = tuple(read(r.text, policy.frame, [image.size for image in record.images]) for r in sampled)
        scores = tuple(Scores(terms={"r": Score(float(int(r.ids.sum()) % 7))}) for r in sampled)
        group = Group(record=record, rollouts=tuple(sampled), readings=readings, scores=scores)
        found.append(replace(group, credits=method.credit(group)))
    return found


def written_groups(policy: Policy, method: Method, records: Sequence[Record]) -> list[Group]:
    """Replies with boxes, right and wrong, in the streams of the method; not the same for each record."""
    rollouts = []
    for i, record in enumerate(records):
        for stream in method.streams(record):
            shown = prompt(record, stream.name, stream.template, "compact", forced_prefix=stream.forced_prefix)
            texts = replies(policy, record)
            rollouts += [demonstration(policy, shown, [t], j) for j, t in enumerate(texts[i:] + texts[:1])]
    return gather(records, rollouts, policy.frame)


def replies(policy: Policy, record: Record) -> list[str]:
    boxes = [Box(8.0, 10.0, 40.0, 44.0), Box(2.0, 4.0, 30.0, 40.0)]
    near, off = [policy.frame.write(box, record.images[0].size) for box in boxes] if record.images else ("", "")
    return [
        f"<think> The red square{near}. The mark on it is green.</think><answer> green</answer>",
        f"<think> The red square{off}. The mark on it is red.</think><answer> red</answer>",
        "<think> The red square is at the top left. The mark on it is green.</think><answer> green</answer>",
        "green",
    ]


def credited(learner: Learner, method: Method, groups: Sequence[Group], world: World) -> list[Group]:
    """All groups, each measured, scored and credited by the process that has it."""
    policy, images = learner.policy, [image for group in groups for image in group.record.images]
    own = learner.measure(world.part(groups), method.probes(), 0, others=images)
    context = Context(
        judge=OfflineJudge(), archive=archive_for(method), frame=policy.frame, step=0, pieces=policy.pieces
    )  # fmt: skip
    found = credit(method, score(method, own, context, world=world), world=world)
    assert any((c.advantage * c.weight).any() for g in found for c in g.credits), "there is nothing to learn"
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


def prepared(folder: Path, lora: Lora | None, focus: FocusConfig | None) -> Policy:
    policy = load_policy(folder, checkpointing=True, lora=lora)
    if focus is not None:
        token = add_focus_token(policy, focus)
        if lora is not None:
            train_rows(policy, [token])
    return policy


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    with whole(policy):
        return {n: p.detach().clone() for n, p in policy.model.named_parameters()}


def update(folder: Path, world: World, name: str) -> dict[str, Any]:
    """One update on given rollouts: gradients, metrics, weights."""
    method, shapes, how, changes = SCENARIOS[name]
    torch.manual_seed(0)
    given: dict[str, Any] = {"optim": Optim(lr=1e-4, clip_norm=1e6), "token_budget": 4096, **changes}
    focus = next((stage.focus for stage in method.stages() if stage.focus is not None), None)
    policy = prepared(folder, given.pop("lora", None), focus)
    if given.pop("frozen", False):
        freeze_vision(policy, 64.0)
    is_written = given.pop("written", False)
    records = [make_record(f"r{i}", sizes, i) for i, sizes in enumerate(shapes)]
    groups = written_groups(policy, method, records) if is_written else groups_of(policy, method, records)
    reference = keep_reference(policy, lambda: policy) if method.config.objective.kl else None
    if how == "fsdp" and world.size > 1:
        if isinstance(reference, FrozenCopy):
            kept = replace(policy, adapter=reference.module.adapter, module=reference.module)
            shard(kept, world, masters=False)
        shard(policy, world)
    learner = Learner(policy, given.pop("optim"), steps=4, seed=3, world=world, **given)
    learner.reference = reference
    if is_written:
        groups = credited(learner, method, groups, world)
    else:
        images = [image for group in groups for image in group.record.images]
        own = world.part(groups)
        if method.probes() or learner.optim.inner_steps > 1:
            own = learner.measure(own, method.probes(), 0, others=images)
        groups = all_groups(world, own)
    gradients = watch(learner)
    metrics = dict(learner.step(groups, method, 0).metrics)
    metrics |= {f"{g.record.id}/{i}": s.total for g in groups for i, s in enumerate(g.scores)}
    return {"gradients": gradients, "metrics": metrics, "weights": weights_of(policy)}


def anchoring(folder: Path, world: World, name: str) -> dict[str, Any]:
    """Two steps of Anchoring: the token's row alone, then all; a reply is there for one record of three."""
    config, how, lora = ANCHORING[name]
    torch.manual_seed(0)
    focus = FocusConfig()
    policy, start = (prepared(folder, lora, focus) for _ in range(2))
    if how == "fsdp" and world.size > 1:
        shard(policy, world)
        shard(start, world, masters=False)
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

    before = weights_of(policy)
    with _row_only(policy, focus) as masks:
        done.append(learner.descend(losses(), 0, lr=1e-3, decays=False, masks=masks, is_partial=not has_text))
    rows = {n: (p != before[n]).any(-1).nonzero().flatten().tolist() for n, p in weights_of(policy).items()}
    done.append(learner.descend(losses(), 1, is_partial=not has_text))
    metrics = world.total(metrics) | {f"{k}/{i}": v for i, row in enumerate(done) for k, v in row.items()}
    rows = {n: changed for n, changed in rows.items() if changed}
    return {"gradients": gradients, "metrics": metrics, "weights": weights_of(policy), "rows": rows}


WITHOUT_WORDS = AnchorConfig(layers=(0, 1), lm_target="self_distilled", w_lm=0.0, sink_exclude=True)
WITH_WORDS = AnchorConfig(layers=(0, 1), lm_target="self_distilled", w_kl=0.1)
ANCHORING: dict[str, tuple[AnchorConfig, str, Lora | None]] = {
    "attention": (WITHOUT_WORDS, "fsdp", None),
    "attention and words": (WITH_WORDS, "fsdp", None),
    "attention, adapter": (WITHOUT_WORDS, "ddp", LORA),
    "attention and words, adapter on shares": (WITH_WORDS, "fsdp", LORA),
}


ASKED = {
    "qwen3_vl": (*SCENARIOS, *ANCHORING),
    "qwen2_5_vl": ("ivgr", "faithful_mr1", "no images", "attention and words"),
}
"""What is tried with the checkpoint of each family."""
OF_THREE = ("ivgr on copies", "adapter on shares", "attention and words")
"""What is tried by three processes, of which some have fewer groups than others, or none."""


def found(folder: Path, world: World, name: str) -> dict[str, Any]:
    """One scenario."""
    return update(folder, world, name) if name in SCENARIOS else anchoring(folder, world, name)


def scenarios(out: Path, folders: Sequence[Path], names: Sequence[str] | None = None) -> None:
    """Work of one process: every scenario, or those named, into OUT/RANK.pt."""
    torch.set_num_threads(1)
    with joined() as world:
        results = {(f.name, name): found(f, world, name) for f in folders for name in names or ASKED[f.name]}
        torch.save(results, out / f"{world.rank}.pt")


def command(words: Sequence[str]) -> int:
    """Work of one process: `sightline WORDS`."""
    from sightline.cli import main

    return main(list(words))


@dataclass
class Processes:
    """Several processes of one run.

    Attributes:
        said: where what each of them prints goes, by rank.
    """

    processes: Sequence[BaseProcess]
    said: list[Path]

    def wait(self, timeout: float = 300.0) -> list[int | None]:
        """Exit codes by rank; None of one that still runs."""
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]

    def words(self) -> list[str]:
        """What each of them printed."""
        return [path.read_text() for path in self.said]


@contextmanager
def started(
    folder: Path, work: Callable[..., int | None], *given: Any, processes: int = PROCESSES
) -> Iterator[Processes]:
    """The same work in each of several processes of one run; what still runs at the end of the block is killed.

    Args:
        folder: where they work, look for modules and print.
        work: what each does; its result is the exit code.
        given: arguments of `work`.
        processes: how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["together", "peft", "sightline.train.loop", "sightline.report.reporter"])
    said = [folder / f"said-{rank}.txt" for rank in range(processes)]
    begun = [
        context.Process(target=_one, args=(rank, processes, port, folder, said[rank], work, given))
        for rank in range(processes)
    ]
    for process in begun:
        process.start()
    try:
        yield Processes(begun, said)
    finally:
        for process in begun:
            process.kill()
            process.join()


def _one(
    rank: int, size: int, port: str, folder: Path, said: Path, work: Callable[..., int | None], given: tuple[Any, ...]
) -> None:
    os.environ |= environment(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(work(*given) or 0)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **more}
