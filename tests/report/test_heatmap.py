"""Heat-maps of an answer: cells lie where they belong on every kind of picture, and the page is inert and alive."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.geometry.frames import Frame
from sightline.images import image_ref
from sightline.report.colours import ramp
from sightline.report.environment import digest, source
from sightline.report.heatmap import OPACITY, heat_map, heat_page, mean_maps, side_by_side
from sightline.report.overlay import Style
from sightline.types import Box, Prompt, Record, Rollout, Span, Turn

FRAME = Frame("relative_1000", 16, 1024, 65536)
HOSTILE = "</script><img src=x onerror=alert(1)>"


def over(grey: int, level: int) -> np.ndarray:
    """The colour of a cell over a grey pixel."""
    return (1 - OPACITY) * grey + OPACITY * ramp()[level].astype(float)


@pytest.mark.parametrize("size", [(48, 32), (101, 37), (640, 481), (3, 2), (1, 9), (9, 1), (1, 1)])
def test_cells_are_equal_parts_of_the_picture(size: tuple[int, int]) -> None:
    weights = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
    pixels = np.asarray(heat_map(Image.new("L", size, 120), weights)).astype(float)
    assert pixels.shape == (size[1], size[0], 3)
    for y in range(0, size[1], 7):
        for x in range(0, size[0], 5):
            row, column = int((y + 0.5) * 2 / size[1]), int((x + 0.5) * 3 / size[0])
            level = round(255 * weights[row, column])
            assert pixels[y, x] == pytest.approx(over(120, level), abs=2)


def test_rotated_photo_is_upright_under_the_map(tmp_path: Path) -> None:
    photo = Image.new("RGB", (60, 20), "white")
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=exif)
    pixels = np.asarray(heat_map(tmp_path / "photo.jpg", np.array([[0.0], [0.0], [1.0]]))).astype(float)
    assert pixels.shape == (60, 20, 3)
    assert pixels[50, 10] == pytest.approx(over(255, 255), abs=3)
    assert pixels[10, 10] == pytest.approx(over(255, 0), abs=3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "RGB"])
def test_every_kind_of_picture(mode: str) -> None:
    assert heat_map(Image.new(mode, (33, 21)), np.ones((2, 2))).size == (33, 21)


def test_a_map_of_nothing_is_dark() -> None:
    pixels = np.asarray(heat_map(Image.new("L", (8, 8), 255), np.full((2, 2), np.nan)))
    assert pixels[0, 0].astype(float) == pytest.approx(over(255, 0), abs=2)


def test_boxes_are_drawn_over_the_map() -> None:
    image = heat_map(
        Image.new("RGB", (200, 100)), np.ones((2, 4)), [Box(40, 20, 120, 80)], styles=[Style("#00ff00", 1)]
    )
    green = np.argwhere((np.asarray(image) == (0, 255, 0)).all(-1))
    (top, left), (bottom, right) = green.min(0), green.max(0)
    assert (left, top, right, bottom) == pytest.approx((40, 20, 120, 80), abs=1)


def test_pictures_stand_side_by_side() -> None:
    both = side_by_side(Image.new("RGB", (30, 20), "red"), Image.new("RGB", (10, 40), "blue"))
    assert both.height == 40
    assert both.width >= 42
    assert both.getpixel((0, 0)) == (255, 0, 0)
    assert both.getpixel((both.width - 1, 39)) == (0, 0, 255)
    assert both.getpixel((0, 39)) == (255, 255, 255)


def conversation() -> tuple[Rollout, list[str]]:
    """Two images, a reply, a turn of the user, a second reply."""
    images = (image_ref(Image.new("RGB", (64, 48), "teal")), image_ref(Image.new("RGB", (32, 32), "gold")))
    record = Record(id="r", question="?", answer="red", images=images)
    pieces = ["<think>", " red", HOSTILE, "<user>", " crop", "it", " is", " red"]
    turns = (
        Turn(role="assistant", span=Span(0, 3), text="<think> red"),
        Turn(role="user", span=Span(3, 5), text=HOSTILE, images=(2,)),
        Turn(role="assistant", span=Span(5, 8), text="it is red"),
    )
    rollout = Rollout(
        prompt=Prompt(record=record, stream="textual", messages=(), images=images),
        branch=(0,),
        prompt_ids=np.arange(2),
        ids=np.arange(8),
        sampled=np.array([True, True, True, False, False, True, True, True]),
        logprobs=np.zeros(8),
        text="".join(pieces),
        finish="stop",
        turns=turns,
        images=(image_ref(Image.new("RGB", (9, 7), "red")),),
    )
    return rollout, pieces


def weights_of(rollout: Rollout) -> np.ndarray:
    """Token k looks at cell k alone; what was not sampled looks at the last cell, much."""
    visual = sum(FRAME.tokens(image.size) for image in rollout.prompt.images)
    weights = np.full((len(rollout.ids), visual), 0.001)
    for i, sampled in enumerate(rollout.sampled):
        weights[i, i if sampled else -1] = 0.4 if sampled else 5.0
    return weights


def test_mean_is_over_sampled_tokens_and_split_by_image() -> None:
    rollout, _ = conversation()
    first, second = mean_maps(rollout, weights_of(rollout), FRAME)
    assert first.shape == FRAME.cells(rollout.prompt.images[0].size)
    assert second.shape == FRAME.cells(rollout.prompt.images[1].size)
    assert first[0, 0] == pytest.approx((0.4 + 5 * 0.001) / 6)
    assert second.max() == pytest.approx(0.001)


def page_text(**extra) -> str:
    rollout, pieces = conversation()
    texts = [("question", HOSTILE)]
    return heat_page(rollout, weights_of(rollout), pieces, FRAME, boxes=[Box(2, 3, 40, 30)], texts=texts, **extra)


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_is_one_inert_file() -> None:
    text = page_text(labels=[HOSTILE], title=HOSTILE)
    assert [tag for tag, _ in _Tags(text).tags].count("script") == 2
    assert not [tag for tag, _ in _Tags(text).tags if tag == "img"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "default-src 'none'" in text
    assert "style=" not in text


DRIVER = """
{
  const top = () => layers[0].weights.indexOf(Math.max(...layers[0].weights));
  const told = () => document.getElementById("said").textContent.slice(0, 20);
  const tokens = [...document.querySelectorAll(".token")];
  const move = (kind, node) => node.dispatchEvent(new PointerEvent(kind, { bubbles: true }));
  const said = [tokens.length, layers.map((layer) => [layer.node.width, layer.node.height])];
  move("pointerover", tokens[1]); said.push(top(), told());
  tokens[3].click(); move("pointerout", tokens[3]); said.push(top());
  const canvas = layers[0].node, pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const shown = (cell, level) => [...pixels.slice(4 * cell, 4 * cell + 3)].join() === colours[level].join();
  said.push(shown(5, 255), shown(1, 1));
  tokens[3].click(); said.push(told());
  root.dataset.said = JSON.stringify(said);
}
"""


def test_hovering_a_word_shows_where_it_looked(tmp_path: Path, browse) -> None:
    script = source("dom.js", "heat.js", "look.js")
    text = page_text()
    page = tmp_path / "look.html"
    page.write_text(text.replace(script, script + DRIVER).replace(digest(script), digest(script + DRIVER)))
    dom, console = browse(page)
    assert console == []
    root = dict(_Tags(dom).tags[0][1])
    assert "data-error" not in root
    rollout, _ = conversation()
    grids = [list(FRAME.cells(image.size))[::-1] for image in rollout.prompt.images]
    said = json.loads(root["data-said"] or "[]")
    assert said == [6, grids, 1, 'Where " red" looked.', 5, True, True, "Mean over the reply."]
    assert dom.count('class="turn user"') == 1
