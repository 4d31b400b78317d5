"""What a reward for looking at the region does: SAYO as released, gated by accuracy, and accuracy alone.

    python benchmarks/sayo_demo.py --seeds 0 1 2 3 4

A seed varies the training scenes, the sampling and the held-out scenes. All arms start from the shipped policy and
sample the same number of groups. Every figure is a paired difference over the same held-out scenes with its 95 %
bootstrap interval. Runs and tables are kept and resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import settle
from looking import MODE, held_out, kept_table, means, trained
from paired import Pair, Seed, report

LEVEL, START = "hard", "embedded:qwen3_vl"
ARMS = ("parity", "gated", "accuracy")
METRICS = {
    "region_ratio": "sayo/region_ratio",
    "attention": "sayo/attention",
    "accuracy": "accuracy",
    "format": "format",
    "tokens": "tokens",
    "top_share": "sayo/top_share",
    "faithful_drop": "faithful_drop",
}
LEVELS = {name.replace("_", " "): (MODE, metric) for name, metric in METRICS.items()}
FIGURES = {
    **{f"{arm}_{name}_gain": Pair("start", arm, MODE, metric) for arm in ARMS for name, metric in METRICS.items()},
    **{
        f"{arm}_{name}_vs_accuracy": Pair("accuracy", arm, MODE, metric)
        for arm in ARMS[:2]
        for name, metric in METRICS.items()
    },
    **{f"gated_{name}_vs_parity": Pair("parity", "gated", MODE, metric) for name, metric in METRICS.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--n", type=int, default=500, help="held-out scenes of each table")
    parser.add_argument("--steps", type=int, default=None, help="training steps; default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/sayo_demo"))
    args, overrides = parser.parse_known_args()
    settle()
    seeds = [run_seed(args, seed, overrides) for seed in args.seeds]
    report(seeds, LEVELS, FIGURES, {"levels": means(seeds, LEVELS)})


def arm_method(recipe: dict[str, Any], arm: str) -> dict[str, Any]:
    """The method of an arm; accuracy alone is `gated` without its weight on attention."""
    chosen = {**recipe["method"], "preset": "parity" if arm == "parity" else "gated"}
    return {**chosen, "weights": {"attention": 0.0}} if arm == "accuracy" else chosen


def run_seed(args: argparse.Namespace, seed: int, overrides: Sequence[str]) -> Seed:
    """Trains every arm and reads all tables."""
    import yaml

    from sightline.config import recipe_path
    from sightline.methods import load_method

    folder = args.out / f"seed-{seed}"
    recipe = yaml.safe_load(recipe_path("sayo").read_text())
    recipe["train"] |= {"seed": seed, **({} if args.steps is None else {"steps": args.steps})}
    # the tables below measure more than the run itself would
    recipe["evaluation"] |= {"n": 32, "seed": 1000 + seed, "faithfulness": False}
    recipe["arms"] = {arm: {"method": arm_method(recipe, arm)} for arm in args.arms}
    ends = trained(recipe, folder / "runs", overrides)
    methods, records = {"sayo": load_method(recipe["method"])}, held_out(LEVEL, seed, args.n)
    tables = {
        name: kept_table(folder / f"{name}-{args.n}.jsonl", model, records, methods, "")
        for name, model in {"start": START, **ends}.items()
    }
    return Seed(f"seed-{seed}", tables.pop("start"), tables)


if __name__ == "__main__":
    main()
