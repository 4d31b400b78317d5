"""Pictures in the terminal: two pixels per character, the upper one as ink of a half block, the lower as its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from rich.text import Text

__all__ = ["half_blocks"]


def half_blocks(image: Image.Image, columns: int = 64) -> Text:
    """The picture, `columns` characters wide, for terminals with 24-bit colour.

    Example:
        >>> from PIL import Image
        >>> len(half_blocks(Image.new("RGB", (40, 20)), columns=8).plain.splitlines())
        2
    """
    from PIL import Image
    from rich.style import Style
    from rich.text import Text

    rows = max(1, round(columns * image.height / image.width / 2))
    small = image.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    pixels = small.load()
    if pixels is None:
        raise ValueError("an empty picture")
    text = Text()
    for row in range(rows):
        for column in range(columns):
            ink, paper = (
                "#{:02x}{:02x}{:02x}".format(*pixels[column, line])  # type: ignore[misc]
                for line in (2 * row, 2 * row + 1)
            )
            text.append("▀", Style(color=ink, bgcolor=paper))
        text.append("\n")
    return text
