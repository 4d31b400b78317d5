"""`sightline export RUN --out FOLDER`: a trained policy as a folder that others load."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.types import Record

__all__ = ["Export", "push"]

STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained policy in the layout of the Hugging Face Hub: weights, processor files, model card.

    What was written is loaded again and its logits are compared. A folder that holds anything is never overwritten.
    """

    run_folder: Positional[Path]
    """A run folder, or one checkpoint of it."""
    out: Path
    """The folder to write; new or empty."""
    merged: bool = False
    """Whole weights; of a LoRA run the adapter is added to them. The default where whole weights were trained."""
    adapter: bool = False
    """The LoRA adapter alone, in peft's layout. The default of a LoRA run."""
    step: str = "last"
    """Which checkpoint: `last`, `best`, or the number of its step."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Number format of whole weights; auto: as they were trained."""
    base: str = ""
    """Name of the base to write into card and adapter, e.g. a Hub id; default the recipe's `model.name`."""
    shard: float = 5.0
    """Size of one weight file, GB; larger models are cut into shards with an index."""
    push: str = ""
    """Upload to the Hub under this name, OWNER/NAME; needs `hf auth login`."""
    public: bool = False
    """With --push, make the repository public; it is private otherwise."""
    device: str = "cpu"
    """Where the policy is loaded: cpu, cuda, cuda:N or mps."""

    def run(self) -> int:
        from sightline.policy.export import empty_folder

        if self.merged and self.adapter:
            raise UserError("merged and adapter exclude each other", where="--merged --adapter")
        if not 1e-9 <= self.shard < math.inf:
            raise UserError(f"must be above 0, got {self.shard:g}", where="--shard", hint="GB of one file, e.g. 5")
        if self.push and self.push.count("/") != 1:
            raise UserError("a name on the Hub is OWNER/NAME", where=f"--push {self.push}")
        run, checkpoint = _checkpoint(self.run_folder, self.step)
        recipe = _recipe(run)
        if self.adapter and not (checkpoint / "adapter_config.json").is_file():
            raise UserError("the run trained whole weights: there is no adapter", where="--adapter", hint="--merged")
        if self.dtype != "auto" and not self.merged and (checkpoint / "adapter_config.json").is_file():
            raise UserError("an adapter keeps the number format that it was trained in", where=f"--dtype {self.dtype}",
                            hint="--merged writes whole weights")  # fmt: skip
        empty_folder(self.out)
        print(f"exporting {checkpoint}")
        with _whole_or_nothing(self.out):
            self._write(recipe, run, checkpoint)
        print(f"written: {self.out.resolve()}")
        if self.push:
            from huggingface_hub import HfApi

            print(f"pushed: {push(self.out, self.push, HfApi(), private=not self.public)}")
        else:
            print(f"look: sightline ask IMAGE QUESTION --model {shlex.quote(str(self.out))}")
        return 0

    def _write(self, recipe: Recipe, run: Path, checkpoint: Path) -> None:
        from sightline.policy.export import adapter_limits, export_adapter, export_merged, name_base, verify
        from sightline.policy.load import load_policy

        model = recipe.model
        policy = load_policy(checkpoint, dtype=model.dtype, device=self.device, min_pixels=model.min_pixels,
                             max_pixels=model.max_pixels)  # fmt: skip
        is_adapter = self.adapter or (policy.lora and not self.merged)
        dtype = model.dtype if is_adapter or self.dtype == "auto" else self.dtype
        notes = adapter_limits(policy) if is_adapter else []
        base = self.base or (policy.name if policy.lora else model.name)
        if is_adapter:
            logits = export_adapter(policy, self.out)
        else:
            logits = export_merged(policy, self.out, dtype=dtype, shard=int(self.shard * 1e9))
        facts: dict[str, Any] = {
            "name": self.push or self.out.resolve().name, "base": base, "kind": "adapter" if is_adapter else "merged",
            "step": _step_of(checkpoint), "dtype": dtype, "family": policy.family, "frame": policy.frame,
            "style": policy.style, "model_license": _license(policy.source),
            "pixels": bool(model.min_pixels or model.max_pixels),
        }  # fmt: skip
        if is_adapter and base.startswith("embedded:"):
            notes.append("its base is a policy that only sightline knows; --merged makes a model by itself")
        del policy  # the copy that is loaded for comparison takes its place
        found = verify(self.out, logits, dtype=dtype, device=self.device, min_pixels=model.min_pixels,
                       max_pixels=model.max_pixels)  # fmt: skip
        print(found.describe())
        if self.base and is_adapter:
            name_base(self.out, self.base)
        for note in notes:
            print(f"note: {note}")
        self._card({**facts, "verified": found.describe(), "notes": tuple(notes)}, recipe, run)

    def _card(self, facts: dict[str, Any], recipe: Recipe, run: Path) -> None:
        from sightline.report.card import CardFacts, model_card

        text = model_card(CardFacts(**facts), recipe, run, _examples(recipe))
        (self.out / "README.md").write_text(text, encoding="utf-8")


def push(folder: Path, name: str, api: Any, *, private: bool = True) -> str:
    """Uploads a folder; returns where it lies.

    Args:
        folder: what `export` wrote.
        name: OWNER/NAME.
        api: a `huggingface_hub.HfApi`.
        private: of a repository that is made; one that exists keeps what it is.

    Raises:
        UserError: not logged in, not allowed, or no network.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        where = api.create_repo(repo_id=name, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), repo_type="model",
                          commit_message=f"sightline export of {folder.name}")  # fmt: skip
    except LocalTokenNotFoundError as error:
        raise UserError("no token for the Hub", where=f"--push {name}", hint="hf auth login") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hint = f"the folder is whole; later: hf upload {name} {folder}"
        raise UserError(f"the upload failed: {reason}", where=f"--push {name}", hint=hint) from error
    return str(where)


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """A folder that was empty is empty again if what fills it fails, so that no half of a model is taken for one."""
    try:
        yield
    except BaseException:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        raise


def _checkpoint(given: Path, step: str) -> tuple[Path, Path]:
    """The run folder and the checkpoint to export.

    Raises:
        UserError: no run, one with arms, or no such checkpoint.
    """
    from sightline.train.checkpoint import Checkpoints

    if STEP.fullmatch(given.name) and (given / "state.json").is_file():
        return given.resolve().parent.parent, given
    if given.parent.name == "checkpoints" and given.name == "best":
        raise UserError("this is no folder", where=str(given), hint=f"{given.parent.parent} --step best")
    if not given.is_dir():
        raise UserError("no such folder", where=str(given))
    arms = sorted(p.name for p in (given / "arms").iterdir() if p.is_dir()) if (given / "arms").is_dir() else []
    if arms:
        raise UserError("this run has arms", where=str(given), hint=f"name one: {given / 'arms' / arms[0]}")
    kept = Checkpoints(given)
    found = {int(p.name.removeprefix("step-")): p for p in kept.all()}
    if not found:
        is_run = (given / "recipe.yaml").is_file()
        what, hint = "this run has no checkpoint", f"sightline train {shlex.quote(str(given))}"
        raise UserError(what if is_run else "this is no run folder", where=str(given),
                        hint=hint if is_run else "name the folder that holds recipe.yaml and checkpoints")  # fmt: skip
    if step == "last":
        return given, found[max(found)]
    if step == "best":
        best = kept.best()
        if best is None:
            raise UserError("no checkpoint was named best", where="--step best", hint="--step last")
        return given, best
    if not step.isdigit() or int(step) not in found:
        raise UserError(
            "no such checkpoint", where=f"--step {step}", hint=f"one of {', '.join(map(str, sorted(found)))}"
        )
    return given, found[int(step)]


def _recipe(run: Path) -> Recipe:
    from sightline.config import load_recipe

    if not (run / "recipe.yaml").is_file():
        raise UserError("the run folder holds no recipe.yaml", where=str(run))
    return load_recipe(run)


def _step_of(checkpoint: Path) -> int:
    found = STEP.fullmatch(checkpoint.resolve().name)
    return int(found[1]) if found else 0


def _license(source: Path) -> str:
    """What the card of the base declares; it is copied, never guessed."""
    path = source / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""


def _examples(recipe: Recipe) -> list[Record]:
    """A few training records, or made-up ones where the data is gone: with regions and without."""
    from sightline.data import open_source

    data = recipe.data
    try:
        source = open_source(
            data.train, split="train", seed=recipe.train.seed, reader=data.reader, image_root=data.image_root,
            frame=data.frame, limit=data.limit, types=data.types,
        )  # fmt: skip
        return [source.at(i) for i in range(32 if source.size is None else min(32, source.size))]
    except UserError:
        from dataclasses import replace

        scenes = open_source("scenes:easy", split="train", seed=0)
        return [scenes.at(0), replace(scenes.at(1), regions=())]
