"""Which layers a choice by name stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.probes.heads import named_layers

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "faithful_mr1.json").read_text())


@pytest.mark.parametrize(("count", "layers"), GOLDEN["last_third"])
def test_the_last_third_leaves_the_final_layer_out(count: int, layers: list[int]) -> None:
    assert list(named_layers("last_third", count)) == layers


def test_a_model_of_one_layer_has_nothing_else_to_read() -> None:
    assert named_layers("last_third", 1) == (0,)
    assert named_layers("all", 3) == (0, 1, 2)
