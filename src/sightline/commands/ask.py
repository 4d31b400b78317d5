"""`sightline ask IMAGE QUESTION`: one question, or a file of them, in any mode."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from sightline.commands.model import DEFAULT
from sightline.errors import UserError
from sightline.sampling.modes import MODES, ModeConfig
from sightline.types import Record

if TYPE_CHECKING:
    from rich.console import Console

    from sightline.policy.load import Policy
    from sightline.sampling.base import Sampler
    from sightline.sampling.modes import ModeResult

__all__ = ["Ask"]

TABLES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask a policy about an image, or about every record of a JSONL file.

    Boxes are printed in pixels of the image you gave, whatever the policy's own coordinates are.
    """

    image: Positional[Path]
    """An image file, or a .jsonl / .parquet file of records."""
    question: Positional[str] = ""
    """The question; left out for a file of records."""
    mode: Annotated[str, arg(metavar="{" + ",".join(MODES) + "}")] = "textual"
    """textual reasons without coordinates; grounded writes boxes; crops looks again at what it boxed; turns asks for
    one crop after the other until it answers; grit writes boxes, then thinks again."""
    model: str = DEFAULT
    """`embedded:FAMILY`, a model folder, a Hub name, or a run folder (its newest checkpoint)."""
    crops: Annotated[ModeConfig, arg(name="")] = field(default_factory=ModeConfig)
    temperature: float = 0.0
    """0 takes the likeliest token."""
    max_new_tokens: int | None = None
    """Longest reply; default 64 for the embedded policy, 1024 for others."""
    seed: int = 0
    """Of the sampling."""
    limit: int | None = None
    """Records of a file that are asked; default all."""
    out: Path | None = None
    """Picture with the boxes drawn on it: a .png or .html file; a folder for a file of records."""
    attention: bool = False
    """Show where the reply looked: in the picture beside the boxes, in a .html page for every word; in the terminal
    without --out. The layers are the last third without the final one."""
    heads: Path | None = None
    """With --attention, read these heads instead: a list that `sightline attention calibrate` wrote."""
    json: bool = False
    """Print one JSON object per question and nothing else."""
    batch: int = 16
    """With --json, records of a file that are answered side by side."""
    show: bool = False
    """Show the image in the terminal."""
    servers: Annotated[tuple[str, ...], arg(name="sampling.server.urls")] = ()
    """vLLM servers that answer in place of this process; they are given the model's weights. See serve-help."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or mps."""
    dtype: str = "float32"
    """Number format of the weights."""

    def run(self) -> int:
        from rich.console import Console

        from sightline.commands.model import check_options

        check_options(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            limit=self.limit, seed=self.seed, batch=self.batch,
        )  # fmt: skip
        records = self._records()
        console = Console(quiet=self.json, highlight=False, soft_wrap=True)
        if self.show and records[0].images:
            from sightline.commands.picture import half_blocks
            from sightline.images import open_image

            console.print(half_blocks(open_image(records[0].images[0])))
        began = time.perf_counter()
        import sightline.policy.load
        import sightline.sampling.local  # noqa: F401 - imported here so that its cost is told apart

        imported = time.perf_counter()
        from sightline.commands.model import open_policy
        from sightline.commands.serving import opened_servers

        policy = open_policy(self.model, device=self.device, dtype=self.dtype)
        loaded = time.perf_counter()
        console.print(f"{self.model}: {policy.frame.describe()}", style="dim", markup=False)
        self._check(records, policy)
        with opened_servers(self.servers, policy) as servers:
            slowest = self._ask_all(records, policy, console, servers)
        each = "answer" if len(records) == 1 else "slowest answer"
        times = f"imports {imported - began:.2f} s, loading {loaded - imported:.2f} s, {each} {slowest:.2f} s"
        console.print(times, style="dim")
        return 0

    def _ask_all(
        self, records: Sequence[Record], policy: Policy, console: Console, servers: Sampler | None
    ) -> float:  # fmt: skip
        """Answers all records and shows what they say; seconds of the slowest."""
        from sightline.commands.replies import file_stems, printable

        slowest = 0.0
        stems, together = file_stems([record.id for record in records]), self.batch if self.json else 1
        for at in range(0, len(records), together):
            batch = records[at : at + together]
            if len(records) > 1:
                console.print(f"\n{printable(batch[0].id)}: {printable(batch[0].question)}", style="bold", markup=False)
            started = time.perf_counter()
            results = self._answers(batch, policy, console, servers)
            seconds = (time.perf_counter() - started) / len(batch)
            slowest = max(slowest, seconds)
            for result, stem in zip(results, stems[at : at + together], strict=True):
                self._tell(result, seconds, console)
                self._show(result, policy, console, stem)
        return slowest

    def _check(self, records: Sequence[Record], policy: Policy) -> None:
        """What the policy or the disk refuses, told before anything is answered."""
        for record in records:
            for image in record.images:
                try:
                    policy.frame.resized(image.size)
                except UserError as error:
                    where = image.path or f"record {record.id}"
                    raise UserError(error.what, where=where, hint=error.hint) from error
        if self.heads is not None:
            from sightline.probes.heads import choose_heads

            choose_heads(policy, heads_file=str(self.heads))
        if self.out is not None:
            (self.out if self.image.suffix in TABLES else self.out.parent).mkdir(parents=True, exist_ok=True)

    def _answers(
        self, records: Sequence[Record], policy: Policy, console: Console, servers: Sampler | None
    ) -> list[ModeResult]:  # fmt: skip
        """Answers side by side where rows are asked for; otherwise of one record, its text as it is sampled.

        A server's text comes at once.
        """
        from sightline.commands.model import token_limit
        from sightline.commands.streaming import SpokenSampler
        from sightline.sampling.base import SamplingSettings
        from sightline.sampling.local import LocalSampler
        from sightline.sampling.modes import answer

        limit = token_limit(policy, self.max_new_tokens)
        own = LocalSampler(policy) if self.json else SpokenSampler(policy, console)
        return answer(
            servers or own, records, self.mode, self.crops,
            speaker=policy, settings=SamplingSettings(temperature=self.temperature, max_new_tokens=limit),
            seed=self.seed,
        )  # fmt: skip

    def _tell(self, result: ModeResult, seconds: float, console: Console) -> None:
        from sightline.commands.replies import printable, result_row, verdict

        if self.servers and not self.json:  # nobody has shown it while it was sampled
            for rollout in result.rollouts:
                console.print(printable(rollout.text), markup=False)
        if self.json:
            print(json.dumps(result_row(result, seconds), ensure_ascii=False), flush=True)
        console.print(verdict(result))

    def _show(self, result: ModeResult, policy: Policy, console: Console, stem: str) -> None:
        """The picture, with or without where the reply looked."""
        from sightline.commands.looks import looked, looked_blocks, save_look
        from sightline.commands.replies import save_picture

        where = looked(result, policy, self.heads) if self.attention else None
        if self.out is None:
            if where is not None and not self.json:
                console.print(looked_blocks(result, where))
            return
        target = self.out / f"{stem}.png" if self.image.suffix in TABLES else self.out
        path = save_picture(result, target) if where is None else save_look(result, where, target)
        print(f"picture: {path}", file=sys.stderr)

    def _records(self) -> list[Record]:
        """What is asked. Every mistake in the options is told before the policy is loaded."""
        if self.mode not in MODES:
            raise UserError(f"unknown mode {self.mode!r}", where="--mode", hint=f"one of {', '.join(MODES)}")
        if self.heads is not None and not self.attention:
            raise UserError("heads are read for --attention only", where="--heads", hint="add --attention")
        if self.out is not None and self.image.suffix not in TABLES and self.out.suffix not in (".png", ".html"):
            raise UserError("a picture ends in .png or .html", where=f"--out {self.out}")
        if self.image.suffix in TABLES:
            if self.question:
                raise UserError("a file of records brings its own questions", where=str(self.image))
            from sightline.data import read_records

            records = list(read_records(self.image, limit=self.limit))
            bare = next((record.id for record in records if not record.images), None)
            if bare is not None and (self.attention or self.out is not None):
                raise UserError("there is no image to draw on", where=f"{self.image} (id {bare})")
            return records
        if not self.question:
            raise UserError("the question is missing", hint=f'sightline ask {self.image} "What is in the image?"')
        from sightline.images import image_ref

        return [Record(id=self.image.stem, question=self.question, answer="", images=(image_ref(str(self.image)),))]
