"""What a method may ask the learner to measure about each Rollout, as plain requests; `probes/` measures them.

A method returns requests from `probes()` and finds the results in `group.measurements[i].probes[name]`, whose first
axis is the tokens of `Rollout.ids` (0 where a token was not sampled)::

    def probes(self):
        return (RegionAttention(layers=(-1,), align="consumer"), Contrast(intervention=Intervention("patch_blacken")))

All requests of a method are read in one packed pass; every intervention adds one more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sightline.errors import UserError
from sightline.geometry.grid import Membership
from sightline.interventions import Intervention

__all__ = [
    "SEGMENTS",
    "Align",
    "BoxChoice",
    "Contrast",
    "Cut",
    "Divergence",
    "FocusAttention",
    "GoldLikelihood",
    "Heads",
    "Layers",
    "RegionAttention",
]

Align = Literal["producer", "consumer"]
"""Which row belongs to a token: the one that predicts it, or the one in which it is the query."""

Layers = tuple[int, ...] | Literal["all", "last_third"]
"""Decoder layers by number, negative ones from the end. `last_third` leaves the final layer out: of L layers those
from L - 1 - ceil(L/3) to L - 2."""

Heads = tuple[tuple[int, int], ...]
"""Single heads as pairs (layer, head); they replace a choice of layers."""

BoxChoice = Literal["all", "first"]
Divergence = Literal["full_kl", "topk_kl", "jsd", "tv"]
Cut = Literal["start", "think", "turns", "section"]

SEGMENTS = ("region", "image", "added", "text")
"""The columns of a `RegionAttention`: gold regions, the rest of the record's images, images that later turns added,
everything else. A row sums to one."""


def _check(probe: str, **choices: tuple[Any, Any]) -> None:
    """Refuses a word that is none of its field's choices, which nothing later would notice."""
    for name, (value, kind) in choices.items():
        if value not in get_args(kind):
            hint = ", ".join(map(str, get_args(kind)))
            raise UserError(f"{name} is {value!r}, which is none of its choices", where=f"probe {probe!r}", hint=hint)


def _check_layers(probe: str, layers: Layers) -> None:
    if isinstance(layers, str):
        _check(probe, layers=(layers, get_args(Layers)[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionAttention:
    """Where the rows of the sampled tokens look: their attention mass on SEGMENTS, mean over layers and heads.

    Gives `probes[name]` (tokens, 4); with `reads_top` `probes[name + "/top1"]` (tokens,), the mass of the one visual
    token that holds most of it; with `keeps_maps` `maps[name]` (tokens, visual). With `coverage` a cell counts for the
    region by the share u that the boxes cover, and for the image by 1 - u. Without regions the region mass is 0.

    Attributes:
        name: under which the results stand.
        layers: see `Layers`.
        heads: single (layer, head) pairs, in place of `layers`.
        heads_file: a list of heads that `sightline attention calibrate` wrote, in place of `heads`.
        align: which row belongs to a token.
        membership: which cells belong to the region, see `geometry/grid.py`.
        boxes: all regions of the Record, or the first.
        reads_top: also read how much one visual token alone holds, which shows attention sinks.
        keeps_maps: also keep the attention to every single visual token of the Prompt's images.
        in_update: read once more in the update, with gradient, as `outputs.maps[name]` of the loss.
    """

    name: str = "attention"
    layers: Layers = (-1,)
    heads: Heads | None = None
    heads_file: str | None = None
    align: Align = "producer"
    membership: Membership = "overlap"
    boxes: BoxChoice = "all"
    reads_top: bool = True
    keeps_maps: bool = False
    in_update: bool = False

    def __post_init__(self) -> None:
        _check(
            self.name,
            align=(self.align, Align),
            membership=(self.membership, Membership),
            boxes=(self.boxes, BoxChoice),
        )
        _check_layers(self.name, self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusAttention:
    """Where the forced token looks: `maps[name]` (1, visual), its raw attention row, mean over layers and heads.

    The token stands in the forced prefix, at the end of the prompt; a prompt without it gives no map.

    Attributes:
        token: its text, one token of the vocabulary.
        count: how often it stands there; the mean of the rows is read.
        membership, boxes: the region that comes with the map in the update.
        layers, heads, heads_file, in_update: as for `RegionAttention`.
    """

    name: str = "focus"
    token: str = "<Focus>"
    count: int = 1
    layers: Layers = "last_third"
    heads: Heads | None = None
    heads_file: str | None = None
    membership: Membership = "coverage"
    boxes: BoxChoice = "all"
    in_update: bool = False

    def __post_init__(self) -> None:
        _check(self.name, membership=(self.membership, Membership), boxes=(self.boxes, BoxChoice))
        _check_layers(self.name, self.layers)
        if self.count < 1:
            raise UserError("at least one token is read", where=f"probe {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The log-probs of the same tokens where the images are changed: `probes[name]`, (tokens,) or (tokens, draws).

    The change is drawn once per Record and step and shared by all Rollouts of the Record. An intervention on regions
    gives nothing for a Record without regions. `measurement.images[name]` holds the images of the first draw (none
    for `text_only`, the unchanged ones for `attn_block`), and marks the probe as a contrast.

    Attributes:
        intervention: what is done to the images.
        draws: independent draws.
        divergence: also `probes[name + "/" + divergence]` (tokens,), mean over draws, between the two next-token
            distributions p (original) and p' (changed): KL(p, p'), the same over the `top` likeliest tokens and one
            bin for the others, Jensen-Shannon, or total variation.
        top: k of `topk_kl`.
    """

    name: str = "contrast"
    intervention: Intervention = field(default_factory=Intervention)
    draws: int = 1
    divergence: Divergence | None = None
    top: int = 64

    def __post_init__(self) -> None:
        if self.divergence is not None:
            _check(self.name, divergence=(self.divergence, Divergence))
        if self.draws < 1 or self.top < 1:
            raise UserError("a contrast needs at least one draw and one token", where=f"probe {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldLikelihood:
    """How likely the record's answer is where a reply is cut: `probes[name]` (tokens,), NaN where there is no cut.

    The value at token t is the mean log-prob per token of `record.answer`, in nats, after the prompt, `ids[:t]` and
    `lead`. Deep cuts of one Rollout share their prefix.

    Attributes:
        cut: `start` before the reply, `think` also where the think block ends, `turns` also after each turn of the
            policy but the last, `section` also before and after each block of the tag `section`.
        lead: text between the cut and the answer.
        section: tag for `cut="section"`.
        intervention: read it under changed images; None for the original ones.
    """

    name: str = "gold"
    cut: Cut = "think"
    lead: str = "</think><answer>"
    section: str = "reflection"
    intervention: Intervention | None = None

    def __post_init__(self) -> None:
        _check(self.name, cut=(self.cut, Cut))
