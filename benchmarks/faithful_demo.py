"""What Anchoring and Reinforcing do: the region mass of the focus token, and rewards for attention from the same start.

    python benchmarks/faithful_demo.py --seeds 0 1 2 3 4
    python benchmarks/faithful_demo.py --seeds 0 --arms accuracy token   # without the region axis

A seed varies the training scenes, the sampling and the held-out scenes. The shipped policy is anchored once per seed;
from there GRPO on accuracy alone, with the token axis and with the region axis train on the same scenes. Every figure
is a paired difference over the same held-out scenes with its 95 % bootstrap interval. Runs and tables are kept and
resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import settle
from looking import MODE, held_out, kept_table, means, trained
from paired import Pair, Seed, report

LEVEL, START = "hard", "embedded:qwen3_vl"
ARMS: Mapping[str, Mapping[str, Any]] = {
    "accuracy": {"method": {"reward": {"lam_attn": 0.0}}},
    "token": {},
    "region": {"method": {"score": {"axis": "region"}}},
}
METRICS = {
    "accuracy": "accuracy",
    "focus_region": "token/region_mass",
    "focus_cover": "token/cover_mass",
    "causal_attention": "token/attention",
    "region_score": "region/attention",
    "evidence_drop": "evidence_drop",
    "random_drop": "random_drop",
    "faithful_drop": "faithful_drop",
}
LEVELS = {name.replace("_", " "): (MODE, metric) for name, metric in METRICS.items()}
FIGURES = {
    **{f"anchoring_{name}": Pair("start", "anchored", MODE, metric) for name, metric in METRICS.items()},
    **{
        f"{after}_{name}_vs_{before}": Pair(before, after, MODE, metric)
        for before, after in (
            ("anchored", "accuracy"),
            ("accuracy", "token"),
            ("accuracy", "region"),
            ("token", "region"),
        )
        for name, metric in METRICS.items()
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--n", type=int, default=500, help="held-out scenes of each table")
    parser.add_argument("--steps", type=int, default=None, help="reinforcement steps; default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/faithful_demo"))
    args, overrides = parser.parse_known_args()
    settle()
    seeds = [run_seed(args, seed, overrides) for seed in args.seeds]
    report(seeds, LEVELS, FIGURES, {"levels": means(seeds, LEVELS)})


def run_seed(args: argparse.Namespace, seed: int, overrides: Sequence[str]) -> Seed:
    """Anchors, reinforces every arm from there, and reads all tables."""
    import yaml

    from sightline.config import recipe_path
    from sightline.methods import load_method

    folder = args.out / f"seed-{seed}"
    recipe = yaml.safe_load(recipe_path("faithful_mr1_style").read_text())
    recipe["train"] |= {"seed": seed, **({} if args.steps is None else {"steps": args.steps})}
    # the tables below measure more than the run itself would
    recipe["evaluation"] |= {"n": 32, "seed": 1000 + seed, "faithfulness": False}
    anchoring = {**recipe, "arms": {"anchored": {"train": {"steps": 0}}}}
    anchored = trained(anchoring, folder / "anchoring", overrides)["anchored"]
    start = {"model": {"name": str(anchored.resolve())}, "method": recipe["method"]}
    start["method"] = {**start["method"], "anchor": {**start["method"]["anchor"], "steps": 0}}
    ends = {}
    if args.arms:
        arms = {arm: ARMS[arm] for arm in args.arms}
        ends = trained({**recipe, **start, "arms": arms}, folder / "reinforcing", overrides)
    own = {**start["method"], "reward": {"gate": "none"}}
    methods = {axis: load_method({**own, "score": {**own["score"], "axis": axis}}) for axis in ("token", "region")}
    records, prefix = held_out(LEVEL, seed, args.n), recipe["evaluation"]["crops"]["forced_prefix"]
    tables = {
        name: kept_table(folder / f"{name}-{args.n}.jsonl", model, records, methods, prefix)
        for name, model in {"start": START, "anchored": anchored, **ends}.items()
    }
    return Seed(f"seed-{seed}", tables.pop("start"), tables)


if __name__ == "__main__":
    main()
