"""The block mask on CUDA against the layout on CPU: same log-probs and gradients, packed rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import FAMILIES, make_record
from sightline.language.prompts import prompt
from sightline.policy.batch import collate
from sightline.policy.load import load_policy
from sightline.policy.tree import build_tree, rollout_path
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_equals_cpu(checkpoints: dict[str, Path], family: str) -> None:
    cpu, cuda = load_policy(checkpoints[family]), load_policy(checkpoints[family], device="cuda")
    shown = [
        prompt(make_record(f"r{i}", ((96, 64),), i), s, s, "compact") for i in range(2) for s in ("textual", "grounded")
    ]
    asked = [Request(p, (3,)) for p in shown]
    sampled = LocalSampler(cpu).sample(asked, SamplingSettings(max_new_tokens=20), seed=0, step=0)
    groups = [sampled[0] + sampled[1], sampled[2] + sampled[3]]
    results = []
    for policy, rows in ((cpu, [[0], [1]]), (cuda, [[0, 1]])):
        trees = [build_tree([rollout_path(r, policy.image_token) for r in g], policy.rules) for g in groups]
        batch = collate([[trees[i] for i in row] for row in rows], policy.pixels, pad=policy.pad, device=policy.device)
        logprobs = policy.module(batch).logprobs
        logprobs.sum().backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in policy.model.parameters() if p.grad is not None])
        results.append((logprobs.detach().cpu(), gradient))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    difference = (results[0][1] - results[1][1]).norm() / results[0][1].norm()
    assert float(difference) < 1e-3
