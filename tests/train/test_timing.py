"""Phases of a step, and the share of a card's peak that an update reaches."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import FAMILIES
from eager import rollouts
from sightline.policy.architecture import architecture
from sightline.policy.flops import Trained, tree_work, update_flops
from sightline.policy.load import Policy, load_policy
from sightline.policy.lora import LoraSettings, train_rows
from sightline.policy.packing import Packer
from sightline.train import timing
from sightline.train.timing import Phases, Usage, peak_flops
from sightline.types import Group, Reading


def test_a_phase_that_runs_twice_adds_up() -> None:
    phases = Phases(torch.device("cpu"))
    for _ in range(2):
        with phases.timed("sample"):
            time.sleep(0.01)
    with pytest.raises(KeyError), phases.timed("score"):
        raise KeyError
    found = phases.seconds()
    assert set(found) == {"sample", "score"}
    assert 0.02 <= found["sample"] < 1


def test_only_known_cards_have_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    for name, peak in (("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Some Card", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak


def test_mfu_is_model_flops_over_time_and_peak(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    group = rollouts(policy, 0)
    packed = next(iter(Packer(policy).groups([Group(
        record=group[0].record, rollouts=tuple(group), readings=tuple(Reading(text="") for _ in group)
    )])))  # fmt: skip
    assert Usage(policy).metrics(1.0) == {}
    monkeypatch.setattr(timing, "peak_flops", lambda _: 1e9)
    usage = Usage(policy)
    usage.add(packed.batch)
    once = usage.metrics(2.0)["update/mfu"]
    assert once > 0
    usage.add(packed.batch)
    usage.add(packed.batch)
    assert usage.metrics(1.0)["update/mfu"] == pytest.approx(4 * once)
    assert usage.metrics(1.0)["update/mfu"] == 0
    pixels = policy.pixels
    work = tree_work([part.tree for part in packed.parts], pixels.grid, pixels.processor.merge_size)
    flops = update_flops(architecture(policy.model.config), work).total
    assert once == pytest.approx(flops / 2.0 / 1e9)
    usage.add(replace(packed.batch, pixels=None))
    assert 0 < usage.metrics(2.0)["update/mfu"] < once, "kept features cost nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_read_off_the_policy(checkpoints: dict[str, Path], family: str) -> None:
    """As a dry run tells it from the recipe, so that both count the same FLOPs."""
    whole = load_policy(checkpoints[family])
    assert _trained(whole) == Trained(embeddings=True, targets=())
    whole.model.model.visual.requires_grad_(False)
    assert _trained(whole) == Trained(vision=False, embeddings=True, targets=())
    adapted = load_policy(checkpoints[family], lora=LoraSettings(rank=4))
    assert _trained(adapted) == Trained(text=False, vision=False, rank=4)
    train_rows(adapted, [5])
    assert _trained(adapted) == Trained(text=False, vision=False, rank=4, embeddings=True)
    some = load_policy(checkpoints[family], lora=LoraSettings(rank=2, targets=("v_proj", "q_proj")))
    assert _trained(some) == Trained(text=False, vision=False, rank=2, targets=("q_proj", "v_proj"))
    everywhere = load_policy(checkpoints[family], lora=LoraSettings(rank=2, targets="all"))
    assert _trained(everywhere) == Trained(text=False, vision=False, rank=2, adapts_vision=True)


def _trained(policy: Policy) -> Trained:
    return Usage(policy)._trained()
