"""What the probes look at: the parts that a run of the recipe would have, each opened once, when first asked for."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.doctor.rows import DataFile
from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.methods.base import Method, Stream
    from sightline.policy.load import Policy
    from sightline.policy.memory import Memory
    from sightline.sampling.base import Request, Sampler, SamplingSettings
    from sightline.types import Prompt, Record

__all__ = ["REPLY", "Patient"]

REPLY = 48
"""Tokens of a reply that is sampled only to be looked at."""


class Patient:
    """A recipe without arms, opened part by part.

    Args:
        recipe: what would run.
        sample: records looked at.
        card: memory of the card that is asked about, GiB; None for the one that is there.
        folder: where runs are written.
        name: the recipe as it was typed, overrides included, for commands.
        options: further options of `sightline doctor` as they were typed.
    """

    def __init__(
        self, recipe: Recipe, *, sample: int = 8, card: float | None = None, folder: Path = Path("runs"),
        name: str = "RECIPE", options: str = "",
    ) -> None:  # fmt: skip
        self.recipe, self.sample, self.card, self.folder = recipe, sample, card, folder
        self.name, self.options = name, options
        self.loading = 0.0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._broken: dict[str, UserError] = {}

    def open(self, part: str) -> Any:
        """A part by its name.

        Raises:
            UserError: it cannot be opened; asked again, it is not tried again.
        """
        if part in self._broken:
            raise self._broken[part]
        try:
            return getattr(self, part)
        except UserError as error:
            self._broken[part] = error
            raise

    def broken(self, parts: Sequence[str]) -> str:
        """The first of these parts that was found broken; empty if none was."""
        return next((part for part in parts if part in self._broken), "")

    @cached_property
    def method(self) -> Method:
        from sightline.methods import load_method

        return load_method(self.recipe.method)

    @cached_property
    def policy(self) -> Policy:
        """The policy that the run would start from: tokens of its stages, adapter and frozen parts included."""
        import torch

        from sightline.policy.load import load_policy
        from sightline.train.distributed import World
        from sightline.train.run import policy_of

        torch.set_num_threads(self.recipe.model.threads)
        started = time.perf_counter()
        policy = policy_of(self.recipe, self.method, None, load_policy, World())
        policy.model.eval()
        self.loading = time.perf_counter() - started
        return policy

    @cached_property
    def sampler(self) -> Sampler:
        """What the run samples with. Servers are given the policy's weights, as at the start of a run."""
        from sightline.sampling.build import build_sampler

        self._scratch = tempfile.TemporaryDirectory(prefix="sightline-doctor-")
        return build_sampler(self.recipe.sampling, self.open("policy"), Path(self._scratch.name))

    def close(self) -> None:
        """Ends connections to servers, and removes the weights that were written for them."""
        if isinstance(close := getattr(self.__dict__.get("sampler"), "close", None), Callable):
            close()
        if self._scratch is not None:
            self._scratch.cleanup()

    @cached_property
    def records(self) -> list[Record]:
        """Training records, evenly spaced over a file; the first ones of scenes."""
        from sightline.data import open_source

        data = self.recipe.data
        source = open_source(
            data.train, split="train", seed=self.recipe.train.seed, reader=data.reader, image_root=data.image_root,
            frame=data.frame, limit=data.limit, types=data.types,
        )  # fmt: skip
        count = self.sample if source.size is None else min(self.sample, source.size)
        spacing = 1 if source.size is None else max(1, source.size // max(count, 1))
        return [source.at(i * spacing) for i in range(count)]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """What every stream shows for every record of the sample."""
        return [self._prompt(record, stream) for record, stream in self._asked()]

    @property
    def settings(self) -> SamplingSettings:
        """The run's, with short replies."""
        from sightline.sampling.base import SamplingSettings

        own = self.recipe.sampling
        return SamplingSettings(
            temperature=own.temperature, top_p=own.top_p, max_new_tokens=min(own.max_new_tokens, REPLY)
        )

    def requests(self, records: int) -> list[Request]:
        """Up to two Rollouts per level, of every stream of the first records; conversations included."""
        from sightline.sampling.base import Request

        first = {record.id for record in self.open("records")[:records]}
        return [
            Request(self._prompt(record, stream), tuple(min(n, 2) for n in stream.branches), stream.turns)
            for record, stream in self._asked()
            if record.id in first
        ]

    def needs(self) -> Memory:
        """Memory per card of one step, counted without weights."""
        return _needs(self.recipe, self.card is not None)

    def needs_with(self, overrides: Sequence[str]) -> Memory | None:
        """The same with overrides as they are typed; None where the recipe does not take them or has them already."""
        from sightline.config.recipe import build_recipe, merge
        from sightline.config.source import Origin, nested, parse_overrides

        given = nested(parse_overrides(overrides), "command line")
        try:
            changed = build_recipe(merge(self.recipe.model_dump(exclude_unset=True), given), Origin())
            return None if changed == self.recipe else _needs(changed, self.card is not None)
        except UserError:
            return None

    @property
    def files(self) -> list[DataFile]:
        """The data that the recipe names."""
        data = self.recipe.data
        how = {"reader": data.reader, "image_root": data.image_root, "frame": data.frame}
        found = [DataFile(role="training", name=data.train, **how)]
        held_out = self.recipe.evaluation.data or data.validation
        return [*found, DataFile(role="validation", name=held_out, **how)] if held_out else found

    def _asked(self) -> list[tuple[Record, Stream]]:
        return [(record, stream) for record in self.open("records") for stream in self.method.streams(record)]

    def _prompt(self, record: Record, stream: Stream) -> Prompt:
        from sightline.language.prompts import prompt

        policy = self.open("policy")
        return prompt(
            record, stream.name, stream.template, policy.style, forced_prefix=stream.forced_prefix, frame=policy.frame
        )


def _needs(recipe: Recipe, is_planned: bool) -> Memory:
    """What `--dry-run` counts; for a card that is only planned, kernels and context are those of CUDA."""
    from dataclasses import replace

    from sightline.policy.memory import memory
    from sightline.policy.outline import open_outline
    from sightline.train.plan import plan

    found = plan(recipe, open_outline(recipe.model), processes=int(os.environ.get("WORLD_SIZE", "1")), looked=8)
    if is_planned:
        found = replace(found, setup=replace(found.setup, is_cuda=True))
    return memory(found.model, found.setup, found.micro, found.sampled)
