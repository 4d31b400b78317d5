"""The same tokens under changed images: what a pass of its own says about them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.frames import Frame
from sightline.interventions import Intervened, Intervention, intervene
from sightline.methods.probes import Contrast
from sightline.policy.divergence import Against
from sightline.policy.packing import Packed, Packer, Part
from sightline.probes.layout import first_own
from sightline.types import Box, Group, ImageRef, ImageSlot, Prompt, Region, Rollout, Size

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.probes.drafts import Drafts

__all__ = ["ContrastPass", "changed_rollouts", "crop_regions", "without_images"]


@dataclass(frozen=True, slots=True)
class Draw:
    """Rollouts of one Group as one draw of an intervention shows them.

    Attributes:
        parts: their trees.
        kept: by place in the Group, which tokens of `Rollout.ids` are still there; None for all.
        images: the images in place of the Prompt's, for each Rollout.
    """

    parts: list[Part]
    kept: dict[int, np.ndarray]
    images: tuple[tuple[ImageRef, ...], ...]


class ContrastPass:
    """One `Contrast` for the Groups of a micro-batch that has just been scored.

    Args:
        probe: the request.
        packer: lays the changed trees out.
        key: seed and step; the record's id and the number of the draw join it.
        others: images of the whole batch, for `swap`.
    """

    def __init__(
        self, probe: Contrast, packer: Packer, key: tuple[Hashable, ...], others: Sequence[ImageRef] = ()
    ) -> None:
        self.probe, self.packer, self.key, self.others = probe, packer, key, others

    def store(
        self, packed: Packed, hidden: Float[Tensor, "scored width"] | None, drafts: Drafts, temperature: float
    ) -> None:
        """Scores the changed trees and adds what they say to the drafts."""
        probe = self.probe
        for number in range(probe.draws):
            draws = {p.group: self._draw(drafts.groups[p.group], p, number) for p in packed.parts}
            parts = [part for draw in draws.values() if draw is not None for part in draw.parts]
            for changed in self.packer.packed(parts) if parts else ():
                against = None
                if probe.divergence is not None and hidden is not None:
                    match = torch.from_numpy(_match(packed, changed, draws)).to(hidden.device)
                    against = Against(hidden[match], probe.divergence, probe.top)
                outputs = self.packer.policy.module(changed.batch, temperature=temperature, against=against)
                self._add(drafts, changed, draws, number, probe.name, outputs.logprobs)
                if outputs.divergence is not None:
                    self._add(drafts, changed, draws, number, f"{probe.name}/{probe.divergence}", outputs.divergence)
            if number == 0:
                self._images(drafts, packed, draws)
        self._finish(drafts, packed)

    def _draw(self, group: Group, part: Part, number: int) -> Draw | None:
        """The changed trees of one Group; None where nothing would change or the intervention does not apply."""
        what, policy = self.probe.intervention, self.packer.policy
        record = group.record
        if not any((*r.prompt.images, *r.images) for r in part.rollouts):
            return None
        if what.is_regional and not record.regions:
            return None
        if what.kind == "attn_block":
            blocked = [self._blocked(p) for p in _by_prompt(part, self.packer)]
            return Draw(blocked, {}, tuple(r.prompt.images for r in part.rollouts))
        if what.kind == "text_only":
            bare = [without_images(r, policy) for r in part.rollouts]
            tree = self.packer.of(part.group, part.places, [rollout for rollout, _ in bare])
            kept = {place: own for place, (_, own) in zip(part.places, bare, strict=True)}
            return Draw([tree], kept, tuple(() for _ in bare))
        key = (*self.key, record.id, number)
        rollouts = changed_rollouts(part.rollouts, policy.frame, what, key, self.others)
        images = tuple(r.prompt.images for r in rollouts)
        return Draw([self._same_grids(part, self.packer.of(part.group, part.places, rollouts))], {}, images)

    def _same_grids(self, before: Part, after: Part) -> Part:
        if not np.array_equal(before.tree.positions, after.tree.positions):
            raise ValueError("the changed images have other grids; their tokens cannot be compared")
        return after

    def _blocked(self, part: Part) -> Part:
        """Visual tokens, crops of later turns included, are visible up to the policy's next word.

        The tree holds one prompt only.
        """
        tree = part.tree
        words = np.append(np.flatnonzero(tree.sampled), len(tree))
        word = words[np.searchsorted(words, np.arange(len(tree)))]
        visual = tree.ids == self.packer.policy.image_token
        return replace(part, tree=replace(tree, end=np.where(visual, np.minimum(tree.end, word), tree.end)))

    def _add(
        self, drafts: Drafts, changed: Packed, draws: dict[int, Draw | None], number: int, name: str, values: Tensor
    ) -> None:
        """Collects the values of one draw, back on the tokens of the Rollouts as they were sampled."""
        for part, own in zip(changed.parts, changed.batch.scatter(values), strict=True):
            draw = draws[part.group]
            assert draw is not None
            for place, found in zip(part.places, own, strict=True):
                rollout = drafts.groups[part.group].rollouts[place]
                whole = np.zeros(len(rollout.ids), np.float32)
                whole[draw.kept.get(place, np.ones(len(rollout.ids), bool))] = found
                columns = drafts.rows[part.group][place].probes
                columns[name] = np.stack([whole], 1) if number == 0 else np.append(columns[name], whole[:, None], 1)

    def _images(self, drafts: Drafts, packed: Packed, draws: dict[int, Draw | None]) -> None:
        for part in packed.parts:
            draw = draws[part.group]
            if draw is not None:
                for place, images in zip(part.places, draw.images, strict=True):
                    drafts.rows[part.group][place].images[self.probe.name] = images

    def _finish(self, drafts: Drafts, packed: Packed) -> None:
        """One column instead of a table of one; the mean divergence; without images nothing changes."""
        probe = self.probe
        for part in packed.parts:
            for place, rollout in zip(part.places, part.rollouts, strict=True):
                draft = drafts.rows[part.group][place]
                has_images = bool(rollout.prompt.images or rollout.images)
                applies = not probe.intervention.is_regional or bool(rollout.record.regions)
                if probe.name not in draft.probes and applies and not has_images and draft.logprobs is not None:
                    draft.probes[probe.name] = np.stack([draft.logprobs] * probe.draws, 1)
                    draft.images[probe.name] = ()
                    if probe.divergence is not None:
                        draft.probes[f"{probe.name}/{probe.divergence}"] = np.zeros((len(rollout.ids), 1), np.float32)
                if probe.name in draft.probes and probe.draws == 1:
                    draft.probes[probe.name] = draft.probes[probe.name][:, 0]
                if f"{probe.name}/{probe.divergence}" in draft.probes:
                    table = draft.probes[f"{probe.name}/{probe.divergence}"]
                    draft.probes[f"{probe.name}/{probe.divergence}"] = table.mean(1)


def changed_rollouts(
    rollouts: Sequence[Rollout],
    frame: Frame,
    intervention: Intervention,
    key: tuple[Hashable, ...],
    others: Sequence[ImageRef] = (),
) -> list[Rollout]:
    """Rollouts of one Record whose images are changed: one draw for the Record's images, shared by all.

    Crops (further images of a prompt, images of later turns) are changed as images of their own, by their content. A
    regional change is carried over to a crop whose place is known; other crops stay as they are.
    """
    record = rollouts[0].record
    base = intervene(record.images, record.regions, frame, intervention, key, others=others)
    where = [Region(box=box, image=note.image) for note in base.provenance for box in note.where]

    def crop(image: ImageRef, box: Box | None) -> ImageRef:
        what, regions = intervention, ()
        if what.is_regional:
            if box is None:
                return image
            regions = crop_regions(where, box, image.size)
            if not regions and what.kind != "region_keep":
                return image
            # the regions elsewhere have been drawn: in the crop they are simply masked
            kind = "region_keep" if what.kind == "region_keep" else "region_mask"
            what = replace(what, kind=kind)
            regions = regions or (Region(box=Box(0, 0, 0, 0), image=1),)  # nothing is kept
        return intervene([image], regions, frame, what, (*key, image.digest), others=others).images[0]

    return [_with_images(rollout, base, crop) for rollout in rollouts]


def _with_images(rollout: Rollout, base: Intervened, crop: object) -> Rollout:
    """The Rollout with the changed images of its Record, and its crops changed by `crop(image, place)`."""
    assert callable(crop)
    prompt, first = rollout.prompt, first_own(rollout)
    places: dict[int, Box] = {}
    for turn in rollout.turns:
        places.update(zip(turn.images, turn.boxes, strict=False))
    own = dict(enumerate(base.images, first))
    images = [own[i] if i in own else crop(image, places.get(i)) for i, image in enumerate(prompt.images)]
    added = [crop(image, places.get(i)) for i, image in enumerate(rollout.images, len(prompt.images))]
    return replace(rollout, prompt=replace(prompt, images=tuple(images)), images=tuple(added))


def crop_regions(regions: Sequence[Region], crop: Box, size: Size) -> tuple[Region, ...]:
    """The parts of regions of image 0 that a crop shows, in the crop's own pixels.

    Args:
        regions: in original pixels.
        crop: where the crop was cut out, in original pixels.
        size: of the crop, which may have been resampled.

    Example:
        >>> crop_regions([Region(box=Box(10, 10, 30, 30))], Box(20, 20, 40, 40), Size(40, 40))[0].box
        Box(x1=0.0, y1=0.0, x2=20.0, y2=20.0)
    """
    across, down = size[0] / max(crop.width, 1e-9), size[1] / max(crop.height, 1e-9)
    found = []
    for region in regions:
        x1, y1 = max(region.box.x1, crop.x1), max(region.box.y1, crop.y1)
        x2, y2 = min(region.box.x2, crop.x2), min(region.box.y2, crop.y2)
        if region.image == 0 and x1 < x2 and y1 < y2:
            box = Box((x1 - crop.x1) * across, (y1 - crop.y1) * down, (x2 - crop.x1) * across, (y2 - crop.y1) * down)
            found.append(Region(box=box))
    return tuple(found)


def without_images(rollout: Rollout, policy: Policy) -> tuple[Rollout, np.ndarray]:
    """The Rollout as if its Prompt had no images, and which of its tokens are left.

    Visual tokens and their marks leave the prompt and the turns of the user; sampled tokens all stay.
    """
    messages = tuple(
        replace(m, content=tuple(part for part in m.content if not isinstance(part, ImageSlot)))
        for m in rollout.prompt.messages
    )
    prompt: Prompt = replace(rollout.prompt, messages=messages, images=())
    token, marks = policy.adapter.placeholders()
    kept = rollout.sampled | ~np.isin(rollout.ids, [token, *marks])
    shorter = replace(
        rollout,
        prompt=prompt,
        prompt_ids=policy.encode(prompt).ids,
        ids=rollout.ids[kept],
        sampled=rollout.sampled[kept],
        logprobs=rollout.logprobs[kept],
        images=(),
        turns=(),
        forks=tuple(int(kept[:fork].sum()) for fork in rollout.forks),
    )
    return shorter, kept


def _by_prompt(part: Part, packer: Packer) -> Iterator[Part]:
    """One tree for every distinct prompt, or for every path where nothing is shared."""
    own: dict[Hashable, list[int]] = {}
    for path, rollout in enumerate(part.rollouts):
        prompt = (rollout.stream, rollout.prompt_ids.tobytes(), tuple(i.digest for i in rollout.prompt.images))
        own.setdefault(prompt if packer.shares else path, []).append(path)
    for paths in own.values():
        yield packer.of(part.group, [part.places[p] for p in paths], [part.rollouts[p] for p in paths])


def _match(packed: Packed, changed: Packed, draws: dict[int, Draw | None]) -> np.ndarray:
    """For every scored token of the changed pass its number in the first pass."""
    first = {
        (part.group, place): slots
        for part, own in zip(packed.parts, packed.batch.slots, strict=True)
        for place, slots in zip(part.places, own, strict=True)
    }
    match = np.zeros(len(changed.batch.at), np.int64)
    for part, own in zip(changed.parts, changed.batch.slots, strict=True):
        draw = draws[part.group]
        assert draw is not None
        for place, slots in zip(part.places, own, strict=True):
            before = first[part.group, place]
            kept = draw.kept.get(place, np.ones(len(before), bool))
            on = slots >= 0
            match[slots[on]] = before[kept][on]
    return match
