"""Peak memory of an update: the token tree with logits in blocks against full logits and against padded batches.

    .venv/bin/python benchmarks/memory.py

Every side runs in a process of its own, over the same weights and rollouts: forward, loss and backward from cleared
gradients. On the CPU the peak is the resident size above what the process held before; where there is a CUDA device,
the peak of its allocator. `arithmetic` is what `policy/memory.py` says of the tree's side.

`--table` prints what published sizes need on cards of several sizes, the table of docs/memory.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import child_json, measures_memory, peak_mib, print_json, print_table, settle

if TYPE_CHECKING:
    from shapes import Shape
    from sightline.policy.flops import Trained
    from sightline.policy.load import Policy
    from sightline.types import Group

SIDES = {
    "tree": "tree, logits in blocks",
    "tree_full": "tree, logits of all replies at once",
    "padded": "padded, image per rollout, logits in blocks",
    "stock": "padded, image per rollout, logits of every position",
}
BLOCK = 128
"""Scored tokens per block of logits: at this vocabulary what 2^27 numbers are at a published one, 2^22."""
BUDGET, REPLIES = 8192, 64
"""Of the table: tokens of a micro-batch, and replies that are sampled side by side."""
CARDS = (1, 2, 4, 8)


def shapes() -> dict[str, Shape]:
    """What is measured, by name. Vocabularies are large, as published ones are against the width of their models."""
    from shapes import Shape

    streams = ("grounded", "textual")
    return {
        "ivgr": Shape(visual=256, records=1, streams=streams, rollouts=5, text=35, reply=160, hidden=256, vocab=32768),
        "tiny": Shape(
            visual=16, records=1, streams=streams, rollouts=3, text=20, reply=24, hidden=64, layers=2, vocab=8192
        ),
    }


def make_side(name: str, policy: Policy, groups: Sequence[Group]) -> Callable[[], object]:
    """The update of one side."""
    from gpu_sides import PaddedSide, TreeSide

    rows = sum(len(g) for g in groups)
    policy.module.chunk = BLOCK if name in ("tree", "padded") else 10**9
    if name == "stock":
        return lambda: _stock_update(policy, groups)
    side = TreeSide(policy, groups) if name.startswith("tree") else PaddedSide(policy, groups, "per_rollout", rows)
    return side.update


def _stock_update(policy: Policy, groups: Sequence[Group]) -> None:
    """The library's own call on a padded batch, and a log-softmax over everything it returns."""
    import torch

    from sides import weighted
    from sightline.methods.grpo import GRPO, GRPOConfig
    from sightline.policy.batch import collate
    from sightline.policy.forward import Outputs
    from sightline.policy.tree import build_tree, rollout_path

    policy.model.zero_grad(set_to_none=True)
    own = [g.at([i]) for g in weighted(groups) for i in range(len(g))]
    trees = [build_tree([rollout_path(g.rollouts[0], policy.image_token)], policy.rules) for g in own]
    batch = collate([[t] for t in trees], policy.pixels, pad=policy.pad, device=policy.device)
    batch = batch.with_credit([g.credits for g in own])
    assert batch.pixels is not None
    assert batch.grids is not None
    logits = policy.model(
        input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids),
        pixel_values=batch.pixels.repeat(len(own), 1), image_grid_thw=batch.grids.repeat(len(own), 1).to(policy.device),
        mm_token_type_ids=(batch.ids == policy.image_token).int(),
    ).logits  # fmt: skip
    logprobs = torch.log_softmax(logits.float().reshape(-1, logits.shape[-1]), -1)[batch.predictor, batch.target]
    GRPO(GRPOConfig()).loss(batch, Outputs(logprobs)).total.backward()  # type: ignore[arg-type]


def measured(name: str, shape: Shape, arguments: argparse.Namespace) -> dict[str, float]:
    """Peak of one side in MiB, and for the tree what the arithmetic says; in this process."""
    import torch

    from shapes import groups_of, write_checkpoint
    from sightline.policy.load import load_policy

    is_cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), shape, arguments.family)
        options: dict[str, Any] = {"dtype": "bfloat16", "device": "cuda"} if is_cuda else {}
        policy = load_policy(folder, checkpointing=arguments.checkpointing, **options)
        groups = groups_of(policy, shape)
        if name == "stock":
            policy.model.set_attn_implementation({"text_config": "sdpa"})
        policy.model.train()
        update = make_side(name, policy, groups)
        found = {"mib": _cuda_peak(update) if is_cuda else peak_mib(update)}
    return found | ({"arithmetic": _arithmetic(policy, groups, arguments, is_cuda)} if name == "tree" else {})


def _cuda_peak(update: Callable[[], object]) -> float:
    import torch

    update()  # kernels are compiled once
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    update()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _arithmetic(policy: Policy, groups: Sequence[Group], arguments: argparse.Namespace, is_cuda: bool) -> float:
    """Gradients, activations and what is at work, in MiB."""
    from gpu_sides import TreeSide
    from sightline.policy.activations import kept_bytes, layer_bytes
    from sightline.policy.architecture import architecture
    from sightline.policy.memory import Setup

    model, work = architecture(policy.model.config), TreeSide(policy, groups).work
    size = 2 if is_cuda else 4
    how = Setup(weight=size, checkpointing=arguments.checkpointing, is_cuda=is_cuda).keeping
    logits = min(BLOCK, work.scored) * model.text.vocab * (2 * size if is_cuda else 12)
    held = kept_bytes(model, how, work) + max(logits, layer_bytes(model, how, work))
    return (held + model.parameters * size) / 2**20


def compare(shape: str, arguments: argparse.Namespace) -> None:
    """All sides, with activations kept and recomputed; the table and the line of figures."""
    # the heap keeps freed blocks of up to 32 MiB and hides what the update needs; mapped blocks go back at once
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**18)
    rows: list[list[str]] = []
    figures: dict[str, float] = {}
    for checkpointing in (False, True):
        options = ["--shape", shape, "--family", arguments.family, *(["--checkpointing"] if checkpointing else [])]
        found = {name: child_json(__file__, "--side", name, *options) for name in SIDES}
        own, mark = found["tree"], "_checkpointed" if checkpointing else ""
        for name, title in SIDES.items():
            ratio = found[name]["mib"] / own["mib"]
            said = f"{own['arithmetic']:.0f}" if name == "tree" else ""
            rows.append(
                [title, "recomputed" if checkpointing else "kept", f"{found[name]['mib']:.0f}", said, f"{ratio:.2f}x"]
            )
            figures[f"mib_tree{mark}" if name == "tree" else f"vs_{name}{mark}"] = (
                own["mib"] if name == "tree" else ratio
            )
        figures[f"arithmetic{mark}"] = own["arithmetic"] / own["mib"]
    print_table(["update", "activations", "peak MiB", "arithmetic", "against the tree"], rows)
    print_json(figures)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train in the table."""

    name: str
    trained: Trained
    options: dict[str, Any]


def ways() -> list[Way]:
    from sightline.policy.flops import Trained

    lora = Trained(text=False, vision=False, rank=32)
    return [
        Way("LoRA, four bits", lora, {"is_quantised": True}),
        Way("LoRA", lora, {}),
        Way("full, 8-bit states, rounded", Trained(), {"states": "8bit", "masters": "stochastic"}),
        Way("full, rounded", Trained(), {"masters": "stochastic"}),
        Way("full", Trained(), {}),
    ]


def table() -> str:
    """Markdown: the least number of cards of each size that hold one step, 1, 2, 4 or 8."""
    from sightline.policy import memory as needs
    from sightline.policy.architecture import architecture
    from sightline.policy.flops import Work
    from sightline.policy.published import published_config

    lines = [
        "| Model | Trained | Sampled | One card needs | " + " | ".join(needs.CARDS) + " |",
        "|---|---|---|---:|" + ":-:|" * len(needs.CARDS),
    ]
    for label, name in (
        ("3B", "Qwen2.5-VL-3B"), ("7B", "Qwen2.5-VL-7B"), ("8B", "Qwen3-VL-8B"), ("32B", "Qwen3-VL-32B"),
    ):  # fmt: skip
        model = architecture(published_config(f"Qwen/{name}-Instruct"))
        patch, merge = model.vision.patch, model.vision.merge
        side = round((1024 * 28 * 28) ** 0.5 / patch / merge) * merge
        work = Work(tokens=BUDGET, pairs=BUDGET * 800, scored=6000, grids=((1, side, side),) * 2)
        sampled = needs.Sampled(prompts=12, prompt=1300, replies=REPLIES, reply=400)
        for way in ways():
            setup = needs.Setup(trained=way.trained, **way.options)
            for where, held in (("here", sampled), ("by servers", None)):
                one = needs.memory(model, setup, work, held)
                cells = [_cards(needs, model, setup, work, held, gib) for gib in needs.CARDS.values()]
                lines.append(f"| {label} | {way.name} | {where} | {one.peak / 2**30:.0f} GiB | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cards(needs: Any, model: Any, setup: Any, work: Any, held: Any, gib: float) -> str:
    cut = not setup.is_quantised and setup.states == "fp32"
    for count in CARDS if cut else CARDS[:1]:
        shared = replace(setup, processes=count, is_sharded=count > 1)
        if needs.fits(needs.memory(model, shared, work, held), gib):
            return str(count)
    return "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", default="qwen2_5_vl", choices=("qwen2_5_vl", "qwen3_vl"))
    parser.add_argument("--tiny", action="store_true", help="a shape that takes seconds; its figures mean nothing")
    parser.add_argument("--table", action="store_true", help="print the table of published sizes and cards")
    parser.add_argument("--side", choices=tuple(SIDES), help="measure one side in this process")
    parser.add_argument("--shape", default="ivgr", choices=("ivgr", "tiny"), help="with --side: what to measure")
    parser.add_argument("--checkpointing", action="store_true", help="with --side: recompute activations")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    settle()
    if not measures_memory():
        raise SystemExit("error: this system does not tell the peak size of a process (/proc/self/clear_refs)")
    if arguments.side:
        print_json(measured(arguments.side, shapes()[arguments.shape], arguments))
        return
    compare("tiny" if arguments.tiny else arguments.shape, arguments)


if __name__ == "__main__":
    main()
