"""`sightline play RECIPE`: be the policy. What you type is read, scored and explained as a rollout would be."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tyro.conf import Positional, Suppress

from sightline.commands.frames import FrameName, frame_named
from sightline.types import Group, Prompt, Record, Rollout

if TYPE_CHECKING:
    from rich.console import Console

    from sightline.methods.base import Context, Method

__all__ = ["Play"]


@dataclass(frozen=True, kw_only=True)
class Play:
    """Be the policy: see a question, type a reply, get your own reward breakdown.

    A reply ends with an empty line. An empty reply goes on to the next question; end of input ends the game. What you
    write in a grounded stream enters the archive, and your textual reply is compared with it, as in training.
    """

    recipe: Positional[str] = "demo"
    """Name of a shipped recipe, a YAML file, or a run folder."""
    stream: str = ""
    """Play only this stream; default every stream of the method in turn."""
    limit: int = 5
    """Number of questions."""
    frame: FrameName = "pixels"
    """Coordinates in which you write boxes; `pixels` are those of the picture as it lies on disk."""
    columns: int = 64
    """Width of the picture in the terminal; 0 shows none."""
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from rich.console import Console

        from sightline.answers.judge import build_judge
        from sightline.config import load_recipe
        from sightline.data import open_source
        from sightline.methods import load_method
        from sightline.methods.base import Context
        from sightline.train.scoring import archive_for

        recipe = load_recipe(self.recipe, self.overrides)
        data, console = recipe.data, Console(highlight=False, soft_wrap=True)
        source = open_source(
            data.validation or data.train, split="validation", seed=recipe.train.seed, reader=data.reader,
            image_root=data.image_root, frame=data.frame, limit=self.limit, types=data.types,
        )  # fmt: skip
        method = load_method(recipe.method)
        judge = build_judge(recipe.judge_config)
        context = Context(judge=judge, archive=archive_for(method), frame=frame_named(self.frame))
        count = self.limit if source.size is None else source.size
        try:
            with tempfile.TemporaryDirectory(prefix="sightline-play-") as folder:
                for number in range(count):
                    game = _Round(source.at(number), method, replace(context, step=number), console)
                    game.show(Path(folder), self.columns)
                    if not game.play(self.stream):
                        break
        finally:
            judge.close()
        return 0


@dataclass(frozen=True, slots=True)
class _Round:
    """One record, all its streams."""

    record: Record
    method: Method
    context: Context
    console: Console

    def show(self, folder: Path, columns: int) -> None:
        from sightline.commands.picture import half_blocks
        from sightline.images import open_image

        self.console.rule(self.record.id)
        for number, ref in enumerate(self.record.images):
            image = open_image(ref)
            path = folder / f"{self.context.step}-{number}.png"
            image.save(path)
            if columns and self.console.is_terminal:
                self.console.print(half_blocks(image, columns))
            self._say(f"image {number}: {path} ({image.width} x {image.height} px)", "dim")

    def play(self, only: str) -> bool:
        """Asks each stream and scores the replies; false at the end of the input."""
        from sightline.errors import UserError

        streams = self.method.streams(self.record)
        chosen = [stream for stream in streams if only in ("", stream.name)]
        if not chosen:
            names = ", ".join(stream.name for stream in streams)
            raise UserError(f"this record has no stream {only!r}", where="--stream", hint=f"one of {names}")
        for stream in sorted(chosen, key=lambda stream: stream.reads_archive):
            prompt = self._prompt(stream)
            self._say(f"\nstream {stream.name}", "bold")
            self._say("\n".join(part for part in prompt.messages[-1].content if isinstance(part, str)).strip())
            text = read_reply(self.console)
            if text is None:
                return False
            if text:
                self._score(prompt, stream.forced_prefix + text)
        self._say(f"\nthe answer was: {self.record.answer}", "bold")
        for region in self.record.regions:
            size = self.record.images[region.image].size
            self._say(f"{region.label or region.role}: {list(self.context.frame.write(region.box, size))}", "dim")
        return True

    def _prompt(self, stream: Any) -> Prompt:
        from sightline.language.prompts import prompt

        return prompt(self.record, stream.name, stream.template, "full", forced_prefix=stream.forced_prefix)

    def _score(self, prompt: Prompt, text: str) -> None:
        from sightline.language.parse import read
        from sightline.train.scoring import score

        sizes = [image.size for image in self.record.images]
        group = Group(
            record=self.record,
            rollouts=(_typed(prompt, text),),
            readings=(read(text, self.context.frame, sizes),),
        )
        (scored,) = score(self.method, [group], self.context, workers=1)
        self._explain(scored)

    def _explain(self, group: Group) -> None:
        from rich.table import Table
        from rich.text import Text

        (scores,), (reading,) = group.scores, group.readings
        table = Table("term", "value", "weight", "why", title="your reward", title_justify="left")
        for name, term in scores.terms.items():
            value = "masked" if term.masked else f"{term.value:.3g}"
            table.add_row(Text(name), value, f"{scores.weight(name):g}", Text(term.why))
        table.add_row("total", f"{scores.total:.3g}", "", "", style="bold")
        self.console.print(table)
        if reading.problems:
            self._say(f"read with problems: {'; '.join(reading.problems)}", "yellow")
        for found in reading.boxes:
            state = f" ({', '.join(found.problems)})" if found.problems else ""
            self._say(f"box {[round(side, 1) for side in found.box]} px{state}", "cyan")
        if group.reference is not None:
            self._say(f"reference in the archive: {group.reference.text}", "magenta")

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)


def read_reply(console: Console) -> str | None:
    """Lines up to an empty one, joined; "" to skip, None at the end of the input."""
    if sys.stdin.isatty():
        console.print("> ", end="", style="bold green")
    lines: list[str] = []
    for line in sys.stdin:
        if not line.strip():
            return "\n".join(lines)
        lines.append(line.rstrip("\n"))
    return "\n".join(lines) if lines else None


def _typed(prompt: Prompt, text: str) -> Rollout:
    """What was typed as a rollout; words stand for tokens."""
    count = max(1, len(text.split()))
    return Rollout(
        prompt=prompt,
        branch=(0,),
        prompt_ids=np.zeros(0, dtype=np.int64),
        ids=np.zeros(count, dtype=np.int64),
        sampled=np.ones(count, dtype=bool),
        logprobs=np.zeros(count, dtype=np.float32),
        text=text,
        finish="stop",
    )
