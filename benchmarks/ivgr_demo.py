"""What internalising localisation does: iVGR against textual-only GRPO from the same start, over seeds.

    python benchmarks/ivgr_demo.py --seeds 0 1 2 3 4
    python benchmarks/ivgr_demo.py --seeds 0 1 2 --arms textual ivgr dual no_archive   # what each part adds
    python benchmarks/ivgr_demo.py --seeds 0 1 --rebuild 1 2                             # from rebuilt starts too

A seed varies the training scenes, the sampling and the evaluation scenes. Both arms train on the recipe `demo`; every
figure is a paired difference over the same held-out scenes with its 95 % bootstrap interval. Runs are kept and resumed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paired import Pair, Seed, build_start, report, train_seed

ABLATIONS = {
    "dual": {"weights": {"consistency": 0.0}},
    "no_archive": {"archive": {"policy": "current_step"}},
}
LEVELS = {
    "T accuracy": ("textual", "accuracy"),
    "G accuracy": ("grounded", "accuracy"),
    "T+crops": ("crops", "accuracy"),
    "IoU": ("grounded", "iou"),
    "right region": ("textual", "region"),
}
FIGURES = {
    "text_accuracy_gain": Pair("start", "ivgr", "textual", "accuracy"),
    "iou_gain": Pair("start", "ivgr", "grounded", "iou"),
    "region_gain": Pair("start", "ivgr", "textual", "region"),
    "iou_vs_textual_only": Pair("textual", "ivgr", "grounded", "iou"),
    "region_vs_textual_only": Pair("textual", "ivgr", "textual", "region"),
    "text_accuracy_vs_textual_only": Pair("textual", "ivgr", "textual", "accuracy"),
    "crops_accuracy_vs_textual_only": Pair("textual", "ivgr", "crops", "accuracy"),
    **{
        f"{name}_vs_{other}": Pair(other, "ivgr", mode, metric)
        for other in ABLATIONS
        for name, mode, metric in (
            ("text_accuracy", "textual", "accuracy"),
            ("region", "textual", "region"),
            ("iou", "grounded", "iou"),
        )
    },
}


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
    report(seeds, LEVELS, FIGURES)


def run_seed(args: argparse.Namespace, seed: int, model: str, name: str, overrides: list[str]) -> Seed:
    """The recipe `demo` with the wanted arms, trained from one seed."""
    import yaml

    from sightline.config import recipe_path

    recipe = yaml.safe_load(recipe_path("demo").read_text())
    known = recipe["arms"]
    recipe["arms"] = {arm: known.get(arm, {"method": ABLATIONS.get(arm, {})}) for arm in args.arms}
    recipe["model"]["name"] = model
    recipe["train"] |= {"seed": seed, "evaluate_every": 0, **({"steps": args.steps} if args.steps else {})}
    recipe["evaluation"] |= {"n": args.n, "seed": 1000 + seed}
    return train_seed(recipe, args.out / name, overrides)


if __name__ == "__main__":
    main()
