"""`sightline ask --attention`: the map in the terminal, beside the boxes, and under every word."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli import main
from sightline.commands.looks import looked, save_look
from sightline.images import image_ref, open_image
from sightline.report.heatmap import OPACITY
from sightline.sampling.base import SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.sampling.modes import ModeConfig, ModeResult, answer
from sightline.types import Record

QUESTION = "What color is the mark on the red square?"


def asked(policy, mode: str, picture: Image.Image, config: ModeConfig | None = None) -> ModeResult:
    record = Record(id="a", question=QUESTION, answer="", images=(image_ref(picture),))
    settings = SamplingSettings(temperature=0.0, max_new_tokens=12)
    (result,) = answer(
        LocalSampler(policy), [record], mode, config or ModeConfig(), speaker=policy, settings=settings, seed=0
    )
    return result


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def test_attention_of_every_sampled_token_over_the_prompts_cells(policy) -> None:
    result = asked(policy, "textual", noise(80, 61))
    look = looked(result, policy)
    rollout = result.rollouts[-1]
    assert look.weights.shape == (len(rollout.ids), policy.frame.tokens(result.record.images[0].size))
    sums = look.weights.sum(axis=1)[rollout.sampled]
    assert (sums > 0).all()
    assert (sums < 1).all()
    assert "".join(look.pieces).strip() == rollout.text.strip()


@pytest.mark.parametrize("picture", [noise(90, 41), noise(33, 64).convert("L"), noise(64, 64).convert("RGBA")])
def test_picture_holds_both_at_the_original_size(policy, picture: Image.Image, tmp_path: Path) -> None:
    result = asked(policy, "grounded", picture)
    path = save_look(result, looked(result, policy), tmp_path / "deep" / "look.png")
    with Image.open(path) as both:
        assert both.height == picture.height
        assert both.width >= 2 * picture.width + 2
        pixels = np.asarray(both)
    original = np.asarray(open_image(result.record.images[0]))
    if not result.boxes:
        assert (pixels[:, : picture.width] == original).all()
    assert not (pixels[:, -picture.width :] == original).all()
    assert 0 < OPACITY < 1


def test_boxes_stand_on_the_original_where_crops_come_first(tmp_path: Path) -> None:
    from sightline.data import open_source
    from sightline.policy.load import load_policy

    policy = load_policy("embedded:qwen3_vl")
    record = open_source("scenes:zoom", split="test", seed=0, types=None, reader="ours", limit=1).at(0)
    settings = SamplingSettings(temperature=0.0, max_new_tokens=48)
    config = ModeConfig(order="crops-first")
    (result,) = answer(LocalSampler(policy), [record], "crops", config, speaker=policy, settings=settings, seed=0)
    assert result.crops
    look = looked(result, policy)
    assert look.first == len(result.rollouts[-1].prompt.images) - 1
    text = save_look(result, look, tmp_path / "look.html").read_text()
    block = re.search(r'id="data">(.*?)</script>', text)
    assert block
    data = json.loads(block.group(1))
    assert data["boxed"] == look.first
    assert [image["width"] for image in data["images"]][look.first] == record.images[0].size.width
    assert data["boxes"][0]["box"] == pytest.approx(list(result.boxes[0].box))
    assert [len(data["map"]["grid"]), data["map"]["every"]] == [len(data["images"]), 1]


def test_a_record_without_an_image_is_told(policy) -> None:
    from sightline.errors import UserError

    result = asked(policy, "textual", noise(64, 64))
    bare = replace(result, record=replace(result.record, images=()))
    with pytest.raises(UserError, match="no image to look at"):
        looked(bare, policy)


def test_command_draws_and_tells(checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise(72, 60).save(tmp_path / "scene.png")
    words = ["ask", str(tmp_path / "scene.png"), QUESTION, "--model", str(checkpoints["qwen3_vl"])]
    words += ["--max-new-tokens", "6", "--attention"]
    assert main([*words, "--out", str(tmp_path / "look.html")]) == 0
    assert "default-src 'none'" in (tmp_path / "look.html").read_text()
    capsys.readouterr()
    assert main(words) == 0
    assert "▀▀▀▀" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert "▀" not in capsys.readouterr().out


def test_heads_come_from_a_list_and_need_the_flag(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    noise(72, 60).save(tmp_path / "scene.png")
    (tmp_path / "heads.json").write_text(json.dumps({"heads": [[0, 1]]}))
    words = ["ask", str(tmp_path / "scene.png"), QUESTION, "--model", str(checkpoints["qwen3_vl"])]
    words += ["--max-new-tokens", "6", "--heads"]
    assert main([*words, str(tmp_path / "heads.json")]) == 2
    assert "--attention" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "heads.json"), "--attention", "--out", str(tmp_path / "a.png")]) == 0
    assert main([*words, str(tmp_path / "absent.json"), "--attention", "--out", str(tmp_path / "b.png")]) == 2
    assert not (tmp_path / "b.png").exists()
