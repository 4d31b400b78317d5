from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from sightline.data.preview import preview_html, write_preview
from sightline.images import image_ref
from sightline.types import Box, Record, Region

ATTACK = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def record(text: str = "What color?", **changes: object) -> Record:
    pixels = np.full((60, 900, 3), 200, dtype=np.uint8)
    values = {
        "id": text,
        "question": text,
        "answer": text,
        "options": (text, "b"),
        "images": (image_ref(pixels), image_ref(pixels)),
        "regions": (Region(box=Box(10, 5, 200, 50), label=text, role=text, image=1),),
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.tags


def test_boxes_are_drawn_in_pixels_of_the_original() -> None:
    page = preview_html([record()], title="my data")
    svgs = [a for t, a in tags(page) if t == "svg"]
    assert [a["viewbox"] for a in svgs] == ["0 0 900 60"] * 2
    (rect,) = [a for t, a in tags(page) if t == "rect"]
    assert [rect[k] for k in ("x", "y", "width", "height")] == ["10.00", "5.00", "190.00", "45.00"]
    assert page.index("<rect") > page.rindex("<image")


def test_untrusted_text_stays_text() -> None:
    page = preview_html([record(ATTACK)], title=ATTACK)
    names = [t for t, _ in tags(page)]
    assert "script" not in names
    assert "img" not in names
    assert names.count("style") == 1
    assert not [a for _, a in tags(page) if any(key.startswith("on") for key in a)]


def test_nothing_is_loaded_and_the_style_matches_the_policy() -> None:
    page = preview_html([record()], title="t")
    assert "http://" not in page
    assert "https://" not in page
    policy = next(a["content"] for t, a in tags(page) if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy


def test_records_without_images_and_boxes_are_shown(tmp_path: Path) -> None:
    path = write_preview(
        [record(images=(), regions=(), options=())], tmp_path / "new" / "page.html", title="t", total=9
    )
    assert "1 of 9 records" in path.read_text()
