"""What twenty triplets teach: GRIT against few-shot SFT on the same twenty, and against GRPO without its box terms.

    python benchmarks/grit_demo.py --seeds 0 1 2 3 4
    python benchmarks/grit_demo.py --seeds 0 1 2 --scaling   # 20, 200 and 2,000 triplets, and the picture of the curve

All arms start from the shipped policy, which knows GRIT's language already. A seed varies the triplets, the sampling
and the held-out scenes. Triplets are ten marks and ten counts, with counts of 0 to 3 alike; no arm but SFT sees a gold
box. Figures are paired differences over the same held-out scenes with 95 % bootstrap intervals. Runs are kept and
resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curve import Curve, draw_curves
from paired import Pair, Seed, report, train_seed, values
from sightline.evaluate.runner import EvaluationRow
from sightline.evaluate.statistics import Estimate, mean_interval
from sightline.geometry.frames import Frame
from sightline.types import Record
from triplets import write_triplets

LEVEL = "hard"
ARMS: Mapping[str, Mapping[str, Any]] = {
    "grit": {},
    "plain": {"method": {"weights": {"box": 0.0, "count": 0.0}}},
    # a rate and a length chosen for SFT on other scenes: more of either costs it accuracy and boxes
    "sft": {"method": {"cold_start": 10}, "train": {"steps": 0}, "optim": {"lr": 2e-5}},
}
SIZES = (20, 200, 2000)
# about 512 rollouts per step whatever the size; 32 steps of 64 records draw each of 2,000 triplets once
SCALING = {"train": {"steps": 32}, "optim": {"lr": 1.5e-4, "warmup_steps": 5}}
ROLLOUTS, RECORDS = 512, 64
PANELS = {"grounded accuracy": "accuracy", "grounding IoU": "iou_union", "correlation": "correlation"}
LEVELS = {
    "accuracy": ("grit", "accuracy"),
    "grounding IoU": ("grit", "iou_union"),
    "counts match": ("grit", "counts_match"),
    "correlation": ("grit", "correlation"),
    "right region": ("grit", "region"),
    "format": ("grit", "format"),
}
METRICS = {
    "accuracy": ("accuracy", ""),
    "mark_accuracy": ("accuracy", "mark"),
    "count_accuracy": ("accuracy", "count"),
    "grounding_iou": ("iou_union", ""),
    "counts_match": ("counts_match", ""),
    "correlation": ("correlation", ""),
}
FIGURES = {
    **{f"{name}_gain": Pair("start", "grit", "grit", m, kind=k) for name, (m, k) in METRICS.items()},
    **{
        f"{name}_vs_{other}": Pair(other, "grit", "grit", m, kind=k)
        for other in ("sft", "plain")
        for name, (m, k) in METRICS.items()
    },
    **{f"sft_{name}_gain": Pair("start", "sft", "grit", *METRICS[name][:1]) for name in ("accuracy", "grounding_iou")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--n", type=int, default=600, help="held-out scenes of each evaluation")
    parser.add_argument("--steps", type=int, default=None, help="reinforcement steps; default: the recipe's")
    parser.add_argument("--scaling", action="store_true", help="GRIT from 20, 200 and 2,000 triplets in place of arms")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="triplets of each run of --scaling")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/grit_scaling.svg"))
    parser.add_argument("--out", type=Path, default=Path("runs/grit_demo"))
    args, overrides = parser.parse_known_args()
    if args.scaling:
        scaling(args, overrides)
        return
    seeds = [run_seed(args, seed, args.out / f"seed-{seed}", _arms(args), 20, overrides) for seed in args.seeds]
    report(seeds, LEVELS, FIGURES)


def _arms(args: argparse.Namespace) -> dict[str, Any]:
    """The chosen arms; `--steps` is for those that learn by reinforcement."""
    steps = {} if args.steps is None else {"train": {"steps": args.steps}}
    return {arm: {**steps, **ARMS[arm]} for arm in args.arms}


def run_seed(
    args: argparse.Namespace,
    seed: int,
    folder: Path,
    arms: Mapping[str, Any],
    triplets: int,
    overrides: Sequence[str],
) -> Seed:
    """The recipe `grit` with the wanted arms on the triplets of one seed; every reply is then judged."""
    import yaml

    from sightline.config import recipe_path

    data = folder.with_name(f"data-{seed}")
    held_out = write_triplets(data / f"held-out-{args.n}", LEVEL, "validation", 1000 + seed, args.n)
    recipe = yaml.safe_load(recipe_path("grit").read_text())
    recipe["data"] = {
        "train": str(write_triplets(data / f"train-{triplets}", LEVEL, "train", seed, triplets).resolve()),
        "validation": str(held_out.resolve()),
        "limit": triplets,
        "records_per_step": 20,
    }
    recipe["train"] |= {"seed": seed}
    recipe["evaluation"] |= {"n": args.n, "seed": 1000 + seed}
    recipe["arms"] = {arm: dict(changes) for arm, changes in arms.items()}
    return judged(train_seed(recipe, folder, overrides), held_out, seed)


def judged(seed: Seed, held_out: Path, draws: int) -> Seed:
    """The tables with the cross-modal correlation of every reply, by the truth of the scenes."""
    from sightline.data import read_records
    from sightline.policy.load import load_policy

    frame, records = load_policy("embedded:qwen3_vl").frame, list(read_records(held_out))
    ends = {arm: with_correlation(rows, records, frame, draws) for arm, rows in seed.ends.items()}
    return replace(seed, start=with_correlation(seed.start, records, frame, draws), ends=ends)


def with_correlation(
    rows: Sequence[EvaluationRow], records: Sequence[Record], frame: Frame, draws: int
) -> list[EvaluationRow]:
    """The rows; those with a valid box carry the share of picks that fell on it."""
    from sightline.evaluate.correlation import chains_in, correlate
    from sightline.evaluate.pair_judges import SceneJudge

    chains = chains_in(rows, records, frame, "grit")
    picked = correlate(chains, SceneJudge(), seed=draws).by_record if chains else {}
    return [
        replace(row, metrics={**row.metrics, "correlation": picked[row.record]}) if row.record in picked else row
        for row in rows
    ]


def scaling(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Trains on more and more triplets for the same number of steps, and draws what comes of it."""
    merged = []
    for seed in args.seeds:
        runs = [
            run_seed(
                args, seed, args.out / f"scaling-{size}-seed-{seed}", {"grit": _scaled(args, size)}, size, overrides
            )
            for size in args.sizes
        ]
        ends = {f"grit_{size}": run.ends["grit"] for size, run in zip(args.sizes, runs, strict=True)}
        merged.append(Seed(f"seed-{seed}", runs[0].start, ends))
    sizes = {f"grit_{size}": size for size in args.sizes}
    figures = {
        f"{arm}_{name}_gain": Pair("start", arm, "grit", metric, kind=kind)
        for arm in sizes
        for name, (metric, kind) in METRICS.items()
    }
    curves = [
        Curve(title, args.sizes, [level(merged, arm, metric) for arm in sizes], level(merged, "start", metric))
        for title, metric in PANELS.items()
    ]
    draw_curves(curves, args.picture, "triplets")
    levels = {c.title: {str(s): round(e.mean, 4) for s, e in zip(c.sizes, c.estimates, strict=True)} for c in curves}
    report(merged, LEVELS, figures, {"levels": levels, "picture": str(args.picture)})


def _scaled(args: argparse.Namespace, size: int) -> dict[str, Any]:
    """What the runs of the curve change in the recipe: fewer records per step get more rollouts each."""
    records = min(size, RECORDS)
    return {
        **SCALING,
        **({} if args.steps is None else {"train": {"steps": args.steps}}),
        "data": {"records_per_step": records},
        "method": {"streams": {"grit": {"n": ROLLOUTS // records}}},
    }


def level(seeds: Sequence[Seed], arm: str, metric: str) -> Estimate:
    """The mean of a metric over the records of all seeds."""
    found = [value for seed in seeds for value in values(seed.tables[arm], "grit", metric).values()]
    return mean_interval(found)


if __name__ == "__main__":
    main()
