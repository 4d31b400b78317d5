"""A run: policy, learner, method, data, judge and archive, opened fresh or from the newest checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UserError
from sightline.language.parse import read_turns
from sightline.language.prompts import prompt
from sightline.train.distributed import World
from sightline.train.sharding import full_state, is_sharded, shard, sharing, whole
from sightline.types import Group, Prompt, Record, Rollout

if TYPE_CHECKING:
    from sightline.answers.judge import Judge
    from sightline.archive import Archive
    from sightline.config import Recipe
    from sightline.data.stream import DataStream
    from sightline.geometry.frames import Frame
    from sightline.methods.base import Context, Method, Stage, Stream
    from sightline.policy.load import Policy
    from sightline.policy.prefetch import Prefetch
    from sightline.sampling.base import SamplingSettings, TrainingSampler
    from sightline.train.checkpoint import Checkpoints, Saved
    from sightline.train.learner import Learner

__all__ = ["Run", "gather", "open_run", "policy_of", "sample", "shown_prompt"]


@dataclass(kw_only=True)
class Run:
    """Everything the loop holds. State that must survive a kill goes through `train/saving.py`."""

    recipe: Recipe
    folder: Path
    policy: Policy
    method: Method
    learner: Learner
    sampler: TrainingSampler
    settings: SamplingSettings
    data: DataStream
    judge: Judge
    archive: Archive
    checkpoints: Checkpoints
    evaluation_records: Sequence[Record]
    step: int = 0
    is_finished: bool = False
    best: float = float("-inf")
    is_best: bool = False
    history: list[Mapping[str, float]] = field(default_factory=list)
    judged: dict[str, float] = field(default_factory=dict)
    start: Policy | None = None
    prefetch: Prefetch = field(init=False)

    def __post_init__(self) -> None:
        from sightline.policy.prefetch import Prefetch

        wanted, is_cuda = self.recipe.data.workers, self.policy.device.type == "cuda"
        self.prefetch = Prefetch(self.policy.pixels, (4 if is_cuda else 0) if wanted is None else wanted)

    world: World = field(default_factory=World)
    followed: int = -1

    @property
    def stages(self) -> tuple[tuple[Stage, int], ...]:
        """The method's stages, each with the step at which it ends."""
        ends, at = [], 0
        for stage in self.method.stages():
            at += self._length(stage)
            ends.append((stage, at))
        return tuple(ends)

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.stages[-1][1]

    @property
    def stage(self) -> Stage:
        """The stage of the step that runs now."""
        return next(stage for stage, end in self.stages if self.step < end)

    @property
    def stage_start(self) -> int:
        """The first step of the stage that runs now."""
        return max((end for _, end in self.stages if end <= self.step), default=0)

    def enter_stage(self) -> None:
        """Tells the learner which stage the step belongs to; at its first step, a stage may begin anew."""
        stages, stage = self.stages, self.stage
        fresh = [0, *(end - self._length(s) for s, end in stages if s.restarts), self.steps]
        first = max(at for at in fresh if at <= self.step)
        self.learner.schedule(first, min(at for at in fresh if at > self.step) - first, stage.lr)
        if stage.restarts and self.step == self.stage_start:
            self.learner.restart()
        if stage.anchor is None:
            self.start = None  # no later stage needs it

    def start_policy(self) -> Policy:
        """The policy that the run started from, as it was, for stages that ask it."""
        if self.start is None:
            from sightline.policy.load import load_policy

            self.start = policy_of(self.recipe, self.method, None, load_policy, self.world)
            self.start.model.eval()
            if is_sharded(self.policy.module):
                shard(self.start, self.world, masters=False)
            self.start.model.requires_grad_(False)
        return self.start

    def _length(self, stage: Stage) -> int:
        return self.recipe.train.steps if stage.steps is None else stage.steps

    def context(self) -> Context:
        from sightline.methods.base import Context

        return Context(
            judge=self.judge, archive=self.archive, frame=self.policy.frame, step=self.step, pieces=self.policy.pieces
        )

    @property
    def is_logged(self) -> bool:
        """Whether the report keeps Groups of the step that runs now."""
        every = self.recipe.train.log_groups_every
        return every > 0 and (self.step % every == 0 or self.step == self.steps - 1)

    def is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def scoring_metrics(self) -> dict[str, float]:
        """What the judge did in this step, the archive, and the sampler."""
        stats = self.world.total({name: float(value) for name, value in self.judge.stats().items()})
        since = {f"judge/{name}": value - self.judged.get(name, 0.0) for name, value in stats.items()}
        self.judged = stats
        archive = {f"archive/{name}": float(value) for name, value in self.archive.stats().items()}
        return {**since, **archive, **self.sampler.metrics()}

    def follow(self) -> None:
        """Lets the sampler have the present weights; every process calls it before something is sampled."""
        if self.followed != self.step:
            self.sampler.refresh(self.policy)
            self.followed = self.step

    def manifest(self) -> dict[str, Any]:
        """What is needed to know what ran: method, model, frame, seed, versions."""
        import torch
        import transformers

        import sightline

        config = self.method.config
        return {
            "method": config.name or self.recipe.method["name"],
            "preset": getattr(config, "preset", None),
            "model": self.recipe.model.name,
            "frame": self.policy.frame.describe(),
            "seed": self.recipe.train.seed,
            "steps": self.steps,
            "threads": torch.get_num_threads(),
            "device": str(self.policy.device),
            "processes": self.world.size,
            "versions": {
                "sightline": sightline.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }


@contextmanager
def open_run(recipe: Recipe, folder: Path, world: World | None = None) -> Iterator[Run]:
    """Opens what `recipe` names; user input is checked before weights load.

    Args:
        recipe: the resolved recipe, without arms.
        folder: the run folder.
        world: the processes of the run; each opens its own part.

    Raises:
        UserError: data, judge or model cannot be opened, or the checkpoint does not fit the data.
    """
    import torch

    from sightline.answers.judge import build_judge
    from sightline.config import resolved_yaml
    from sightline.data.sources import open_source
    from sightline.data.stream import DataStream
    from sightline.methods import load_method
    from sightline.sampling.base import SamplingSettings
    from sightline.sampling.build import build_sampler
    from sightline.train.checkpoint import Checkpoints, write_atomically
    from sightline.train.saving import restore
    from sightline.train.scoring import archive_for

    world = world or World()
    torch.set_num_threads(recipe.model.threads)
    torch.manual_seed(recipe.train.seed)
    method = load_method(recipe.method)
    data, evaluation_records = _data(recipe, open_source, DataStream), _evaluation_records(recipe, open_source)
    judge = build_judge(recipe.judge_config, run_folder=folder, writes_cache=world.is_main)
    checkpoints = Checkpoints(folder, recipe.train.keep)
    with world.agreeing():
        saved = checkpoints.latest() if world.is_main else None
    saved = world.broadcast(saved)
    policy, learner = _trained(recipe, method, saved, world)
    run = Run(
        recipe=recipe, folder=folder, policy=policy, method=method, learner=learner, data=data, judge=judge,
        sampler=build_sampler(
            recipe.sampling, policy, folder, world=world, state=lambda policy: full_state(policy, world)
        ),
        archive=archive_for(method),
        settings=SamplingSettings(
            temperature=recipe.sampling.temperature, top_p=recipe.sampling.top_p,
            max_new_tokens=recipe.sampling.max_new_tokens,
        ),
        checkpoints=checkpoints, evaluation_records=evaluation_records, world=world,
    )  # fmt: skip
    if saved is not None:
        restore(run, saved)
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "recipe.yaml", resolved_yaml(recipe))
    try:
        yield run
    finally:
        judge.close()
        run.sampler.close()
        run.prefetch.close()


def _trained(recipe: Recipe, method: Method, saved: Saved | None, world: World) -> tuple[Policy, Learner]:
    """The policy, its weights shared out over the processes, and the learner with its reference."""
    from sightline.policy.hub import checkpoint_folder
    from sightline.policy.load import adapter_base, load_policy
    from sightline.train.learner import Learner
    from sightline.train.reference import keep_reference

    reference = None
    with world.agreeing():
        policy = policy_of(recipe, method, saved.folder if saved else None, load_policy, world)
        if method.config.objective.kl > 0:
            reference = keep_reference(
                policy,
                lambda: policy if saved is None else policy_of(recipe, method, None, load_policy, world),
                recipe.model.reference,
                is_adapted=adapter_base(checkpoint_folder(recipe.model.name)) is not None,
            )
        how = sharing(recipe.train.parallel, policy, world, states=recipe.optim.states)
    if how == "fsdp":
        copy = getattr(reference, "module", None)
        if copy is not None and next(copy.parameters()).device == policy.device:
            shard(replace(policy, adapter=copy.adapter, module=copy), world, masters=False)
        shard(policy, world, masters=recipe.model.masters == "fp32")
    total = sum(recipe.train.steps if s.steps is None else s.steps for s in method.stages())
    learner = Learner(
        policy, recipe.optim, steps=total, temperature=recipe.sampling.temperature,
        token_budget=recipe.train.token_budget, shares=recipe.model.attention == "tree", seed=recipe.train.seed,
        world=world, masters=recipe.model.masters,
        importance_cap=recipe.sampling.server.importance_cap if recipe.sampling.server else None,
    )  # fmt: skip
    learner.reference = reference
    return policy, learner


def policy_of(recipe: Recipe, method: Method, checkpoint: Path | None, load_policy: Any, world: World) -> Policy:
    """The policy of a checkpoint, or the one to start from, with the tokens that the method's stages need."""
    from sightline.policy.compiled import compile_blocks
    from sightline.policy.focus import add_focus_token
    from sightline.train.possible import check_start
    from sightline.train.trained import choose_trained

    model, device = recipe.model, world.device(recipe.model.device)
    check_start(recipe, checkpoint or model.name, device)
    policy = load_policy(
        checkpoint or model.name, dtype=model.dtype, device=device,
        checkpointing=model.checkpointing, min_pixels=model.min_pixels, max_pixels=model.max_pixels,
        lora=model.lora,
    )  # fmt: skip
    tokens = [add_focus_token(policy, stage.focus) for stage in method.stages() if stage.focus is not None]
    choose_trained(policy, model, tokens)
    if model.compile:
        compile_blocks(policy.adapter)
    return policy


def _source(recipe: Recipe, name: str, split: str, open_source: Any, **changes: Any) -> Any:
    d = recipe.data
    given = {
        "seed": recipe.train.seed,
        "reader": d.reader,
        "image_root": d.image_root,
        "frame": d.frame,
        "types": d.types,
    }
    return open_source(name, split=split, **{**given, **changes})


def _data(recipe: Recipe, open_source: Any, stream: type[DataStream]) -> DataStream:
    d = recipe.data
    strata = d.strata.model_dump() if d.strata else None
    source = _source(recipe, d.train, "train", open_source, limit=d.limit)
    return stream(source, recipe.train.seed, d.records_per_step, strata, shuffle=d.shuffle)


def _evaluation_records(recipe: Recipe, open_source: Any) -> list[Record]:
    """The first `evaluation.n` held-out records; scenes are made from the evaluation seed."""
    wanted = recipe.evaluation
    name = wanted.data or recipe.data.validation
    if name is None:
        return []
    source = _source(recipe, name, "validation", open_source, seed=wanted.seed)
    count = wanted.n if source.size is None else min(wanted.n, source.size)
    return [source.at(i) for i in range(count)]


def sample(run: Run, records: Sequence[Record]) -> list[Rollout]:
    """The Rollouts of every stream of every record, in that order."""
    from sightline.sampling.base import Request

    run.prefetch.start(image for record in records for image in record.images)
    asked = [(record, stream) for record in records for stream in run.method.streams(record)]
    rollouts: list[list[Rollout]] = [[] for _ in asked]
    by_settings: dict[SamplingSettings, list[int]] = {}
    for i, (_, stream) in enumerate(asked):
        by_settings.setdefault(_settings(run, stream), []).append(i)
    # entered once by every process, also by one without records or with other settings than the rest
    with whole(run.policy) if run.recipe.sampling.server is None else nullcontext():
        for settings, index in by_settings.items():
            streams = [asked[i][1] for i in index]
            shown = [shown_prompt(run, *asked[i]) for i in index]
            requests = [Request(p, stream.branches, stream.turns) for p, stream in zip(shown, streams, strict=True)]
            sampled = run.sampler.sample(requests, settings, seed=run.recipe.train.seed, step=run.step)
            for i, group in zip(index, sampled, strict=True):
                rollouts[i] = group
    return [rollout for group in rollouts for rollout in group]


def look_ahead(run: Run) -> None:
    """Lets worker threads begin with the images of the next step, while this one updates."""
    if run.prefetch.is_on and run.step + 1 < run.steps:
        run.prefetch.start(image for record in run.world.part(run.data.peek()) for image in record.images)


def _settings(run: Run, stream: Stream) -> SamplingSettings:
    """The recipe's, with what the stream changes in them. The learner scores every stream at one temperature."""
    found = replace(run.settings, **(stream.sampling or {}))
    if found.temperature != run.settings.temperature:
        raise UserError(
            f"stream {stream.name!r} asks for temperature {found.temperature:g}, but log-probs are scored at "
            f"{run.settings.temperature:g}", where="sampling.temperature", hint="set it for the whole run",
        )  # fmt: skip
    return found


def shown_prompt(run: Run, record: Record, stream: Stream) -> Prompt:
    """What one stream shows for one record."""
    policy, forced = run.policy, stream.forced_prefix
    return prompt(record, stream.name, stream.template, policy.style, forced_prefix=forced, frame=policy.frame)


def gather(records: Sequence[Record], rollouts: Sequence[Rollout], frame: Frame) -> list[Group]:
    """One Group per record, its Rollouts ordered by stream, then branch; each reply is read once."""
    own: dict[str, list[Rollout]] = {record.id: [] for record in records}
    for rollout in rollouts:
        own[rollout.record.id].append(rollout)
    groups = []
    for record in records:
        sizes = [image.size for image in record.images]
        readings = tuple(read_turns(_replies(r), frame, sizes, finish=r.finish) for r in own[record.id])
        groups.append(Group(record=record, rollouts=tuple(own[record.id]), readings=readings))
    return groups


def _replies(rollout: Rollout) -> list[str]:
    """What the policy said, turn by turn."""
    said = [turn.text for turn in rollout.turns if turn.role == "assistant"]
    return said if len(said) > 1 else [rollout.text]
