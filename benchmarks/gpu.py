"""The update on a GPU: token tree and FlexAttention against padded batches and TRL, read-outs, and a kernel profile.

    .venv/bin/python benchmarks/gpu.py --model 3B --model 7B --profile     # bf16, one CUDA device, no files needed
    .venv/bin/python benchmarks/gpu.py --tiny                              # the same code on a CPU, in seconds

Qwen2.5-VL as published with random weights; one Group of iVGR's shape: a prompt of 1,300 tokens, 1,008 of them visual,
two streams of five Rollouts of 400 tokens. Forward, loss and backward from cleared gradients; trees and batches are
built anew at every call, on every side. No activation checkpointing unless `--checkpointing`.

The padded peers run causal flash attention without a mask and share our vision attention and our log-prob head, which
is the strongest form of them: what is left is what the tree saves. `bound` is the ratio of model FLOPs (unique tree
tokens and visible pairs against padded tokens and causal pairs, vision and head counted), `share` how much of it the
measured ratio reaches. MFU is model FLOPs, without recomputation, over time and the dense bf16 peak of the card.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness import print_json, print_table, settle

if TYPE_CHECKING:
    from gpu_models import Shape
    from sightline.policy.load import Policy


@dataclass(frozen=True, slots=True)
class Timed:
    """Median seconds, their range, and the peak of allocated memory above what stood there before, in GiB."""

    seconds: float
    low: float
    high: float
    memory: float


def measure(update: Callable[[], None], repeats: int, *, is_cuda: bool, row: int = 3) -> Timed:
    """Warms up (compilation, the allocator), then takes the median over rows of updates.

    Updates of a row follow each other as micro-batches of a step do: nothing is read back in between.
    """
    row = row if is_cuda else 1
    import torch

    for _ in range(row):
        update()
    before = 0
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats):
        if is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(row):
            update()
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / row)
    peak = torch.cuda.max_memory_allocated() - before if is_cuda else 0
    return Timed(statistics.median(seconds), min(seconds), max(seconds), peak / 2**30)


class Bench:
    """One architecture: its sides, timed one after the other, as rows of a table."""

    def __init__(self, name: str, shape: Shape, arguments: argparse.Namespace) -> None:
        import torch

        from gpu_models import make_group, make_policy
        from sightline.policy.architecture import architecture
        from sightline.train.timing import peak_flops

        self.name, self.arguments = name, arguments
        self.device = torch.device("cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu")
        self.is_cuda = self.device.type == "cuda"
        dtype = torch.bfloat16 if self.is_cuda else torch.float32
        self.policy: Policy = make_policy(name, self.device, dtype, shape)
        if arguments.checkpointing:
            self.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy.model.train()
        self.model = architecture(self.policy.model.config)
        self.peak = peak_flops(self.device)
        self.groups = [make_group(self.policy, shape)]
        self.rows: list[list[str]] = []
        self.found: dict[str, Timed] = {}
        self.figures: dict[str, float] = {}
        self.trl: Any = None

    def run(self, label: str, side: Any, row: int = 3) -> Timed | None:
        """Times one side; what does not fit into memory is reported as such."""
        import torch

        try:
            timed = measure(side.update, self.arguments.repeats, is_cuda=self.is_cuda, row=row)
        except torch.OutOfMemoryError:
            self.policy.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.rows.append([label, "out of memory", *["-"] * 6])
            return None
        self.policy.model.zero_grad(set_to_none=True)
        from sightline.policy.flops import EVERYTHING, update_flops

        flops = update_flops(self.model, side.work, EVERYTHING).total
        key = label.replace(", ", "_").replace(" ", "_")
        self.found[label] = timed
        self.figures[f"{key}_ms"] = timed.seconds * 1e3
        self.figures[f"{key}_gib"] = timed.memory
        mfu = flops / timed.seconds / self.peak if self.peak else None
        if mfu is not None:
            self.figures[f"{key}_mfu"] = mfu
        tokens = side.work.tokens
        self.rows.append(
            [label, f"{timed.seconds * 1e3:.1f}", f"{timed.low * 1e3:.1f}-{timed.high * 1e3:.1f}", str(tokens),
             f"{tokens / timed.seconds:.0f}", f"{flops / 1e12:.2f}", "-" if mfu is None else f"{100 * mfu:.1f}",
             f"{timed.memory:.1f}"]
        )  # fmt: skip
        print("  ".join(self.rows[-1]), file=sys.stderr, flush=True)
        return timed

    def against(self, peers: dict[str, Any], tree: Any, label: str) -> list[list[str]]:
        """Measured ratio, arithmetic bound and the share reached, per peer."""
        from sightline.policy.flops import EVERYTHING, update_flops

        own = update_flops(self.model, tree.work, EVERYTHING).total
        rows = []
        for name, side in peers.items():
            if name not in self.found or label not in self.found:
                continue
            ratio = self.found[name].seconds / self.found[label].seconds
            bound = update_flops(self.model, side.work, EVERYTHING).total / own
            memory = self.found[name].memory / self.found[label].memory if self.found[label].memory else 0.0
            self.figures[f"share_{name}".replace(", ", "_").replace(" ", "_")] = ratio / bound
            rows.append([name, f"{ratio:.2f}", f"{bound:.2f}", f"{100 * ratio / bound:.0f}", f"{memory:.2f}"])
        return rows


def compare(bench: Bench) -> None:
    """All sides as they are, then with compiled layers, and the ratios."""
    from gpu_sides import PaddedSide, TreeSide
    from sightline.policy.compiled import compile_blocks

    policy, groups, count = bench.policy, bench.groups, bench.arguments.rows
    per_image = PaddedSide(policy, groups, "per_rollout", max(1, count // 2))
    sides: dict[str, Any] = {
        "tree": TreeSide(policy, groups),
        "padded, vision shared": PaddedSide(policy, groups, "shared", count),
        "padded, vision per rollout": per_image,
    }
    if bench.trl is not None:
        sides["TRL"] = bench.trl
    for label, side in sides.items():
        if label != "TRL":
            bench.run(label, side)
    ratios = bench.against({n: s for n, s in sides.items() if n != "tree"}, sides["tree"], "tree")
    if bench.arguments.compile:
        compile_blocks(policy.adapter)
        compiled = {f"{n}, compiled": s for n, s in sides.items() if n != "TRL"}
        for label, side in compiled.items():
            bench.run(label, side)
        peers = {n: s for n, s in {**compiled, **sides}.items() if not n.startswith("tree")}
        ratios += [[f"compiled tree: {r[0]}", *r[1:]] for r in bench.against(peers, sides["tree"], "tree, compiled")]
    _readouts(bench)
    _print(bench, ratios)


def after_trl(bench: Bench, name: str, shape: Shape, arguments: argparse.Namespace) -> Bench:
    """TRL's side first, then a bench with a policy of its own: its trainer changes the model it is given."""
    from gpu_sides import TRLSide

    with _stock(bench.policy), tempfile.TemporaryDirectory() as folder:
        trl = TRLSide(bench.policy, bench.groups, max(1, arguments.rows // 2), folder)
        bench.policy.model.train()
        bench.run("TRL", trl, row=1)  # which reads back within every update
    found, rows, figures = bench.found, bench.rows, bench.figures
    work = SimpleNamespace(work=trl.work)
    del bench, trl
    gc.collect()
    fresh = Bench(name, shape, arguments)
    fresh.found, fresh.rows, fresh.figures, fresh.trl = found, rows, figures, work
    return fresh


def _readouts(bench: Bench) -> None:
    """The last layer is read, or all; the ratio is to the same update without a read-out."""
    from gpu_sides import TreeSide

    base = "tree, compiled" if bench.arguments.compile else "tree"
    rows = min(1024, len(bench.groups[0].rollouts[0].ids) * 10)
    asked = {"map of 1 row": ("one_row", 1), f"maps of {rows // 2} rows": ("rows", rows // 2),
             f"masses of {rows} rows": ("masses", rows)}  # fmt: skip
    for layers, where in ((1, "last layer"), (0, "all layers")):
        for label, (kind, count) in asked.items():
            side = TreeSide(bench.policy, bench.groups, kind, count, layers)  # type: ignore[arg-type]
            timed = bench.run(f"{label}, {where}", side)
            if timed is not None and base in bench.found:
                ratio = timed.seconds / bench.found[base].seconds
                bench.figures[f"overhead_{kind}_{where.split()[0]}"] = ratio
                bench.rows[-1][0] += f" ({ratio:.3f}x)"


def _print(bench: Bench, ratios: list[list[str]]) -> None:
    peak = f"{bench.peak / 1e12:.0f} TFLOP/s" if bench.peak else "unknown"
    print(f"\n{bench.name} on {bench.device}, dense bf16 peak {peak}\n")
    print_table(["update", "ms", "range", "tokens", "tokens/s", "TFLOP", "MFU %", "GiB"], bench.rows)
    if ratios:
        print_table(["against", "ratio", "bound", "share %", "memory"], ratios)


@contextmanager
def _stock(policy: Policy) -> Iterator[None]:
    """transformers' own attention in language model and vision tower."""
    from sightline.policy.attention import NAME

    tower = policy.model.model.visual.config
    kept = tower._attn_implementation
    tower._attn_implementation = "sdpa"
    policy.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        yield
    finally:
        tower._attn_implementation = kept
        policy.model.set_attn_implementation({"text_config": NAME})


def profile(bench: Bench, update: Callable[[], None]) -> None:
    """Kernels of one update by their time on the device, and how long the device was idle."""
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_cuda else [])]
    with torch.profiler.profile(activities=activities) as seen:
        update()
        if bench.is_cuda:
            torch.cuda.synchronize()
    rows = [e for e in seen.key_averages() if not bench.is_cuda or str(e.device_type).endswith("CUDA")]

    def spent(event: Any) -> float:
        return event.self_device_time_total if bench.is_cuda else event.self_cpu_time_total

    total = sum(spent(e) for e in rows)
    print(f"\n{bench.name}: {total / 1e3:.1f} ms in {sum(e.count for e in rows)} kernels\n")
    table = [
        [e.key[:90], f"{spent(e) / 1e3:.2f}", f"{100 * spent(e) / total:.1f}", str(e.count)]
        for e in sorted(rows, key=spent, reverse=True)[:40]
    ]
    print_table(["kernel", "ms", "%", "calls"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=("3B", "7B"), help="architecture; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and shape on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="timed updates per side")
    parser.add_argument("--rows", type=int, default=10, help="rows of a padded micro-batch; half where vision repeats")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave layers uncompiled")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations on every side")
    parser.add_argument("--trl", action="store_true", help="also TRL's forward and backward, if it is installed")
    parser.add_argument("--profile", action="store_true", help="print the kernels of one update of the tree")
    arguments = parser.parse_args()
    import torch

    from gpu_models import IVGR, TINY
    from gpu_sides import TreeSide

    settle()
    if not (arguments.tiny or torch.cuda.is_available()):
        parser.error("there is no CUDA device; --tiny runs the same code on the CPU")
    figures: dict[str, float] = {}
    for name in ["tiny"] if arguments.tiny else arguments.model or ["3B"]:
        bench = Bench(name, TINY if arguments.tiny else IVGR, arguments)
        if arguments.trl:
            bench = after_trl(bench, name, TINY if arguments.tiny else IVGR, arguments)
        compare(bench)
        if arguments.profile:
            profile(bench, TreeSide(bench.policy, bench.groups).update)
        figures |= {f"{name}_{key}": value for key, value in bench.figures.items()}
        del bench
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print_json(figures)


if __name__ == "__main__":
    main()
