"""Where an answer looked, for `sightline ask --attention`: a picture, a page, or a sketch in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.commands.replies import marks
from sightline.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from PIL import Image
    from rich.text import Text

    from sightline.geometry.frames import Frame
    from sightline.policy.load import Policy
    from sightline.sampling.modes import ModeResult
    from sightline.types import Rollout

__all__ = ["Look", "looked", "looked_blocks", "save_look"]


@dataclass(frozen=True)
class Look:
    """The attention of the pass that answered: one row for each token, one column for each visual cell."""

    rollout: Rollout
    weights: Float[ndarray, "tokens visual"]
    pieces: list[str]
    frame: Frame
    first: int
    """Which image of the prompt is the record's first one, on which boxes are drawn."""


def looked(result: ModeResult, policy: Policy, heads: Path | None = None) -> Look:
    """Reads the attention of the last pass of an answer.

    Raises:
        UserError: the record has no image, or the list of heads is missing or does not fit the model.
    """
    from sightline.probes.heads import read_heads
    from sightline.probes.look import look
    from sightline.report.rows import pieces

    if not result.record.images:
        raise UserError("there is no image to look at", where=f"record {result.record.id}")
    rollout = result.rollouts[-1]
    chosen = None if heads is None else read_heads(str(heads))
    weights = look(policy, rollout, "last_third", chosen)
    digests = [image.digest for image in rollout.prompt.images]
    texts = pieces(range(len(rollout.ids)), policy.pieces(rollout.ids).__getitem__)
    return Look(rollout, weights, texts, policy.frame, digests.index(result.record.images[0].digest))


def save_look(result: ModeResult, look: Look, path: Path) -> Path:
    """A `.png` holds the boxes and, beside them, the mean map; a `.html` page has a map for every word."""
    from sightline.report.heatmap import heat_page, side_by_side
    from sightline.report.overlay import draw

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = marks(result)
    if path.suffix == ".html":
        texts = [("question", result.record.question), ("answer", result.answer or "none")]
        texts += [("note", result.note)] if result.note else []
        page = heat_page(
            look.rollout, look.weights, look.pieces, look.frame,
            boxes=drawn.boxes, labels=drawn.labels, styles=drawn.styles, image=look.first, texts=texts,
        )  # fmt: skip
        path.write_text(page, encoding="utf-8")
    else:
        side_by_side(draw(result.record.images[0], *drawn), _mean_picture(result, look)).save(path)
    return path


def looked_blocks(result: ModeResult, look: Look) -> Text:
    """The mean map over the first image, for the terminal."""
    from sightline.commands.picture import half_blocks

    return half_blocks(_mean_picture(result, look))


def _mean_picture(result: ModeResult, look: Look) -> Image.Image:
    from sightline.report.heatmap import heat_map, mean_maps

    mean = mean_maps(look.rollout, look.weights, look.frame)[look.first]
    return heat_map(result.record.images[0], mean, *marks(result))
