"""The shipped policies: they load strictly and keep on fresh scenes what their card promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import sightline.scenes
from sightline.policy.load import load_policy
from sightline.scenes.measure import figures, gold_crops
from sightline.scenes.model import FAMILIES
from sightline.scenes.stream import record_at
from sightline.scenes.world import GENERATOR

FOLDER = Path(sightline.scenes.__file__).parent / "checkpoints"
FRESH = 1  # the card was measured on seed 0
N = 200
SHIPPED = [family for family in FAMILIES if (FOLDER / family).exists()]


def test_the_default_policy_is_shipped() -> None:
    assert "qwen3_vl" in SHIPPED


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request):
    folder = FOLDER / request.param
    return load_policy(f"embedded:{request.param}"), json.loads((folder / "card.json").read_text())


def test_files(shipped) -> None:
    policy, card = shipped
    assert (policy.source / "model.safetensors").stat().st_size < 2.5e6
    assert policy.style == "compact"
    assert card["generator"] == GENERATOR, "the generator changed: rebuild the policies"
    assert card["parameters"] == sum(p.numel() for p in policy.model.parameters())
    assert (policy.source / "README.md").exists()


@pytest.mark.parametrize(
    "key",
    ["easy/mark/textual", "easy/mark/grounded", "hard/mark/textual", "hard/mark/grounded", "zoom/mark/crops+crop"],
)
def test_fresh_scenes_confirm_the_card(shipped, key: str) -> None:
    """Shares agree within four standard errors of the difference; IoU, whose spread is near .3, likewise."""
    policy, card = shipped
    level, kind, style = key.removesuffix("+crop").split("/")
    name = f"{level}-gradient" if card["background"] == "gradient" else level
    records = [record_at(name, "test", FRESH, i, (kind,)) for i in range(N)]
    found = figures(policy, records, style, gold_crops if key.endswith("+crop") else None).rounded()
    told = card["figures"][key]
    error = math.sqrt(1 / N + 1 / told["n"])
    assert set(found) == set(told)
    for metric in set(told) - {"n"}:
        spread = 0.3 if metric == "iou" else max(math.sqrt(told[metric] * (1 - told[metric])), 0.1)
        assert found[metric] == pytest.approx(told[metric], abs=4 * spread * error), metric


def test_a_crop_shows_what_the_view_does_not(shipped) -> None:
    _, card = shipped
    told = card["figures"]
    if card["passed"]:
        assert told["zoom/mark/crops+crop"]["accuracy"] > told["zoom/mark/textual"]["accuracy"] + 0.3
        assert told["hard/mark/crops+crop"]["accuracy"] > told["hard/mark/textual"]["accuracy"]
        assert told["easy/mark/textual"]["format"] > 0.98
