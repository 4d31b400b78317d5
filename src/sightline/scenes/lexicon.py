"""The words of the scenes for the offline judge: general English, and what means something special here."""

from __future__ import annotations

from sightline.answers.english import ENGLISH
from sightline.answers.lexicon import Lexicon

__all__ = ["SCENES"]

# lime is a colour of its own here, told apart from green; the shapes of a scene exclude each other and marks
SCENES: Lexicon = ENGLISH.extended(
    "scenes",
    attributes={"color": {"lime": ("lime", "lime green")}},
    exclusive=(frozenset({"circle", "square", "triangle", "diamond", "mark"}),),
)
