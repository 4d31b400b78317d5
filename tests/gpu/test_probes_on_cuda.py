"""Every probe on CUDA, several trees packed into one row, against the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import FAMILIES
from measured import conversation_groups
from sightline.interventions import Intervention
from sightline.methods.probes import Contrast, FocusAttention, GoldLikelihood, RegionAttention
from sightline.policy.load import load_policy
from sightline.policy.packing import Packer
from sightline.probes.calibration import head_scores
from sightline.probes.scoring import scoring_pass
from sightline.probes.update import UpdateReadings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROBES = (
    RegionAttention(layers="all", keeps_maps=True),
    FocusAttention(token="assistant", layers=(0, -1)),
    Contrast(draws=2, divergence="full_kl"),
    Contrast(name="bare", intervention=Intervention("text_only")),
    Contrast(name="blocked", intervention=Intervention("attn_block"), divergence="jsd"),
    GoldLikelihood(cut="turns"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_measurements_equal_those_of_the_cpu(checkpoints: dict[str, Path], family: str) -> None:
    cpu, cuda = load_policy(checkpoints[family]), load_policy(checkpoints[family], device="cuda")
    groups = conversation_groups(cpu)
    probes = [p for p in PROBES if not isinstance(p, FocusAttention) or _is_one_token(cpu, p.token)]
    ours, theirs = (scoring_pass(Packer(policy), groups, probes, key=(0, 1)) for policy in (cuda, cpu))
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a.measurements, b.measurements, strict=True):
            assert set(x.probes) == set(y.probes)
            assert x.images == y.images
            for name, values in y.probes.items():
                np.testing.assert_allclose(x.probes[name], values, atol=2e-3, err_msg=name)
            for name, values in y.maps.items():
                np.testing.assert_allclose(x.maps[name], values, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_the_update_and_heads_equal_those_of_the_cpu(checkpoints: dict[str, Path], family: str) -> None:
    policies = [load_policy(checkpoints[family], device=device) for device in ("cuda", "cpu")]
    groups = conversation_groups(policies[1])[:1]
    found = []
    for policy in policies:
        packed = next(iter(Packer(policy).groups(groups)))
        readings = UpdateReadings((RegionAttention(in_update=True),), policy, packed, 1)
        policy.module(packed.batch, readout=readings.readout)
        seen = readings.maps()["attention"]
        (seen.values.mean(0) * seen.region).sum().backward()
        norm = torch.cat([p.grad.flatten().cpu() for p in policy.model.parameters() if p.grad is not None]).norm()
        found.append((seen.values.detach().cpu(), float(norm)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-3, rtol=0)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-2)
    alone = [group.at([0]) for group in conversation_groups(policies[1])[:2]]
    ours, theirs = (head_scores(Packer(policy), alone) for policy in policies)
    for a, b in zip(ours, theirs, strict=True):
        assert all(a[key].region == pytest.approx(b[key].region, abs=1e-3) for key in b)


def _is_one_token(policy, token: str) -> bool:
    return len(policy.tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
