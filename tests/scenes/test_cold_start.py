"""What the cold start feeds the policy is what sampling will show it, and every loss counts what it should."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sightline.language.prompts import prompt
from sightline.policy.load import load_policy
from sightline.policy.tree import build_tree
from sightline.scenes.cold_start import ColdStart, Schedule
from sightline.scenes.curriculum import Curriculum, Shown
from sightline.scenes.dense import labels_of
from sightline.scenes.model import FAMILIES, build_model, lattice, write_policy
from sightline.scenes.stream import record_at
from sightline.scenes.world import COLORS, scene_at
from sightline.types import Box


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    write_policy(build_model(request.param), folder)
    (folder / "card.json").write_text(json.dumps({"prompt_style": "compact"}))
    return load_policy(folder)


def test_published_files_load_strictly(policy) -> None:
    size = (policy.source / "model.safetensors").stat().st_size
    assert size < 2.5 * 2**20
    assert 0.7e6 < sum(p.numel() for p in policy.model.parameters()) < 1.5e6
    assert policy.frame.factor == 16
    assert policy.frame.convention == ("relative_1000" if policy.family == "qwen3_vl" else "absolute")


def test_paths_hold_the_prompt_that_sampling_shows(policy) -> None:
    curriculum = Curriculum(family=policy.family, seed=0, early=0)
    styles = set()
    for number in range(30):
        example = curriculum.example(number, policy)
        tree = build_tree(example.paths, policy.rules)
        assert {image.digest for image, _ in tree.images} == set(example.shown)
        head = example.paths[0].segments[0].ids
        for path in example.paths:
            segment = path.segments[1]
            text = policy.tokenizer.decode(segment.ids[: int(np.argmax(segment.sampled))], skip_special_tokens=False)
            asked, instruction = text.split("<|im_end|>")[0].split("\n")
            styles.add(instruction)
            question = asked.split("<|vision_end|>")[-1]
            record = record_at("easy", "test", 0, 0)
            same = type(record)(id="x", question=question, answer="", images=path.segments[0].images + segment.images)
            style = {" Think .": "textual", " Answer .": "direct", " Think with boxes .": "grounded"}.get(instruction)
            if style and not segment.images:
                ids = np.concatenate([head, segment.ids])
                encoded = policy.encode(prompt(same, style, style, "compact")).ids
                assert (ids[: len(encoded)] == encoded).all()
            reply = policy.tokenizer.decode(segment.ids[segment.sampled], skip_special_tokens=False)
            assert reply.endswith("<|im_end|>")
    assert len(styles) == 7, styles


def test_training_lowers_every_loss(policy) -> None:
    schedule = Schedule(vision_steps=4, vision_images=4, steps=6, pictures=2, warm_up=1)
    trained = list(
        ColdStart(policy=policy, curriculum=Curriculum(family=policy.family, seed=0), schedule=schedule).run()
    )
    for stage in ("vision", "replies"):
        losses = [t.losses for t in trained if t.stage == stage]
        assert losses[-1]["dense"] < losses[0]["dense"]
    replies = [t.losses["reply"] for t in trained if t.stage == "replies"]
    assert replies[-1] < replies[0] - 0.5


def test_dense_labels_name_what_covers_a_cell() -> None:
    scene = scene_at("hard", "test", 0, 0)
    whole = Shown(scene=scene, part=Box(0, 0, scene.side, scene.side))
    labels = labels_of(whole, (6, 6), 97, is_whole=True)
    for thing in scene.things:
        x, y = (thing.box.x1 + thing.box.x2) / 2, (thing.box.y1 + thing.box.y2) / 2
        cell = int(y * 6 / scene.side) * 6 + int(x * 6 / scene.side)
        if labels.color[cell] == list(COLORS).index(thing.color):
            assert labels.sides[cell].tolist() == [round(v * 96 / scene.side) for v in thing.box]
    assert (labels.color == len(COLORS)).any(), "some background"
    box = scene.things[0].box
    close = labels_of(Shown(scene=scene, part=box), (4, 4), 97, is_whole=False)
    assert (close.sides == -1).all(), "coordinates always refer to the whole picture"
    assert (close.color[[5, 6, 9, 10]] == list(COLORS).index(scene.things[0].color)).all()


def test_the_ladder_of_coordinates_round_trips() -> None:
    for family in FAMILIES:
        values, curriculum = lattice(family), Curriculum(family=family, seed=0)
        assert sorted(set(values)) == values
        record = record_at("hard", "train", 0, 0)
        written = curriculum.write(record.regions[0].box, record.images[0].size)
        assert set(written) <= set(values)
