"""Measurements on the run page: maps over the picture, changed images beside the original, values of each token."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sightline.geometry.frames import Frame
from sightline.report.environment import digest, source
from sightline.report.events import RunFolder, RunWriter
from sightline.report.maps import unpack_map
from sightline.report.page import SCRIPTS, render_page, write_page
from sightline.report.page_data import page_data
from sightline.report.rows import group_row
from sightline.types import Group, ImageRef, Measurement, Size

FRAME = Frame("relative_1000", 16, 36 * 256, 144 * 256)


def measured(synthetic, vocabulary, *, seed: int = 11, step: int = 0) -> Group:
    """A group whose token k looks at cell k; the second token was not sampled; a contrast halves each probability."""
    group = synthetic.group(seed, step, vocabulary, grounded=True).of("grounded")
    changed = ImageRef(size=Size(192, 192), digest=f"{seed:04d}c" * 8, pixels=np.zeros((192, 192, 3), np.uint8))
    visual = FRAME.tokens(group.record.images[0].size)
    rollouts, measurements = [], []
    for rollout in group.rollouts:
        count = len(rollout.ids)
        sampled = np.arange(count) != 1
        maps = np.where(sampled[:, None], np.eye(visual)[np.arange(count) % visual] * 0.5, 0.0)
        masses = np.tile([0.1, 0.4, 0.0, 0.5], (count, 1)) * sampled[:, None]
        gold = np.where(np.arange(count) == 3, -0.5, np.nan)
        changed_logprobs = (rollout.logprobs - np.log(2)) * sampled
        measurements.append(
            Measurement(
                logprobs=rollout.logprobs * sampled,
                entropies=np.full(count, 0.25),
                probes={
                    "attention": masses,
                    "attention/top1": masses[:, 0],
                    "contrast": changed_logprobs,
                    "gold": gold,
                },
                maps={"attention": maps, "focus": np.full((1, visual), 1 / visual)},
                images={"contrast": (changed,)},
            )
        )
        rollouts.append(replace(rollout, sampled=sampled))
    return replace(group, rollouts=tuple(rollouts), measurements=tuple(measurements))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, synthetic) -> Path:
    folder, vocabulary = tmp_path_factory.mktemp("evidence"), synthetic.Vocabulary()
    writer = RunWriter(folder)
    writer.manifest({"method": "faithful_mr1"})
    writer.step(synthetic.stats(0, 0.1, grounded=True))
    groups = [measured(synthetic, vocabulary), measured(synthetic, vocabulary, seed=12)]
    writer.groups(0, groups, decode_piece=vocabulary.decode_piece, frame=FRAME)
    return folder


def test_row_holds_what_was_measured(run: Path) -> None:
    row = RunFolder(run).rollouts[0]
    first = row["rollouts"][0]
    count = len(first["tokens"])
    assert first["probes"]["attention/region"][:3] == [0.1, None, 0.1]
    assert first["probes"]["attention/text"][0] == 0.5
    assert set(first["probes"]) == {f"attention/{part}" for part in ("region", "image", "added", "text", "top1")} | {
        "contrast",
        "gold",
    }
    assert first["probes"]["gold"][2:5] == [None, -0.5, None]
    assert first["effects"]["contrast"][0] == pytest.approx(np.log(2), rel=1e-3)
    assert first["effects"]["contrast"][1] is None
    assert first["tokens"][0]["entropy"] == 0.25
    assert "entropy" not in first["tokens"][1]
    values = unpack_map(first["maps"]["attention"])
    assert values.shape == (count, FRAME.tokens(Size(192, 192)))
    assert values[2].argmax() == 2
    assert values[1].max() == 0.0
    assert first["maps"]["focus"]["rows"] == 1
    assert RunFolder(run).image(first["pictures"]["contrast"][0]["digest"])
    target = unpack_map(row["target"])
    assert target.sum() == pytest.approx(1.0, abs=0.02)


def test_draws_are_averaged_and_only_contrasts_have_effects(synthetic) -> None:
    group = measured(synthetic, synthetic.Vocabulary())
    first = group.measurements[0]
    assert first.logprobs is not None
    draws = np.stack([first.logprobs - shift for shift in (1.0, 2.0, 3.0, 2.0)], axis=1)
    one = replace(first, probes={"contrast": draws, "other": draws}, maps={})
    row = group_row(0, replace(group, measurements=(one, *group.measurements[1:])), frame=FRAME)["rollouts"][0]
    assert row["effects"] == {"contrast": pytest.approx([2.0 if s else None for s in group.rollouts[0].sampled])}
    assert set(row["probes"]) == {"contrast", "other"}
    assert "maps" not in row


def test_draws_of_certain_tokens_are_no_masses(synthetic) -> None:
    """Four draws of log-prob 0 have the shape and the sign of attention masses."""
    group = measured(synthetic, synthetic.Vocabulary())
    first = group.measurements[0]
    sure = replace(first, probes={"contrast": np.zeros((len(group.rollouts[0].ids), 4))}, maps={})
    row = group_row(0, replace(group, measurements=(sure, *group.measurements[1:])), frame=FRAME)["rollouts"][0]
    assert set(row["probes"]) == set(row["effects"]) == {"contrast"}


def test_without_a_frame_or_a_measurement_there_is_nothing(synthetic) -> None:
    vocabulary = synthetic.Vocabulary()
    row = group_row(0, measured(synthetic, vocabulary))
    assert row["target"] is None
    assert "maps" not in row["rollouts"][0]
    plain = group_row(0, synthetic.group(11, 0, vocabulary, grounded=True), frame=FRAME)
    assert not {"maps", "probes", "effects", "pictures"} & set(plain["rollouts"][0])


def test_a_page_loses_detail_of_maps_before_groups(tmp_path: Path, synthetic) -> None:
    vocabulary = synthetic.Vocabulary()
    writer = RunWriter(tmp_path)
    writer.manifest({})
    groups = [measured(synthetic, vocabulary, seed=seed) for seed in (11, 12, 13, 14)]
    wide = np.random.default_rng(0).random((400, 144))
    for step in range(2):
        heavy = [replace(g, measurements=tuple(replace(m, maps={"all": wide}) for m in g.measurements)) for g in groups]
        writer.groups(step, heavy, frame=FRAME)
    budget = 1_800_000
    arm = page_data(RunFolder(tmp_path), groups_per_arm=60, budget=budget)["arms"][0]
    shown = arm["groups"][0]["rollouts"][0]["maps"]["all"]
    assert len(arm["groups"]) == 8
    assert shown["every"] > 1
    assert shown["rows"] * shown["every"] >= 400
    page = render_page(RunFolder(tmp_path), budget=budget)
    assert len(page.encode()) < budget + 120_000
    tiny = page_data(RunFolder(tmp_path), groups_per_arm=60, budget=40_000)["arms"][0]
    assert len(tiny["groups"]) == 1
    assert tiny["groups"][0]["rollouts"][0]["maps"]["all"]["rows"] < 10


DRIVER = """
{
  const count = (selector) => document.querySelectorAll(selector).length;
  const maps = () => [view.watchers.length, view.bodyWatchers[view.active].length];
  const rollout = view.group.rollouts[view.active];
  const strip = document.querySelector(`.rollout[data-index="${view.active}"] .tokens`);
  const token = (i) => strip.querySelector(`[data-token="${i}"]`);
  const move = (kind, node) => node.dispatchEvent(new PointerEvent(kind, { bubbles: true }));
  const note = () => document.querySelector(".map-note").textContent;
  const said = [count(".aside canvas.heat"), count(".figures canvas.heat"), maps()];
  said.push([...document.querySelectorAll(".figures figcaption")].map((node) => node.textContent));
  said.push(note());
  move("pointerover", token(5)); said.push(note());
  const layer = view.layer(rollout, 0, []); layer.draw(5);
  said.push(layer.weights.indexOf(Math.max(...layer.weights)), layer.valueAt(5.5 / 12, 0));
  move("pointerout", token(5)); token(7).click(); said.push(note(), count(".token.pinned"));
  token(7).click();
  said.push(token(0).dataset.hint.split("\\n").slice(3));
  said.push(count(".token.caused.for") > 5, count(".token.caused.against"));
  said.push([...document.querySelectorAll(".tints option")].map((node) => node.value));
  view.tint = "attention/region"; view.draw(); said.push(count(".token.amount") > 5, count(".token.plus"));
  view.map = "none"; view.draw(); said.push(count(".aside canvas.heat"));
  root.dataset.said = JSON.stringify(said);
}
"""


def test_browser_shows_where_each_token_looked(run: Path, tmp_path: Path, browse) -> None:
    script = source(*SCRIPTS)
    text = write_page(run).read_text()
    driven = tmp_path / "driven.html"
    driven.write_text(text.replace(script, script + DRIVER).replace(digest(script), digest(script + DRIVER)))
    dom, console = browse(driven)
    assert console == []
    assert "data-error" not in dom
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found
    said = json.loads(found.group(1).replace("&quot;", '"'))
    sampled = len(RunFolder(run).rollouts[0]["rollouts"][0]["tokens"]) - 1
    assert said[:3] == [1, 4, [2, 2]]
    captions = said[3]
    assert captions[0] == "original"
    assert captions[1].startswith("under contrast")
    assert float(captions[1].split("+")[1]) == pytest.approx(sampled * np.log(2), rel=0.15)
    assert captions[2].startswith("focus")
    assert captions[3] == "region target"
    assert said[4].startswith("mean over the reply · ")
    assert said[5].startswith('at "')
    assert said[6] == 5
    assert said[7] == pytest.approx(0.5)
    assert said[8].startswith('at "')
    assert said[9] == 1
    assert said[10] == [
        "entropy 0.25",
        "effect of contrast +0.693",
        *[f"attention/{name} {v}" for name, v in (("region", 0.1), ("image", 0.4), ("added", 0), ("text", 0.5))],
        "attention/top1 0.1",
    ]
    assert said[11:13] == [True, 0]
    assert said[13][:2] == ["advantage", "effect of contrast"]
    assert "attention/region" in said[13]
    assert "contrast" not in said[13]
    assert said[14:17] == [True, 0, 0]


def test_browser_shows_the_page_without_any_of_it(odd: Path, tmp_path: Path, browse) -> None:
    dom, console = browse(write_page(odd, tmp_path / "page.html"), "record=s4")
    assert console == []
    assert 'class="heat"' not in dom
    assert re.search(r'<label class="tints" hidden=""', dom)
