"""The judge's words for the scenes."""

from __future__ import annotations

from sightline.scenes.lexicon import SCENES
from sightline.scenes.world import COLORS, MARKS, SHAPES


def test_every_color_and_shape_means_itself() -> None:
    for color in (*COLORS, *MARKS):
        term = SCENES.phrases[(color,)]
        assert (term.kind, term.value, term.dimension) == ("attribute", color, "color")
    for shape in SHAPES:
        term = SCENES.phrases[(shape,)]
        assert (term.kind, term.value) == ("noun", shape)
    assert "mark" in SCENES.parts


def test_shapes_exclude_each_other() -> None:
    assert SCENES.are_exclusive("circle", "diamond")
    assert not SCENES.are_exclusive("circle", "circle")
