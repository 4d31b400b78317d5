"""Every probe that looks at a policy passes on a sound one, and fails on one that is broken on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import FAMILIES, make_record
from sightline.doctor.bans import ban_probe
from sightline.doctor.blindness import blindness_probe, sighted
from sightline.doctor.coordinates import SIZES, coordinate_probe, drawn, sight, walk
from sightline.doctor.habits import CONVENTIONS, fits, habit_probe
from sightline.doctor.parity import parity_probe
from sightline.doctor.probes import unsound
from sightline.doctor.tokens import token_probe
from sightline.doctor.wording import prompt_probe
from sightline.language.prompts import prompt
from sightline.policy.encode import Encoded
from sightline.policy.load import Policy, load_policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.types import Box, Prompt, ReadBox, Rollout, Size, Span

SHORT = SamplingSettings(max_new_tokens=10)


@pytest.fixture(params=FAMILIES)
def own(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Policy:
    """A policy of each family that a test may break."""
    return load_policy(checkpoints[request.param])


def shown(policy: Policy, count: int = 3) -> list[Prompt]:
    records = [make_record(f"r{i}", ((96, 64), (61, 97))[: 1 + i % 2], i) for i in range(count)]
    return [prompt(r, s, s, policy.style) for r in records for s in ("textual", "grounded")]


def asked(policy: Policy) -> list[Request]:
    return [Request(p, (2,)) for p in shown(policy, 2)]


# -- coordinates


def test_a_drawn_box_comes_back(policy: Policy) -> None:
    found = coordinate_probe(policy)
    assert found.level == "pass", found.what
    assert max(found.values["shifts_px"]) < 12
    assert len(found.pictures) == 2 * len(SIZES)


def test_what_the_tower_is_shown_is_the_picture(policy: Policy) -> None:
    """The patches put together again are the resized picture, so the probe measures and does not assume."""
    from sightline.images import open_image, resample

    image, _ = drawn(Size(97, 61))
    size = policy.frame.resized(image.size)
    wanted = np.asarray(resample(open_image(image), size), np.float64)
    assert np.abs(sight(policy, image) - wanted).max() < 1.0


def test_a_frame_of_the_other_family_is_noticed(own: Policy) -> None:
    other = "absolute" if own.frame.convention == "relative_1000" else "relative_1000"
    own.frame = replace(own.frame, convention=other)
    found = coordinate_probe(own)
    assert found.level == "fail"
    assert "off" in found.what or "invalid" in found.what


def test_the_other_familys_coordinates_are_noticed_even_if_all_agree(own: Policy) -> None:
    """Boxes come back where they were drawn, in coordinates that the family was never taught."""
    other = "absolute" if own.frame.convention == "relative_1000" else "relative_1000"
    own.frame = replace(own.frame, convention=other)
    own.adapter.convention = other
    found = coordinate_probe(own)
    assert found.level == "fail"
    assert f"{own.family} writes" in found.what


def test_other_pixel_limits_than_the_processor_are_noticed(own: Policy) -> None:
    own.frame = replace(own.frame, max_pixels=own.frame.max_pixels // 2)
    found = coordinate_probe(own, [Size(640, 480)])
    assert found.level == "fail"
    assert "the processor resizes to" in found.what


@pytest.mark.parametrize("broken", ["read", "crop", "draw", "prompt"])
def test_every_station_of_the_way_is_walked(policy: Policy, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Each of parser, crop, drawing and prompt is shifted alone."""
    import sightline.images
    import sightline.language.parse
    import sightline.language.prompts
    import sightline.report.overlay

    def moved(box: Box) -> Box:
        return Box(box.x1 + 60, box.y1 + 60, box.x2 + 60, box.y2 + 60)

    if broken == "read":
        read = sightline.language.parse.read

        def swapped(*a: Any) -> Any:
            reading = read(*a)
            return replace(reading, boxes=tuple(replace(b, box=moved(b.box)) for b in reading.boxes))

        monkeypatch.setattr(sightline.language.parse, "read", swapped)
    elif broken == "crop":
        crop = sightline.images.crop
        monkeypatch.setattr(sightline.images, "crop", lambda i, b, **k: crop(i, moved(b), **k))
    elif broken == "draw":
        draw = sightline.report.overlay.draw
        monkeypatch.setattr(sightline.report.overlay, "draw", lambda i, b: draw(i, [moved(x) for x in b]))
    else:
        monkeypatch.setattr(sightline.language.prompts, "_limits", lambda *_: "Width: 7, height: 7. ")
    one = walk(policy, Size(333, 517))
    words = {"read": "comes back", "crop": "crop shows", "draw": "outline is drawn", "prompt": "prompt does not name"}
    assert words[broken] in one.problem


# -- blindness


def test_a_policy_with_eyes_is_not_blind(policy: Policy) -> None:
    records = [make_record(f"r{i}", seed=i) for i in range(3)]
    assert blindness_probe(policy, records).level != "fail"
    assert all(abs(one.gain) > 1e-3 for one in sighted(policy, records))


def test_a_blind_policy_is_noticed(own: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vision tower gives the same features whatever it is shown."""
    see = own.adapter.vision

    def blind(pixels: torch.Tensor, grids: torch.Tensor) -> Any:
        return see(torch.zeros_like(pixels), grids)

    monkeypatch.setattr(own.adapter, "vision", blind)
    found = blindness_probe(own, [make_record("r0"), make_record("r1", seed=1)])
    assert found.level == "fail"
    assert found.values["unmoved"] == 2


def test_one_blind_record_is_enough(own: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline.doctor.blindness as blindness

    record = make_record()
    moved, still = (blindness.Sighted(record=record, seen=s, blank=-3.0, blanks=record.images) for s in (-1.0, -3.0))
    monkeypatch.setattr(blindness, "sighted", lambda *_, **__: [moved, still])
    assert blindness_probe(own, [record]).level == "fail"


def test_answers_that_are_certain_anyway_tell_nothing(own: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline.doctor.blindness as blindness

    record = make_record()
    sure = blindness.Sighted(record=record, seen=-1e-7, blank=0.0, blanks=record.images)
    monkeypatch.setattr(blindness, "sighted", lambda *_, **__: [sure, sure])
    found = blindness_probe(own, [record])
    assert found.level == "warn"
    assert "certain" in found.what


def poison(policy: Policy) -> None:
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[3] = float("nan")


def test_no_numbers_are_no_sight_and_no_parity(own: Policy) -> None:
    sampled = LocalSampler(own).sample(asked(own), SHORT, seed=0, step=0)
    poison(own)

    class Earlier(LocalSampler):
        def sample(self, *_: Any, **__: Any) -> list[list[Rollout]]:
            return sampled

    assert blindness_probe(own, [make_record()]).level == "fail"
    assert parity_probe(own, Earlier(own), asked(own), SHORT).level == "fail"
    assert ban_probe(own, Earlier(own), asked(own)).level == "fail"
    assert len(unsound(own)) == 1


def test_nothing_to_see_is_a_warning(policy: Policy) -> None:
    from sightline.images import image_ref

    black = replace(make_record("black"), images=(image_ref(np.zeros((64, 96, 3), np.uint8)),))
    assert blindness_probe(policy, [make_record("text", ()), black]).level == "warn"


def test_images_that_mislead_are_a_warning(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image makes the right answer less likely, far beyond chance."""
    import sightline.doctor.blindness as blindness

    record = make_record()
    worse = [blindness.Sighted(record=record, seen=-3.0 - i, blank=-1.0, blanks=record.images) for i in range(4)]
    monkeypatch.setattr(blindness, "sighted", lambda *_, **__: worse)
    assert blindness_probe(policy, [record]).level == "warn"
    monkeypatch.setattr(blindness, "sighted", lambda *_, **__: [*worse, replace(worse[0], seen=9.0)])
    assert blindness_probe(policy, [record]).level == "pass"  # too close to tell


# -- tokens


def test_image_tokens_equal_features(policy: Policy) -> None:
    found = token_probe(policy, shown(policy), reply=16, budget=8192)
    assert found.level == "pass", found.what
    assert found.values["unequal"] == 0


def test_a_dropped_image_token_is_noticed(own: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = own.encode

    def dropped(p: Prompt) -> Encoded:
        whole = encode(p)
        at = np.flatnonzero(whole.ids == own.image_token)[:1]
        return Encoded(np.delete(whole.ids, at), whole.images)

    monkeypatch.setattr(own, "encode", dropped)
    found = token_probe(own, shown(own, 1), reply=16, budget=8192)
    assert found.level == "fail"
    assert "image tokens" in found.what


def test_prompts_beyond_the_model_or_the_budget_are_noticed(policy: Policy) -> None:
    assert token_probe(policy, shown(policy, 1), reply=10**6, budget=10**7).level == "fail"
    assert token_probe(policy, shown(policy, 1), reply=16, budget=64).level == "warn"


# -- bans


def test_bans_hold_under_temptation(policy: Policy) -> None:
    found = ban_probe(policy, LocalSampler(policy), asked(policy))
    assert found.level == "pass", found.what
    assert found.values["sampled"] > 20
    assert not policy.model.get_output_embeddings()._forward_hooks


def test_a_ban_list_that_is_switched_off_is_noticed(own: Policy) -> None:
    own.module.bias.zero_()
    found = ban_probe(own, LocalSampler(own), asked(own))
    assert found.level == "fail"
    assert found.values["written"] > 0
    assert found.values["mass"] > 0.99


def test_a_scoring_pass_without_bans_is_noticed(own: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling keeps them, the learner's forward does not."""
    from sightline.policy.forward import Outputs

    def free(rows: torch.Tensor, target: torch.Tensor, temperature: float, entropies: bool) -> Outputs:
        del temperature, entropies
        return Outputs(torch.log_softmax(own.adapter.logits(rows).float(), -1).gather(-1, target[:, None])[:, 0])

    assert ban_probe(own, LocalSampler(own), asked(own)).values["mass"] == 0
    monkeypatch.setattr(own.module, "_score", free)
    found = ban_probe(own, LocalSampler(own), asked(own))
    assert found.level == "fail"
    assert found.values["written"] == 0
    assert "scoring gives banned ids" in found.what


def test_an_id_that_is_missing_on_the_list_is_noticed(own: Policy) -> None:
    own.banned = tuple(i for i in own.banned if i != own.image_token)
    found = ban_probe(own, LocalSampler(own), asked(own))
    assert found.level == "fail"
    assert "image_pad" in found.what


# -- parity


def test_sampler_and_learner_agree(policy: Policy) -> None:
    found = parity_probe(policy, LocalSampler(policy), asked(policy), SHORT)
    assert found.level == "pass", found.what
    assert found.values["largest"] < 1e-4


def test_a_sampler_with_other_weights_is_noticed(own: Policy, checkpoints: dict[str, Path]) -> None:
    other = load_policy(checkpoints[own.family])
    with torch.no_grad():
        for weight in other.model.get_input_embeddings().parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    found = parity_probe(own, LocalSampler(other), asked(own), SHORT)
    assert found.level == "fail"
    assert found.values["mean"] > 0.01


def test_a_sampler_at_another_temperature_is_noticed(policy: Policy) -> None:
    class Hot(LocalSampler):
        def sample(self, requests: Any, settings: SamplingSettings, *, seed: int, step: int) -> list[list[Rollout]]:
            return super().sample(requests, replace(settings, temperature=2.0), seed=seed, step=step)

    assert parity_probe(policy, Hot(policy), asked(policy), SHORT).level == "fail"


def test_a_sampler_that_shows_another_prompt_is_noticed(policy: Policy) -> None:
    class Other(LocalSampler):
        def sample(self, requests: Any, settings: SamplingSettings, *, seed: int, step: int) -> list[list[Rollout]]:
            groups = super().sample(requests, settings, seed=seed, step=step)
            return [[replace(r, prompt_ids=r.prompt_ids[:-1]) for r in group] for group in groups]

    found = parity_probe(policy, Other(policy), asked(policy), SHORT)
    assert found.level == "fail"
    assert "another prompt" in found.what


# -- prompts


def test_prompts_render_and_tags_come_back(policy: Policy) -> None:
    found = prompt_probe(policy, [replace(p, forced_prefix="<think>") for p in shown(policy)])
    assert found.level == "pass", found.details
    assert "'<think>'" in found.what


def test_a_template_that_drops_the_question_is_noticed(own: Policy) -> None:
    own.template = own.template.replace("{{ c.text }}", "")
    found = prompt_probe(own, shown(own, 1))
    assert found.level == "fail"
    assert any("question or instruction" in line for line in found.details)


def test_a_mark_that_sampling_does_not_stop_at_is_noticed(own: Policy) -> None:
    own.eos = (5,)
    found = prompt_probe(own, shown(own, 1))
    assert found.level == "fail"
    assert any("stop sampling" in line for line in found.details)


def test_a_tokenizer_that_eats_tags_is_noticed(own: Policy) -> None:
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["</box>"]}, replace_extra_special_tokens=False)
    decode = own.decode
    own.decode = lambda ids: decode(ids).replace("</box>", "")  # type: ignore[method-assign]
    assert prompt_probe(own, shown(own, 1)).level == "fail"


# -- habits


class Says:
    """A sampler whose replies are given."""

    def __init__(self, policy: Policy, text: Any) -> None:
        self.policy, self.text = policy, text

    def sample(self, requests: Any, settings: SamplingSettings, *, seed: int, step: int) -> list[list[Rollout]]:
        del settings, seed, step
        empty = np.zeros(0, np.int64)
        return [
            [Rollout(prompt=r.prompt, branch=(0,), prompt_ids=empty, ids=empty, sampled=empty.astype(bool),
                     logprobs=empty.astype(np.float32), text=self.text(r.prompt.record), finish="stop")]
            for r in requests
        ]  # fmt: skip


def test_boxes_in_the_own_convention_pass(policy: Policy) -> None:
    def right(record: Any) -> str:
        numbers = ",".join(map(str, policy.frame.write(record.regions[0].box, record.images[0].size)))
        return f"<think> <box>[{numbers}]</box> </think><answer> green </answer>"

    records = [make_record(f"r{i}", ((1000, 700),), i) for i in range(4)]
    assert habit_probe(policy, Says(policy, right), records, tokens=8).level == "pass"


def test_boxes_in_another_convention_are_named(policy: Policy) -> None:
    def pixels(record: Any) -> str:
        numbers = ",".join(str(round(n)) for n in record.regions[0].box)
        return f"<think> <box>[{numbers}]</box> </think><answer> green </answer>"

    region = make_record().regions[0]
    large = replace(region, box=Box(400, 300, 900, 650))
    records = [replace(make_record(f"r{i}", ((1000, 700),), i), regions=(large,)) for i in range(4)]
    found = habit_probe(policy, Says(policy, pixels), records, tokens=8)
    assert found.level == "warn"
    assert "pixels of the original image" in found.what


def test_a_policy_without_boxes_is_a_warning_only(policy: Policy) -> None:
    records = [make_record(f"r{i}", seed=i) for i in range(4)]
    assert habit_probe(policy, Says(policy, lambda _: "<answer> green </answer>"), records, tokens=8).level == "warn"


def test_every_convention_finds_its_own_boxes(policy: Policy) -> None:
    record = make_record("r", ((640, 480),))
    record = replace(record, regions=(replace(record.regions[0], box=Box(64, 96, 320, 384)),))
    gold, size = record.regions[0].box, Size(640, 480)
    resized = policy.frame.resized(size)
    units = {1: resized, 2: (1000, 1000), 3: size, 4: (1, 1)}
    for number, unit in units.items():
        written = tuple(edge * unit[i % 2] / size[i % 2] for i, edge in enumerate(gold))
        box = ReadBox(box=Box(0, 0, 1, 1), written=written, span=Span(0, 0))  # type: ignore[arg-type]
        assert fits(policy.frame, [(record, box)])[CONVENTIONS[number]] == pytest.approx(1.0)


def test_records_without_regions_leave_nothing_to_compare(policy: Policy) -> None:
    bare = replace(make_record(), regions=())
    assert habit_probe(policy, SimpleNamespace(), [bare], tokens=8).level == "pass"  # type: ignore[arg-type]
