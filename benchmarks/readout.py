"""What reading attention costs: forward + backward at 4,096 tokens without a read-out, with one, and eager.

    .venv/bin/python benchmarks/readout.py

A language model of four decoder layers with random weights in the published Qwen3-VL layout (width 512, eight query
heads on two key heads, fp32, one thread; no vision tower runs, which would only make the ratios smaller). 3,072 tokens
stand for an image, 1,024 are text with log-probs. Two layouts: one causal sequence, and a tree whose eight replies of
128 tokens share the image.

* one row: the map of one row on all image tokens in all four layers, and a loss on it
* text rows: masses of all 1,024 text rows on region, rest of the image, later images and text, in all four layers
* rows with gradient: maps of 512 rows in all four layers, and a loss on them that runs through the backward pass
* eager: transformers' eager attention with `output_attentions`, on the causal sequence

Seconds are process CPU time, medians of alternating pairs; every figure is a ratio to the same forward + backward
without a read-out. Memory is the peak resident size above what a fresh process held before its first update.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import alternating_pairs, child_json, measures_memory, peak_mib, print_json, print_table, settle

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.policy.batch import Batch
    from sightline.policy.forward import PolicyModule
    from sightline.policy.pixels import VisualInput

VISUAL, TEXT, BRANCHES, REGION, GRAD_ROWS = 3072, 1024, 8, 768, 512
Layout = Literal["sequence", "tree"]
Kind = Literal["none", "one_row", "text_rows", "grad_rows", "eager"]
LAYOUTS: tuple[Layout, ...] = ("sequence", "tree")
KINDS: tuple[Kind, ...] = ("one_row", "text_rows", "grad_rows", "eager")
NAMES = {
    "one_row": "one row",
    "text_rows": "1,024 text rows, masses",
    "grad_rows": "512 rows with gradient",
    "eager": "eager, output_attentions",
}


def make_module() -> PolicyModule:
    """The language model; its vision tower is the smallest there can be."""
    import torch
    import transformers

    from sightline.policy.forward import PolicyModule
    from sightline.policy.qwen_vl import QwenVL

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    text: dict[str, Any] = {
        "vocab_size": 2137, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 64,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 8192, "rope_parameters": rope,
        "initializer_range": 0.06, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "patch_size": 8, "out_hidden_size": 512,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [],
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    return PolicyModule(QwenVL(transformers.Qwen3VLForConditionalGeneration(config)), ()).train()


class NoPixels:
    """Stands in for the image processor: nothing is an image."""

    def batch(self, images: Sequence[object]) -> VisualInput:
        import torch

        from sightline.policy.pixels import VisualInput

        assert not images
        none = torch.empty(0, dtype=torch.long)
        return VisualInput(None, None, none, none)


def make_batch(layout: Layout) -> Batch:
    """3,072 tokens that stand for an image and 1,024 of text with log-probs, in one reply or several."""
    import numpy as np

    from sightline.policy.batch import collate
    from sightline.policy.tree import Path, Segment, TreeRules, build_tree

    ids = np.random.default_rng(0).integers(0, 2000, VISUAL + TEXT)
    first = Segment("image", ids[:VISUAL], np.zeros(VISUAL, bool))
    replies = np.split(ids[VISUAL:], BRANCHES if layout == "tree" else 1)
    paths = [Path((first, Segment(i, reply, np.ones(len(reply), bool))), 1) for i, reply in enumerate(replies)]
    tree = build_tree(paths, TreeRules(image_token=-1, grid=lambda _: (0, 0)))
    return collate([[tree]], NoPixels())  # type: ignore[arg-type]


def make_update(module: PolicyModule, batch: Batch, kind: Kind) -> Callable[[], object]:
    """One forward and backward from cleared gradients."""
    import torch

    from sightline.policy.readout import MapReadout, MassReadout

    layers = range(4)
    visual, text = torch.arange(VISUAL)[None], torch.arange(VISUAL, VISUAL + TEXT)[None]
    segments = torch.zeros(1, 4, VISUAL + TEXT)
    segments[0, 0, :REGION] = segments[0, 1, REGION:VISUAL] = segments[0, 3, VISUAL:] = 1.0

    def update() -> None:
        module.zero_grad(set_to_none=True)
        if kind == "eager":
            eager_logprobs(module, batch).mean().neg().backward()
            return
        maps = masses = None
        if kind == "text_rows":
            masses = MassReadout(text, segments, layers)
        elif kind != "none":
            maps = MapReadout(text[:, -1:] if kind == "one_row" else text[:, -GRAD_ROWS:], visual, layers)
        loss = -module(batch, readout=maps or masses).logprobs.mean()
        if maps is not None:
            inside = torch.stack([m[..., :REGION].sum(-1).mean() for m in maps.maps.values()])
            loss = loss - inside.log().sum()
        loss.backward()

    return update


def eager_logprobs(module: PolicyModule, batch: Batch) -> Tensor:
    """Log-probs by transformers' eager attention, which hands out every matrix."""
    import torch

    from sightline.policy.attention import NAME, dense_mask
    from sightline.policy.forward import TokenLogprobs

    module.model.set_attn_implementation({"text_config": "eager"})
    mask = dense_mask(batch.end, torch.float32)
    out = module.model.model.language_model(
        inputs_embeds=module.model.get_input_embeddings()(batch.ids), position_ids=batch.positions,
        attention_mask=mask, use_cache=False, output_attentions=True,
    )  # fmt: skip
    module.model.set_attn_implementation({"text_config": NAME})
    assert len(out.attentions) == 4
    return TokenLogprobs.apply(module.scores(out.last_hidden_state[0, batch.predictor]), batch.target, False)[0]


def compare(layout: Layout, kinds: Sequence[Kind], pairs: int) -> tuple[list[list[str]], dict[str, float]]:
    """Rows of the table and ratios by name for one layout."""
    module, batch = make_module(), make_batch(layout)
    plain = make_update(module, batch, "none")
    rows, ratios = [], {}
    memory = _memory(layout, "none")
    for kind in kinds:
        measured = alternating_pairs(plain, make_update(module, batch, kind), pairs)
        held = _memory(layout, kind)
        suffix = "" if layout == "sequence" else "_tree"
        ratios[f"{kind}_time{suffix}"] = measured.ratio
        cells = ["-", "-", "-"]
        if held:
            ratios[f"{kind}_memory{suffix}"] = held / memory
            cells = [f"{held:.0f}", f"{memory:.0f}", f"{held / memory:.2f}x"]
        low, high = measured.spread
        cells = [*measured.row()[:2], f"{measured.ratio:.3f}x", f"{low:.3f}-{high:.3f}", *cells]
        rows.append([f"{NAMES[kind]}, {layout}", *cells])
    return rows, ratios


def _memory(layout: Layout, kind: Kind) -> float:
    return child_json(__file__, "--layout", layout, "--memory", kind)["mib"] if measures_memory() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs per comparison")
    parser.add_argument("--layout", choices=LAYOUTS, help="measure one layout only")
    parser.add_argument("--kind", choices=KINDS, help="measure one kind of read-out only")
    parser.add_argument("--memory", choices=("none", *KINDS), help="measure the memory of one kind, in --layout")
    arguments = parser.parse_args()
    settle()
    if arguments.memory:
        layout = arguments.layout or "sequence"
        print_json({"mib": peak_mib(make_update(make_module(), make_batch(layout), arguments.memory))})
        return
    rows, ratios = [], {}
    for layout in LAYOUTS if arguments.layout is None else (arguments.layout,):
        kinds = [k for k in KINDS if arguments.kind in (None, k) and (k != "eager" or layout == "sequence")]
        more, found = compare(layout, kinds, arguments.pairs)
        rows += more
        ratios |= found
    header = ["read-out", "with s", "without s", "ratio", "range", "with MiB", "without MiB", "ratio"]
    print_table(header, rows)
    # the time of a read-out goes by its bare name: one_row, text_rows, grad_rows
    print_json({k.replace("rows_time", "rows").replace("row_time", "row"): v for k, v in ratios.items()})


if __name__ == "__main__":
    main()
