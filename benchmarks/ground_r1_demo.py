"""What looking closely is worth: Ground-R1 on scenes whose marks only a crop makes readable, SRPO against GRPO.

    python benchmarks/ground_r1_demo.py --seeds 0 1 2 3 4
    python benchmarks/ground_r1_demo.py --seeds 0 1 --arms srpo grpo v1     # with the tree of v1 too

Arms start from the shipped policy and sample the same tree, 4 first turns with 2 continuations each, on the same
scenes; only the advantage differs. Each policy is also asked with controls in place of its crops: the full image again,
a rectangle of the same size elsewhere, a grey one. Figures are paired differences over the same held-out scenes with
95 % bootstrap intervals. Occupancy is that of the bins of box area, while training and on the held-out scenes. Runs are
kept and resumed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from paired import Pair, Seed, report, train_seed
from sightline.evaluate.runner import EvaluationRow, read_table
from sightline.types import Record

LEVEL = "zoom"
CONTROLS = ("no-crop", "random-crop", "blank-crop")
ARMS: Mapping[str, Mapping[str, Any]] = {
    "srpo": {"method": {"advantage": "srpo"}},
    "grpo": {"method": {"advantage": "grpo"}},
    "v1": {"method": {"advantage": "grpo", "tree": {"n_ground": 2, "n_answer": 4}, "weights": {"format": 2.0}}},
}
MAIN = ("srpo", "grpo")
LEVELS = {
    "accuracy": ("turns", "accuracy"),
    **{control: (control, "accuracy") for control in CONTROLS},
    "IoU": ("turns", "iou"),
    "writes a box": ("turns", "box_rate"),
    "format": ("turns", "format"),
}
FIGURES = {
    **{
        f"crop_vs_{control.replace('-', '_')}_{who}": Pair(who, who, control, "accuracy", "turns")
        for who in ("start", *ARMS)
        for control in CONTROLS
    },
    **{f"{arm}_{metric}_gain": Pair("start", arm, "turns", metric) for arm in ARMS for metric in ("accuracy", "iou")},
    **{
        f"srpo_{metric}_vs_{other}": Pair(other, "srpo", "turns", metric)
        for other in ("grpo", "v1")
        for metric in ("accuracy", "iou", "box_rate")
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(MAIN), choices=list(ARMS))
    parser.add_argument("--n", type=int, default=500, help="held-out scenes of each evaluation")
    parser.add_argument("--steps", type=int, default=None, help="training steps; default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/ground_r1_demo"))
    args, overrides = parser.parse_known_args()
    recipe = _recipe(args)
    seeds, trained = [], []
    for number in args.seeds:
        folder = args.out / f"seed-{number}"
        asked = {
            "train": recipe["train"] | {"seed": number},
            "evaluation": recipe["evaluation"] | {"n": args.n, "seed": 1000 + number},
        }
        seed = train_seed({**recipe, **asked}, folder, overrides)
        seeds.append(with_controls(seed, folder, {**recipe, **asked}))
        trained.append({arm: occupancy_of_training(folder / "arms" / arm) for arm in args.arms})
    held_out = {who: _mean([occupancy_of_replies(s.tables[who], recipe) for s in seeds]) for who in seeds[0].tables}
    training = {arm: {when: _mean([t[arm][when] for t in trained]) for when in ("first", "last")} for arm in args.arms}
    print_occupancy(held_out, training)
    report(seeds, LEVELS, FIGURES, {"bins": recipe["method"]["bins"]["edges"], "held_out": held_out, "train": training})


def _recipe(args: argparse.Namespace) -> dict[str, Any]:
    import yaml

    from sightline.config import recipe_path

    recipe = yaml.safe_load(recipe_path("ground_r1").read_text())
    recipe["arms"] = {arm: dict(ARMS[arm]) for arm in args.arms}
    if args.steps is not None:
        recipe["train"] |= {"steps": args.steps}
    return recipe


def with_controls(seed: Seed, folder: Path, recipe: Mapping[str, Any]) -> Seed:
    """The tables with a mode of its own for each control, asked of the start and of the end of every arm."""
    models = {"start": recipe["model"]["name"]}
    models |= {arm: str(sorted((folder / "arms" / arm / "checkpoints").glob("step-*"))[-1]) for arm in seed.ends}
    tables = {
        who: [*rows, *(row for control in CONTROLS for row in asked(who, models[who], control, folder, recipe))]
        for who, rows in seed.tables.items()
    }
    return replace(seed, start=tables["start"], ends={arm: tables[arm] for arm in seed.ends})


def asked(who: str, model: str, control: str, folder: Path, recipe: Mapping[str, Any]) -> list[EvaluationRow]:
    """The rows of one control, from the file of an earlier call where there is one."""
    from sightline.evaluate.runner import evaluate, write_table
    from sightline.policy.load import load_policy
    from sightline.sampling.base import SamplingSettings
    from sightline.tools.settings import ModeConfig

    path = folder / "controls" / f"{who}-{control}.jsonl"
    wanted = recipe["evaluation"]
    if not path.exists():
        found = evaluate(
            load_policy(model), scenes(wanted["seed"], wanted["n"]), ["turns"],
            config=ModeConfig.model_validate({**wanted["crops"], "control": control}), seed=wanted["seed"],
            settings=SamplingSettings(temperature=0.0, max_new_tokens=recipe["sampling"]["max_new_tokens"]),
            label=f"{who}, {control}",
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(found, path)
    return [replace(row, mode=control) for row in read_table(path)]


def scenes(seed: int, n: int) -> list[Record]:
    """The held-out scenes that training evaluates on."""
    from sightline.scenes import record_at

    return [record_at(LEVEL, "validation", seed, i) for i in range(n)]


def occupancy_of_replies(rows: Sequence[EvaluationRow], recipe: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the bins among greedy replies, by the first box of each, and the mean area of these boxes."""
    from sightline.credit.bins import bins_of

    edges = recipe["method"]["bins"]["edges"]
    whole = float(scenes(0, 1)[0].meta["side"]) ** 2
    boxes = [row.boxes[0] if row.boxes else None for row in rows if row.mode == "turns"]
    areas = [None if b is None else (b[2] - b[0]) * (b[3] - b[1]) / whole for b in boxes]
    places = bins_of(areas, edges)
    shares = {_name(k): float(np.mean(places == k)) for k in range(len(edges) + 2)}
    known = [a for a in areas if a is not None]
    return {**shares, "box_area": float(np.mean(known)) if known else 0.0}


def occupancy_of_training(folder: Path, steps: int = 6) -> dict[str, dict[str, float]]:
    """Mean share and reward of every bin over the first and the last steps of a run."""
    rows = [json.loads(line)["metrics"] for line in (folder / "events.jsonl").read_text().splitlines()]
    return {"first": _bins(rows[:steps]), "last": _bins(rows[-steps:])}


def _bins(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    prefix = "credit/grounded/"
    names = dict.fromkeys(n for row in rows for n in row if n.startswith((f"{prefix}bin_", f"{prefix}no_box")))
    found = {n.removeprefix(prefix): float(np.mean([row[n] for row in rows if n in row])) for n in names}
    terms = [n for n in ("inter", "intra", "box_area") if any(prefix + n in row for row in rows)]
    return found | {n: float(np.mean([row[prefix + n] for row in rows if prefix + n in row])) for n in terms}


def _name(place: int) -> str:
    return f"bin_{place}" if place else "no_box"


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the seeds that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(float(np.mean([row[name] for row in rows if name in row])), 4) for name in names}


def print_occupancy(held_out: Mapping[str, Mapping[str, float]], training: Mapping[str, Mapping[str, Any]]) -> None:
    console = Console(width=160)
    names = list(next(iter(held_out.values())))
    table = Table("held out", *names)
    for who, shares in held_out.items():
        table.add_row(who, *(f"{shares[name]:.3f}" for name in names))
    console.print(table)
    columns = sorted({name for arm in training.values() for shares in arm.values() for name in shares})
    table = Table("training", *columns)
    for arm, shares in training.items():
        for when, found in shares.items():
            table.add_row(f"{arm}, {when} steps", *(f"{found[n]:.3f}" if n in found else "" for n in columns))
    console.print(table)


if __name__ == "__main__":
    main()
