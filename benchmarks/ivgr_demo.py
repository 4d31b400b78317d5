"""What internalising localisation does: iVGR against textual-only GRPO from the same start, over seeds.

    python benchmarks/ivgr_demo.py --seeds 0 1 2 3 4
    python benchmarks/ivgr_demo.py --seeds 0 1 2 --arms textual ivgr dual no_archive   # what each part adds
    python benchmarks/ivgr_demo.py --seeds 0 1 --rebuild 1 2                             # from rebuilt starts too

A seed varies the training scenes, the sampling and the evaluation scenes. Both arms train on the recipe `demo`; every
figure is a paired difference over the same held-out scenes with its 95 % bootstrap interval. Runs are kept and resumed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sightline.evaluate.compare import Difference, compare
from sightline.evaluate.runner import EvaluationRow, read_table
from sightline.evaluate.statistics import paired_difference

ABLATIONS = {
    "dual": {"weights": {"consistency": 0.0}},
    "no_archive": {"archive": {"policy": "current_step"}},
}
FIGURES = ("text_accuracy_gain", "iou_gain", "region_gain", "iou_vs_textual_only", "region_vs_textual_only")


@dataclass(frozen=True)
class Seed:
    """The tables of one seed: the common start, and the end of every arm."""

    name: str
    start: list[EvaluationRow]
    ends: dict[str, list[EvaluationRow]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rebuild", type=int, nargs="*", default=[], help="also from policies built with these seeds")
    parser.add_argument("--arms", nargs="+", default=["textual", "ivgr"], choices=["textual", "ivgr", *ABLATIONS])
    parser.add_argument("--n", type=int, default=1000, help="held-out scenes of each evaluation")
    parser.add_argument("--steps", type=int, default=None, help="training steps; default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/ivgr_demo"))
    args, overrides = parser.parse_known_args()
    seeds = [run_seed(args, s, "embedded:qwen3_vl", f"seed-{s}", overrides) for s in args.seeds]
    for built in args.rebuild:
        model = build_start(args.out / f"start-{built}", built)
        seeds.append(run_seed(args, 100 + built, str(model), f"start-{built}-run", overrides))
    report(seeds)


def build_start(folder: Path, seed: int) -> Path:
    """A policy built from nothing with another seed."""
    if not (folder / "card.json").exists():
        words = ["scenes", "build-policy", "--family", "qwen3_vl", "--seed", str(seed), "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "sightline", *words], check=True)
    return folder.resolve()


def run_seed(args: argparse.Namespace, seed: int, model: str, name: str, overrides: list[str]) -> Seed:
    """Trains every arm of one seed (kept runs are not repeated) and reads their tables."""
    import yaml

    from sightline.config import recipe_path

    recipe = yaml.safe_load(recipe_path("demo").read_text())
    known = recipe["arms"]
    recipe["arms"] = {arm: known.get(arm, {"method": ABLATIONS.get(arm, {})}) for arm in args.arms}
    recipe["model"]["name"] = model
    recipe["train"] |= {"seed": seed, "evaluate_every": 0, **({"steps": args.steps} if args.steps else {})}
    recipe["evaluation"] |= {"n": args.n, "seed": 1000 + seed}
    path = args.out / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    folder = args.out / name
    subprocess.run(
        [sys.executable, "-m", "sightline", "train", str(path), "--out", str(folder), *overrides], check=True
    )
    tables = {arm: sorted((folder / "arms" / arm / "evaluations").glob("step-*.jsonl")) for arm in args.arms}
    ends = {arm: read_table(found[-1]) for arm, found in tables.items()}
    return Seed(name, read_table(tables[args.arms[0]][0]), ends)


def report(seeds: list[Seed]) -> None:
    console = Console(width=160)
    arms = list(seeds[0].ends)
    levels = Table("seed", "arm", "T accuracy", "G accuracy", "T+crops", "IoU", "right region")
    for seed in seeds:
        for arm, rows in {"start": seed.start, **seed.ends}.items():
            shown = [
                ("textual", "accuracy"),
                ("grounded", "accuracy"),
                ("crops", "accuracy"),
                ("grounded", "iou"),
                ("textual", "region"),
            ]
            levels.add_row(seed.name, arm, *(f"{mean(rows, mode, metric):.3f}" for mode, metric in shown))
    console.print(levels)
    figures: dict[str, list[float]] = {}
    table = Table("seed", "figure", "difference", "95 % interval", "off zero")
    for seed in seeds:
        for name, difference in differences(seed, arms).items():
            figures.setdefault(name, []).append(round(difference.difference.mean, 4))
            e = difference.difference
            table.add_row(
                seed.name,
                name,
                f"{e.mean:+.3f}",
                f"[{e.low:+.3f}, {e.high:+.3f}]",
                "yes" if difference.is_off_zero else "no",
            )
    console.print(table)
    pooled = {name: pool(seeds, name) for name in pairs(arms)}
    summary = Table("figure", "mean over seeds", "pooled 95 % interval")
    for name, (value, low, high) in pooled.items():
        summary.add_row(name, f"{value:+.3f}", f"[{low:+.3f}, {high:+.3f}]")
    console.print(summary)
    print(json.dumps({**figures, "pooled": {k: [round(x, 4) for x in v] for k, v in pooled.items()}}))


def pairs(arms: list[str]) -> dict[str, tuple[str, str, str, str]]:
    """Figure -> (before, after, mode, metric)."""
    found = {
        "text_accuracy_gain": ("start", "ivgr", "textual", "accuracy"),
        "iou_gain": ("start", "ivgr", "grounded", "iou"),
        "region_gain": ("start", "ivgr", "textual", "region"),
        "iou_vs_textual_only": ("textual", "ivgr", "grounded", "iou"),
        "region_vs_textual_only": ("textual", "ivgr", "textual", "region"),
        "text_accuracy_vs_textual_only": ("textual", "ivgr", "textual", "accuracy"),
        "crops_accuracy_vs_textual_only": ("textual", "ivgr", "crops", "accuracy"),
    }
    for other in ("dual", "no_archive"):
        found |= {
            f"text_accuracy_vs_{other}": (other, "ivgr", "textual", "accuracy"),
            f"region_vs_{other}": (other, "ivgr", "textual", "region"),
            f"iou_vs_{other}": (other, "ivgr", "grounded", "iou"),
        }
    held = {"start", *arms}
    return {name: pair for name, pair in found.items() if {pair[0], pair[1]} <= held}


def differences(seed: Seed, arms: list[str]) -> dict[str, Difference]:
    tables = {"start": seed.start, **seed.ends}
    return {
        name: compare(tables[before], tables[after], modes={mode: mode}).differences[mode][metric]
        for name, (before, after, mode, metric) in pairs(arms).items()
    }


def pool(seeds: list[Seed], name: str) -> tuple[float, float, float]:
    """Mean over seeds, with the paired bootstrap over all scenes of all seeds."""
    before, after = [], []
    a, b, mode, metric = pairs(list(seeds[0].ends))[name]
    for seed in seeds:
        tables = {"start": seed.start, **seed.ends}
        left, right = values(tables[a], mode, metric), values(tables[b], mode, metric)
        shared = [record for record in left if record in right]
        before += [left[r] for r in shared]
        after += [right[r] for r in shared]
    estimate = paired_difference(before, after)
    return estimate.mean, estimate.low, estimate.high


def values(rows: list[EvaluationRow], mode: str, metric: str) -> dict[str, float]:
    return {row.record: row.metrics[metric] for row in rows if row.mode == mode and metric in row.metrics}


def mean(rows: list[EvaluationRow], mode: str, metric: str) -> float:
    found = list(values(rows, mode, metric).values())
    return float(np.mean(found)) if found else float("nan")


if __name__ == "__main__":
    main()
