"""The update phase (forward, loss, backward; no optimiser step) of the token tree against three padded peers.

    make bench && .venv/bin/python benchmarks/update.py

Peers: TRL 1.16's own loss method on prepared inputs (one image and one prompt per Rollout); the library's stock call on
a padded batch (image per Rollout, logits everywhere); a padded batch that encodes each image once and computes the
logits of the replies only. Same weights, fp32, one thread, same checkpointing. Old log-probs carry fixed noise, so that
clipping acts. Before anything is timed, losses must agree to 1e-4 and the gradient of every tensor to 1e-3, relative.

Seconds are process CPU time, medians of alternating pairs. Memory is the peak resident size above what the process held
before its first update, each side in a process of its own. The tree's time includes building trees and batches, which
the peers have prepared beforehand.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness import alternating_pairs, child_json, measures_memory, peak_mib, print_json, print_table, settle

if TYPE_CHECKING:
    from shapes import Shape
    from sides import Side, TreeSide

LOSS, GRADIENT = 1e-4, 1e-3
Peer = Literal["trl", "per_rollout", "shared"]
NAMES = {
    "trl": "TRL 1.16",
    "per_rollout": "padded, image per rollout, all logits",
    "shared": "padded, vision shared, reply logits",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison; `key` is the JSON key it counts for (several cases of a key report the smallest ratio)."""

    name: str
    shape: Shape
    peer: Peer
    key: str
    kl: float = 0.0
    has_memory: bool = False


def cases() -> dict[str, Case]:
    """The comparisons by name."""
    from shapes import IVGR, TRL

    found = []
    for visual in (16, 256):
        shape = replace(TRL, visual=visual)
        for kl in (0.0, 0.01):
            found.append(Case(f"trl-{visual}-kl{kl:g}", shape, "trl", f"vs_trl_{visual}", kl, has_memory=kl == 0.0))
        found.append(Case(f"trl-{visual}-shared", shape, "shared", ""))
    for visual in (256, 576):
        shape = replace(IVGR, visual=visual)
        found.append(Case(f"ivgr-{visual}-padded", shape, "per_rollout", f"vs_padded_{visual}", has_memory=True))
        found.append(
            Case(f"ivgr-{visual}-shared", shape, "shared", f"vs_padded_shared_vision_{visual}", has_memory=True)
        )
    return {case.name: case for case in found}


def make_sides(
    case: Case, folder: Path, family: str, checkpointing: bool, only: str = ""
) -> tuple[TreeSide | None, Side | None]:
    """Both sides over the same weights and Rollouts; `only` builds one of them."""
    from shapes import groups_of, write_checkpoint
    from sides import PaddedSide, TreeSide, bench_policy
    from trl_side import TRLSide

    write_checkpoint(folder, case.shape, family)
    policy = bench_policy(folder, checkpointing=checkpointing)
    groups = groups_of(policy, case.shape)
    ours = theirs = None
    if only != "theirs":
        ours = TreeSide(policy, groups, case.kl)
    if only != "ours" and case.peer == "trl":
        theirs = TRLSide(folder, policy, groups, case.kl, checkpointing)
    elif only != "ours":
        stock = bench_policy(folder, checkpointing=checkpointing, stock=True)
        theirs = PaddedSide(stock, groups, case.kl, case.peer)  # type: ignore[arg-type]
    return ours, theirs


def compare(case: Case, arguments: argparse.Namespace) -> tuple[list[str], float, float, float, float]:
    """Row of the table, median ratio, differences of loss and gradient, ratio of memory (0 if not measured)."""
    from sides import agreement

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = make_sides(case, Path(folder), arguments.family, arguments.checkpointing)
        assert ours is not None
        assert theirs is not None
        loss, gradient = agreement(ours, theirs)
        if loss > LOSS or gradient > GRADIENT:
            raise SystemExit(f"{case.name}: the sides differ, loss {loss:.1e}, gradient {gradient:.1e} (relative)")
        if ours.clip_fraction < 0.01:
            raise SystemExit(f"{case.name}: clipping hardly acts")
        pairs = alternating_pairs(ours.update, theirs.update, arguments.pairs)
    cells, memory = ["-", "-", "-"], 0.0
    if case.has_memory and measures_memory():
        own, other = (_memory(case, side, arguments) for side in ("ours", "theirs"))
        memory = other / own
        cells = [f"{other:.0f}", f"{own:.0f}", f"{memory:.2f}x"]
    shape = case.shape
    row = [
        NAMES[case.peer],
        f"{shape.records}x{len(shape.streams) * shape.rollouts}",
        str(shape.visual),
        f"{case.kl:g}",
    ]
    return [*row, *pairs.row(), *cells, f"{loss:.0e}", f"{gradient:.0e}"], pairs.ratio, loss, gradient, memory


def _memory(case: Case, side: str, arguments: argparse.Namespace) -> float:
    options = ["--memory", side, "--case", case.name, "--family", arguments.family]
    return child_json(__file__, *options, *(["--checkpointing"] if arguments.checkpointing else []))["mib"]


def run(chosen: Sequence[Case], arguments: argparse.Namespace) -> None:
    header = ["peer", "rollouts", "image tokens", "kl", "peer s", "tree s", "ratio", "range"]
    header += ["peer MiB", "tree MiB", "ratio", "loss diff", "gradient diff"]
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    losses, gradients, memory = [], [], 0.0
    for case in chosen:
        row, ratio, loss, gradient, held = compare(case, arguments)
        rows.append(row)
        losses.append(loss)
        gradients.append(gradient)
        if case.key:
            ratios[case.key] = min(ratio, ratios.get(case.key, ratio))
        if case.key == "vs_trl_256" and held:
            memory = held
        print("  ".join(row), file=sys.stderr, flush=True)
    print_table(header, rows)
    figures = {**ratios, "loss_difference": max(losses), "gradient_difference": max(gradients)}
    print_json(figures | ({"memory_vs_trl_256": memory} if memory else {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs per comparison")
    parser.add_argument("--family", default="qwen3_vl", choices=("qwen3_vl", "qwen2_5_vl"))
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, on both sides")
    parser.add_argument("--case", help="run one comparison only")
    parser.add_argument("--memory", choices=("ours", "theirs"), help="measure the memory of one side of --case")
    arguments = parser.parse_args()
    if not all(importlib.util.find_spec(name) for name in ("trl", "accelerate")):
        print(
            "error: benchmarks/update.py needs TRL 1.16 and accelerate; install them with: make bench", file=sys.stderr
        )
        raise SystemExit(2)
    found = importlib.metadata.version("trl")
    if found.split(".")[:2] != ["1", "16"]:
        print(
            f"error: benchmarks/update.py calls TRL 1.16, found {found}; install it with: make bench", file=sys.stderr
        )
        raise SystemExit(2)
    settle()
    chosen = cases()
    if arguments.case not in (None, *chosen) or (arguments.memory and not arguments.case):
        parser.error(f"no case {arguments.case!r}; one of {', '.join(chosen)}")
    if arguments.memory:
        with tempfile.TemporaryDirectory() as folder:
            case = chosen[str(arguments.case)]
            sides = make_sides(case, Path(folder), arguments.family, arguments.checkpointing, arguments.memory)
            (side,) = (side for side in sides if side is not None)
            print_json({"mib": peak_mib(side.update)})
        return
    run([chosen[arguments.case]] if arguments.case else list(chosen.values()), arguments)


if __name__ == "__main__":
    main()
