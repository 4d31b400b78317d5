"""Attention read in the update: values, regions, weights, gradients, and the focus row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_record
from eager import eager, gradients, relative_difference
from measured import Stock, pairs, plain_groups
from sightline.errors import UserError
from sightline.geometry.grid import membership
from sightline.language.prompts import prompt
from sightline.methods.probes import FocusAttention, RegionAttention
from sightline.policy.load import Policy
from sightline.policy.packing import Packed, Packer
from sightline.probes.scoring import scoring_pass
from sightline.probes.update import RegionMap, UpdateReadings
from sightline.types import Group, Rollout


def focus_groups(policy: Policy, records: int = 2, *, token: str) -> list[Group]:
    """Two streams that force the token, and one that does not; the last record has no regions."""
    rng, groups = np.random.default_rng(0), []
    for number in range(records):
        record = make_record(f"r{number}", ((96, 64), (33, 60))[: number + 1], number)
        record = replace(record, regions=record.regions if number < records - 1 or records == 1 else ())
        replies = []
        for stream, forced in (("textual", f"{token}\n"), ("grounded", f"{token} a"), ("plain", "")):
            shown = prompt(record, stream, "textual", "compact", forced_prefix=forced)
            for branch in range(2):
                ids = rng.integers(256, 1200, 5 + branch)
                replies.append(
                    Rollout(
                        prompt=shown, branch=(branch,), prompt_ids=policy.encode(shown).ids, ids=ids,
                        sampled=np.ones(len(ids), bool), logprobs=np.zeros(len(ids), np.float32), text="",
                        finish="stop",
                    )
                )  # fmt: skip
        groups.append(Group(record=record, rollouts=tuple(replies), readings=()))
    return groups


@pytest.fixture
def token() -> str:
    """One id of the test vocabulary that no prompt holds."""
    return "~"


def test_focus_maps_equal_the_eager_row(policy: Policy, stock: Stock, token: str) -> None:
    groups = focus_groups(policy, token=token)
    identity = policy.tokenizer.convert_tokens_to_ids(token)
    probe = FocusAttention(token=token, layers=(1, -1))
    for shares in (True, False):
        for group, place, rollout in pairs(scoring_pass(Packer(policy, shares=shares), groups, (probe,))):
            maps = group.measurements[place].maps
            if rollout.stream == "plain":
                assert not maps
                continue
            matrices, _, visual = stock(rollout)
            at = int(np.flatnonzero(rollout.prompt_ids == identity)[-1])
            expected = np.concatenate([matrices[1], matrices[2]]).mean(0)[at, visual]
            assert maps["focus"].shape == (1, len(visual))
            np.testing.assert_allclose(maps["focus"][0], expected, atol=1e-6)
            assert maps["focus"].sum() < 1


def test_several_focus_tokens_in_a_row_are_read_as_their_mean(policy: Policy, stock: Stock, token: str) -> None:
    """In the scoring pass and, head by head, in the update, where each prompt still has one row and one weight."""
    groups = focus_groups(policy, records=1, token=token * 3)
    identity = policy.tokenizer.convert_tokens_to_ids(token)
    probe = FocusAttention(token=token, count=3, layers=(1, -1), in_update=True)
    measured = scoring_pass(Packer(policy), groups, (probe,))
    for group, place, rollout in pairs(measured):
        if rollout.stream != "plain":
            matrices, _, visual = stock(rollout)
            at = np.flatnonzero(rollout.prompt_ids == identity)
            assert len(at) == 3
            expected = np.concatenate([matrices[1], matrices[2]]).mean(0)[at][:, visual].mean(0)
            np.testing.assert_allclose(group.measurements[place].maps["focus"][0], expected, atol=1e-6)
    (packed,) = Packer(policy).groups(groups)
    seen = read(policy, packed, (probe,), records=1)["focus"]
    assert seen.values.shape[1] == len(seen.weight) == 2
    assert float(seen.weight.sum()) == pytest.approx(1.0)
    wanted = [measured[0].measurements[place].maps["focus"][0] for place in (0, 2)]
    np.testing.assert_allclose(seen.values.mean(0).detach().numpy(), wanted, atol=1e-6)


def test_a_focus_token_must_be_one_token(policy: Policy) -> None:
    with pytest.raises(UserError, match="tokens of this policy, not one"):
        scoring_pass(Packer(policy), plain_groups(policy, 1), (FocusAttention(token="two words"),))


def read(policy: Policy, packed: Packed, probes: Any, records: int) -> dict[str, RegionMap]:
    readings = UpdateReadings(probes, policy, packed, records)
    policy.module(packed.batch, readout=readings.readout)
    return readings.maps()


def test_maps_of_the_update_are_those_of_the_measurement(policy: Policy, token: str) -> None:
    """Per head, with the columns of the Record's own images; the mean over heads is what the scoring pass measured."""
    groups = focus_groups(policy, token=token)
    probes = (FocusAttention(token=token, in_update=True), RegionAttention(keeps_maps=True, in_update=True))
    measured = scoring_pass(Packer(policy), groups, probes)
    for packed in Packer(policy).groups(groups):
        maps = read(policy, packed, probes, records=1)
        assert maps["focus"].values.shape[:2] == (4, 2 * len(packed.parts))
        scored = maps["attention"].values.mean(0).detach().numpy()
        for part, slots in zip(packed.parts, packed.batch.slots, strict=True):
            for place, slot in zip(part.places, slots, strict=True):
                whole = measured[part.group].measurements[place].maps["attention"]
                np.testing.assert_allclose(scored[slot][:, : whole.shape[1]], whole, atol=1e-6)
        for name, seen in maps.items():
            assert not seen.values[:, ~seen.is_visual].any(), name
            assert (seen.values.sum(-1) < 1).all()
            assert seen.values.requires_grad


def test_regions_and_weights_come_with_the_maps(policy: Policy, token: str) -> None:
    groups = focus_groups(policy, records=3, token=token)
    bounded = sum(bool(g.record.regions) for g in groups)
    assert bounded == 2
    total = {"focus": 0.0, "attention": 0.0}
    for packed in Packer(policy, 96).groups(groups):
        probes = (FocusAttention(token=token, in_update=True), RegionAttention(in_update=True))
        for name, seen in read(policy, packed, probes, bounded).items():
            total[name] += float(seen.weight.sum())
            for part in packed.parts:
                record = part.rollouts[0].record
                sizes = [i.size for i in record.images]
                rule = "coverage" if name == "focus" else "overlap"
                gold = membership(record.regions, sizes, policy.frame, rule)  # type: ignore[arg-type]
                same = (seen.region[:, : len(gold)].numpy() == gold.astype(np.float32)).all(1)
                rows = same & (seen.is_visual.sum(1).numpy() == len(gold))
                assert rows.any()
                if not record.regions:
                    assert not seen.weight[torch.from_numpy(rows)].any()
    assert total == pytest.approx({"focus": 1.0, "attention": 1.0}, abs=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_eager_attention(policy: Policy, token: str, checkpointing: bool) -> None:
    """-log of the region mass of the focus row plus the log-probs, against one eager forward per Rollout."""
    group = focus_groups(policy, records=1, token=token)[0]
    group = group.at([0, 1])
    packed = next(iter(Packer(policy).groups([group])))
    readings = UpdateReadings((FocusAttention(token=token, layers=(0, 1), in_update=True),), policy, packed, 1)
    policy.model.train(checkpointing)
    if checkpointing:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    outputs = policy.module(packed.batch, readout=readings.readout)
    seen = readings.maps()["focus"]
    loss = -((seen.values.mean(0) * seen.region).sum(-1).log() * seen.weight).sum() + 0.1 * outputs.logprobs.sum()
    loss.backward()
    policy.model.activation_checkpointing_disable()
    policy.model.eval()
    found = gradients(policy)
    sizes = [i.size for i in group.record.images]
    gold = torch.from_numpy(membership(group.record.regions, sizes, policy.frame, "coverage")).float()
    identity = policy.tokenizer.convert_tokens_to_ids(token)
    total = torch.zeros(())
    for number, rollout in enumerate(group.rollouts):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]))[None]
        shown = policy.pixels.batch([(image, 0) for image in rollout.prompt.images])
        with eager(policy):
            out = policy.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown.pixels,
                image_grid_thw=shown.grids, output_attentions=True,
                mm_token_type_ids=(ids == policy.image_token).int(),
            )  # fmt: skip
        start = len(rollout.prompt_ids)
        rows = torch.log_softmax(out.logits[0, start - 1 : -1] + policy.module.bias, -1)
        total = total + 0.1 * rows.gather(-1, ids[0, start:, None]).sum()
        if number == 0:
            at = int(np.flatnonzero(rollout.prompt_ids == identity)[-1])
            visual = np.flatnonzero(rollout.prompt_ids == policy.image_token)
            row = torch.cat([out.attentions[0][0], out.attentions[1][0]])[:, at, visual].mean(0)
            total = total - (row * gold).sum().log()
    total.backward()
    assert relative_difference(found, gradients(policy)) < 1e-5


def test_nothing_is_read_that_was_not_asked_for(policy: Policy) -> None:
    packed = next(iter(Packer(policy).groups(plain_groups(policy, 1))))
    readings = UpdateReadings((RegionAttention(), FocusAttention(token="a")), policy, packed, 1)
    assert readings.readout is None
    assert readings.maps() == {}
    bare = Group(record=make_record("t", ()), rollouts=focus_rollouts(policy), readings=())
    packed = next(iter(Packer(policy).groups([bare])))
    readings = UpdateReadings((RegionAttention(in_update=True),), policy, packed, 1)
    assert readings.readout is None


def focus_rollouts(policy: Policy) -> tuple[Rollout, ...]:
    shown = prompt(make_record("t", ()), "textual", "textual", "compact")
    return (
        Rollout(
            prompt=shown, branch=(0,), prompt_ids=policy.encode(shown).ids, ids=np.arange(300, 304),
            sampled=np.ones(4, bool), logprobs=np.zeros(4, np.float32), text="", finish="stop",
        ),
    )  # fmt: skip
