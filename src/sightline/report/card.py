"""The model card of an exported policy: README.md with the front matter of the Hub, made from the run folder."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sightline.report.environment import environment
from sightline.report.events import RunFolder

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.geometry.frames import Frame
    from sightline.types import Record

__all__ = ["CardFacts", "data_rows", "model_card", "paper_of"]

COORDINATES = {
    "absolute": "Boxes in replies are pixels of the image *after* the processor's resize. To draw them on the "
    "original, multiply x by original width / resized width, and y likewise.",
    "relative_1000": "Boxes in replies are thousandths of the image, 0 to 1000 along each side. To draw them on the "
    "original, multiply x by its width / 1000 and y by its height / 1000.",
}
SHOWN = ("accuracy", "iou", "region", "format", "box_rate", "tokens")
CHUNK = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card tells that the run folder does not hold.

    Attributes:
        name: of the exported model.
        base: the model it started from, as others can load it.
        kind: `merged` or `adapter`.
        step: of the exported checkpoint.
        dtype: number format of the files.
        family: model type, e.g. `qwen2_5_vl`.
        frame: of its boxes.
        style: wording of its prompts, `full` or `compact`.
        pixels: the run set limits of its own in place of the processor's.
        verified: what loading it again has shown.
        notes: limits that a user should know.
        model_license: as the base declares it; empty if unknown.
    """

    name: str
    base: str
    kind: str
    step: int
    dtype: str
    family: str
    frame: Frame
    style: str
    pixels: bool
    verified: str
    notes: tuple[str, ...] = ()
    model_license: str = ""


def model_card(facts: CardFacts, recipe: Recipe, run: Path, examples: Sequence[Record]) -> str:
    """The text of README.md.

    Args:
        facts: about the export.
        recipe: of the run.
        run: its folder, for evaluations.
        examples: records whose streams are shown; the first of each stream counts.
    """
    import sightline
    from sightline.methods import method_class

    folder = RunFolder(run) if _is_run(run) else None
    evaluations = _evaluations(folder, facts.step)
    paper = paper_of(method_class(recipe.method["name"]))
    preset = getattr(recipe.method_config, "preset", None)
    rows, columns = _metric_table(evaluations)
    template = environment().overlay(autoescape=False).get_template("model_card.md.jinja")
    return template.render(
        front=yaml.safe_dump(_front(facts, recipe, paper, evaluations), sort_keys=False, allow_unicode=True),
        title=facts.name, base=facts.base, version=sightline.__version__, paper=paper, step=facts.step,
        method=recipe.method["name"] + (f", preset {preset}" if preset else ""), facts=_facts(facts, recipe),
        usage=_usage(facts), frame=f"`{facts.frame.describe()}`", coordinates=COORDINATES[facts.frame.convention],
        prompts=_prompts(facts, recipe, examples), metrics=rows, columns=columns,
        evaluated_at=max((row["step"] for row in evaluations), default=facts.step), data=data_rows(recipe),
        recipe=_recipe(recipe),
    )  # fmt: skip


def paper_of(method: type) -> str:
    """The paper that the method's module begins with, its number linked; empty where it names none.

    Example:
        >>> from sightline.methods.grpo import GRPO
        >>> paper_of(GRPO)
        'Shao et al., DeepSeekMath, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300)'
    """
    module = inspect.getmodule(method)
    text = " ".join(((module.__doc__ or "") if module else "").split())
    found = re.match(r"[^:]*: (.*?)arXiv (\d{4}\.\d{4,5})", text)
    return f"{found[1]}[arXiv {found[2]}](https://arxiv.org/abs/{found[2]})" if found else ""


def _recipe(recipe: Recipe) -> str:
    """The resolved recipe; where the key of a judge lies is nobody else's business."""
    from sightline.config.recipe import resolved

    values = resolved(recipe)
    values["judge"] = {**values["judge"], "key_file": ""}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def data_rows(recipe: Recipe) -> list[dict[str, str]]:
    """Role, name and digest of every data source; files that are gone say so, scenes are made from their seed."""
    named = [
        ("training", recipe.data.train, recipe.train.seed),
        ("validation", recipe.evaluation.data or recipe.data.validation, recipe.evaluation.seed),
    ]
    return [{"role": role, "name": name, "digest": _digest(name, seed)} for role, name, seed in named if name]


def _digest(name: str, seed: int) -> str:
    if name.startswith("scenes:"):
        return f"made on demand, seed {seed}"
    path = Path(name).expanduser()
    if not path.is_file():
        return "not there when this card was written"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return f"`{digest.hexdigest()}`"


def _is_run(folder: Path) -> bool:
    return any((folder / part).exists() for part in ("run.json", "events.jsonl", "evaluations.jsonl"))


def _evaluations(folder: RunFolder | None, step: int) -> list[dict[str, Any]]:
    """The evaluations at the start and the last one up to the exported step, by mode."""
    rows = [row for row in folder.evaluations if row.get("step", 0) <= step and "mode" in row] if folder else []
    steps = sorted({row["step"] for row in rows})
    kept = {steps[0], steps[-1]} if steps else set()
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    chosen = [row for row in rows if row["step"] in kept]
    return sorted(chosen, key=lambda row: (modes.index(row["mode"]), row["step"]))


def _metric_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and the measures that some of them have."""
    found = [name for row in rows for name in row["metrics"]]
    columns = [name for name in SHOWN if name in found]
    table = [
        {"mode": row["mode"], "step": row["step"], "n": row["n"],
         "cells": [_cell(row["metrics"].get(name)) for name in columns]} for row in rows
    ]  # fmt: skip
    return table, columns


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _front(facts: CardFacts, recipe: Recipe, paper: str, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata that the Hub reads."""
    method = recipe.method["name"].rpartition(":")[2].lower()
    front: dict[str, Any] = {
        "library_name": "peft" if facts.kind == "adapter" else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["sightline", method, "reinforcement-learning", "visual-grounding", "vision-language", facts.family],
    }
    if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.base) and not Path(facts.base).exists():  # a name of the Hub
        relation = "adapter" if facts.kind == "adapter" else "finetune"
        front = {"base_model": facts.base, "base_model_relation": relation, **front}
    if found := re.search(r"\d{4}\.\d{4,5}", paper):
        front["tags"].append(f"arxiv:{found[0]}")
    if facts.model_license:
        front["license"] = facts.model_license
    data = recipe.evaluation.data or recipe.data.validation
    last = {row["mode"]: row for row in evaluations}  # sorted by step: the last of each mode stays
    results = [
        {
            "task": {"type": "image-text-to-text"},
            "dataset": {"name": str(data), "type": "custom"},
            "metrics": [{"type": "accuracy", "name": f"accuracy, {mode}", "value": round(accuracy["mean"], 4)}],
        }
        for mode, row in last.items()
        if (accuracy := row["metrics"].get("accuracy")) is not None
    ]
    if results:
        front["model-index"] = [{"name": facts.name, "results": results}]
    return front


def _facts(facts: CardFacts, recipe: Recipe) -> list[tuple[str, str]]:
    frame = facts.frame
    limits = "" if facts.pixels else " (the processor's own limits)"
    steps = f"{facts.step} of {recipe.train.steps} steps, {recipe.data.records_per_step} records each"
    rows = [
        ("base", facts.base),
        ("files", f"{'LoRA adapter (peft)' if facts.kind == 'adapter' else 'whole weights'}, {facts.dtype}"),
        ("training", f"{steps}, seed {recipe.train.seed}"),
        ("image area", f"{frame.min_pixels} to {frame.max_pixels} px² after the resize{limits}"),
        ("checked", facts.verified),
    ]  # fmt: skip
    return [*rows, *(("limit", note) for note in facts.notes)]


def _prompts(facts: CardFacts, recipe: Recipe, examples: Sequence[Record]) -> list[dict[str, Any]]:
    """Every stream that the examples have, with a question in braces."""
    from dataclasses import replace

    from sightline.language.prompts import prompt
    from sightline.methods import load_method

    shown: dict[str, dict[str, Any]] = {}
    for record in examples:
        for stream in load_method(recipe.method).streams(record):
            if stream.name in shown:
                continue
            bare = replace(record, question="{question}", options=())
            asked = prompt(bare, stream.name, stream.template, "compact" if facts.style == "compact" else "full",
                           forced_prefix=stream.forced_prefix, frame=facts.frame)  # fmt: skip
            text = "".join(part for part in asked.messages[0].content if isinstance(part, str))
            shown[stream.name] = {
                "name": stream.name, "n": stream.n, "text": text, "forced": stream.forced_prefix,
                "turns": stream.turns is not None,
            }  # fmt: skip
    return list(shown.values())


def _usage(facts: CardFacts) -> str:
    """How to load it with transformers, peft, vLLM and sightline."""
    kind = "Qwen2_5_VLForConditionalGeneration" if facts.family == "qwen2_5_vl" else "Qwen3VLForConditionalGeneration"
    path, imports = facts.name, ""
    if facts.kind == "adapter":
        imports = "from peft import PeftModel\n"
        load = (
            f'base = {kind}.from_pretrained({facts.base!r}, dtype="auto")\n'
            f"model = PeftModel.from_pretrained(base, {path!r})"
        )
        serve = f"vllm serve {facts.base} --enable-lora --lora-modules policy={path}"
    else:
        load = f'model = {kind}.from_pretrained({path!r}, dtype="auto")'
        serve = f"vllm serve {path}"
    limits = {"min_pixels": facts.frame.min_pixels, "max_pixels": facts.frame.max_pixels} if facts.pixels else {}
    given = "".join(f", {name}={value}" for name, value in limits.items())
    serve += f" --mm-processor-kwargs '{json.dumps(limits)}'" if limits else ""
    return f"""\
```python
{imports}from PIL import Image
from transformers import AutoProcessor, {kind}

{load}
processor = AutoProcessor.from_pretrained({path!r}{given})
content = [{{"type": "image"}}, {{"type": "text", "text": "QUESTION AND INSTRUCTION"}}]
messages = [{{"role": "user", "content": content}}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=[text], images=[Image.open("picture.png")], return_tensors="pt").to(model.device)
ids = model.generate(**inputs, max_new_tokens=512)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
```

```
{serve}
sightline ask picture.png "question" --mode grounded --model {path} --out picture.html
```

`AutoProcessor` needs torchvision; sightline does not. Instructions are below, word by word.
"""
