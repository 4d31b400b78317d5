"""`sightline play RECIPE`: be the policy. What you type is read, scored and explained as a rollout would be."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tyro.conf import Positional, Suppress

from sightline.commands.frames import FrameName, frame_named
from sightline.types import Group, ImageRef, Prompt, Reading, Record, Rollout, Span, Turn

if TYPE_CHECKING:
    from rich.console import Console

    from sightline.methods.base import Context, Method, Stream

__all__ = ["Play"]


@dataclass(frozen=True, kw_only=True)
class Play:
    """Be the policy: see a question, type a reply, get your own reward breakdown.

    A reply ends with an empty line. An empty reply goes on to the next question; end of input ends the game. Where the
    method holds conversations you are shown what you asked for, and reply again. What you write in a grounded stream
    enters the archive, and your textual reply is compared with it, as in training.
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
                    game = _Round(
                        source.at(number), method, replace(context, step=number), console, Path(folder), self.columns
                    )
                    game.show()
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
    folder: Path
    columns: int

    def show(self) -> None:
        self.console.rule(self.record.id)
        for number, image in enumerate(self.record.images):
            self._picture(number, image)

    def _picture(self, number: int, ref: ImageRef) -> None:
        from sightline.commands.picture import half_blocks
        from sightline.images import open_image

        image, path = open_image(ref), self.folder / f"{self.context.step}-{number}.png"
        image.save(path)
        if self.columns and self.console.is_terminal:
            self.console.print(half_blocks(image, self.columns))
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
            turns = self._turns(stream, prompt)
            if turns is None:
                return False
            if turns:
                self._score(prompt, turns)
        self._say(f"\nthe answer was: {self.record.answer}", "bold")
        for region in self.record.regions:
            size = self.record.images[region.image].size
            self._say(f"{region.label or region.role}: {list(self.context.frame.write(region.box, size))}", "dim")
        return True

    def _prompt(self, stream: Stream) -> Prompt:
        from sightline.language.prompts import prompt

        return prompt(self.record, stream.name, stream.template, "full", forced_prefix=stream.forced_prefix)

    def _turns(self, stream: Stream, prompt: Prompt) -> list[Turn] | None:
        """The replies to one prompt, and what the stream's rule says between them; None at the end of the input."""
        turns: list[Turn] = []
        count = len(prompt.images)
        while (text := read_reply(self.console)) is not None:
            if not text:
                return turns
            turns.append(_turn("assistant", text if turns else stream.forced_prefix + text))
            readings = self._read(turns).turns or (self._read(turns),)
            following = None if stream.turns is None else stream.turns.next(prompt, readings)
            if following is None:
                return turns
            for number, image in enumerate(following.images, start=count):
                self._picture(number, image)
            self._say(following.text.strip())
            turns.append(_turn("user", following.text, tuple(range(count, count + len(following.images)))))
            count += len(following.images)
        return turns or None

    def _read(self, turns: Sequence[Turn]) -> Reading:
        from sightline.language.parse import read_turns

        sizes = [image.size for image in self.record.images]
        return read_turns([turn.text for turn in turns if turn.role == "assistant"], self.context.frame, sizes)

    def _score(self, prompt: Prompt, turns: Sequence[Turn]) -> None:
        from sightline.train.scoring import score

        group = Group(record=self.record, rollouts=(_typed(prompt, turns),), readings=(self._read(turns),))
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


def _turn(role: Literal["assistant", "user"], text: str, images: tuple[int, ...] = ()) -> Turn:
    return Turn(role=role, span=Span(0, 0), text=text, images=images)


def _typed(prompt: Prompt, turns: Sequence[Turn]) -> Rollout:
    """What was typed as a rollout; words stand for tokens."""
    text = "\n".join(turn.text for turn in turns if turn.role == "assistant")
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
        turns=tuple(turns),
    )
