"""The model card of an embedded policy: its figures per level and format on fresh scenes, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.scenes.measure import any_mark, figures, gold_crops, two_turns
from sightline.scenes.stream import record_at
from sightline.scenes.world import GENERATOR
from sightline.types import ImageRef, Record

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["CARD_SCENES", "card", "measured", "write_card"]

CARD_SCENES = 400
"""Records behind each figure of the card."""

_ROWS: tuple[tuple[str, str, str, bool], ...] = (
    *((level, "mark", style, False) for level in ("easy", "hard") for style in ("textual", "grounded")),
    *(("easy", "mark", style, False) for style in ("general", "direct", "grit")),
    *(("easy", kind, style, False) for kind in ("count", "region", "relation") for style in ("textual", "grounded")),
    *(("zoom", "mark", style, False) for style in ("textual", "grounded")),
    *((level, "mark", "crops", True) for level in ("easy", "hard", "zoom")),
)
"""Level, question type, reply format, and whether a crop of the gold box is shown."""


def measured(policy: Policy, seed: int, n: int = CARD_SCENES) -> dict[str, dict[str, float | int]]:
    """Every figure of the card on `n` test scenes; keys read `level/type/format`, `+crop` with a gold crop."""
    found: dict[str, dict[str, float | int]] = {}
    for level, kind, style, is_cropped in _ROWS:
        shown: Callable[[Record], tuple[ImageRef, ...]] | None = gold_crops if is_cropped else None
        key = f"{level}/{kind}/{style}{'+crop' if is_cropped else ''}"
        found[key] = figures(policy, _records(policy, level, kind, seed, n), style, shown).rounded()
    for level in ("easy", "hard", "zoom"):
        found[f"{level}/mark/ground_r1"] = two_turns(policy, _records(policy, level, "mark", seed, n)).rounded()
    return found


def _records(policy: Policy, level: str, kind: str, seed: int, n: int) -> list[Record]:
    name = f"{level}-gradient" if policy.family == "qwen2_5_vl" else level
    return [record_at(name, "test", seed, i, (kind,)) for i in range(n)]


def card(
    policy: Policy,
    *,
    family: str,
    seed: int,
    step: int,
    cpu_seconds: float,
    passed: bool,
    scenes_seed: int = 0,
    note: str = "",
) -> dict[str, Any]:
    """The card as data; `load_policy` reads `prompt_style` from it. `note` is what a reader must know besides."""
    import torch
    import transformers

    return {
        "prompt_style": "compact",
        "family": family,
        "purpose": "a start for reinforcement" if passed else "code-path policy: it missed its gate",
        "passed": passed,
        "note": note,
        "background": "gradient" if family == "qwen2_5_vl" else "plain",
        "seed": seed,
        "step": step,
        "cpu_seconds": round(cpu_seconds),
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "generator": GENERATOR,
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "scenes": {"split": "test", "seed": scenes_seed, "n": CARD_SCENES},
        "any_mark": {
            level: round(any_mark(policy, _records(policy, level, "mark", scenes_seed, CARD_SCENES)), 4)
            for level in ("easy", "hard")
        },
        "some_mark_baseline": {
            level: round(_baseline(_records(policy, level, "mark", scenes_seed, CARD_SCENES)), 4)
            for level in ("easy", "hard")
        },
        "figures": measured(policy, scenes_seed),
    }


def _baseline(records: list[Record]) -> float:
    """Expected accuracy of naming the mark of an object of the scene drawn at random."""
    shares = []
    for record in records:
        marks = [thing["mark"] for thing in record.meta["objects"]]
        shares.append(marks.count(record.answer) / len(marks))
    return sum(shares) / len(shares)


def write_card(folder: Path, values: Mapping[str, Any]) -> None:
    """card.json for programs, README.md for people."""
    (folder / "card.json").write_text(json.dumps(values, indent=1) + "\n")
    rows = ["| level / question / format | accuracy | IoU | region words | format |", "|---|---|---|---|---|"]
    for key, f in values["figures"].items():
        cells = [f"{f[name]:.3f}" if name in f else "" for name in ("accuracy", "iou", "region", "format")]
        rows.append(f"| {key} | {' | '.join(cells)} |")
    family, versions = values["family"], values["versions"]
    note = f"\n{values['note']}\n" if values["note"] else ""
    easy, hard = values["some_mark_baseline"]["easy"], values["some_mark_baseline"]["hard"]
    text = f"""# embedded:{family}

{values["purpose"].capitalize()}. A stock transformers class with {values["parameters"] / 1e6:.2f} M parameters,
trained from nothing on procedural scenes ({values["background"]} background) in {values["cpu_seconds"]} CPU seconds of
one thread. It answers questions about scenes and nothing else.

Rebuild: `sightline scenes build-policy --family {family} --seed {values["seed"]} --out DIR`
(step {values["step"]}; generator {values["generator"]}; {", ".join(f"{k} {v}" for k, v in versions.items())}).
{note}
Greedy replies on {values["scenes"]["n"]} test scenes per row (standard error up to .025).
`+crop` shows a crop of the gold box; `ground_r1` writes a box, sees its crop in a second turn and answers.

{chr(10).join(rows)}

Naming the mark of a random object of the scene is right in {easy:.2f} (easy) and {hard:.2f} (hard) of the cases:
accuracy near that is not yet localisation. The policy names *some* mark of the scene in
{values["any_mark"]["easy"]:.2f} (easy) and {values["any_mark"]["hard"]:.2f} (hard) of the cases.
"""
    (folder / "README.md").write_text(text)
